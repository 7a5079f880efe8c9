"""What a server refuses to start with, and how it reads its policies anew while it runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_parts import Upstream, serving

from aibox.box import Box
from aibox.errors import ConfigError
from aibox.server import guards
from aibox.settings import Settings

OTHERS = {"server": {"api_keys": "keys.db"}}


def unfit(tmp_path: Path, **values: Any) -> None:
    settings = Settings(home=tmp_path / "home", **values)
    guards.refuse_unfit(settings, settings.server, Box(settings).policies)


@pytest.mark.parametrize(
    "secret", ["changeme", "CHANGE-ME-NOW-PLEASE", "your-api-key-here", "xxxxxxxxxxxxxxxx", "${VLLM_KEY_FROM_ENV}",
               "<paste the key here>", "replace_me_later", "password12345678", "short-k3y"],
)  # fmt: skip
def test_a_placeholder_or_a_short_secret_is_refused(tmp_path: Path, secret: str) -> None:
    """It names the setting and never shows the secret; on one's own machine nobody is told off."""
    backend = {"kind": "vllm", "name": "big", "url": "http://127.0.0.1:1/v1", "api_key": secret}
    with pytest.raises(ConfigError, match=r"backends\[big\]\.api_key") as told:
        unfit(tmp_path, backends=[backend], **OTHERS)
    assert secret not in str(told.value)
    unfit(tmp_path, backends=[backend])


def test_secrets_in_files_and_urls_are_looked_at_too(tmp_path: Path) -> None:
    """Of a URL its password counts, of a file what is in it; a good one of each is no reason to refuse."""
    (tmp_path / "bad.key").write_text("todo-later-on-monday\n")
    (tmp_path / "good.key").write_text("Vq3x9tLm2RkWz81b\n")
    backend = {"kind": "vllm", "name": "big", "url": "http://127.0.0.1:1/v1"}
    with pytest.raises(ConfigError, match="the file of backends"):
        unfit(tmp_path, backends=[{**backend, "api_key_file": tmp_path / "bad.key"}], **OTHERS)
    with pytest.raises(ConfigError, match=r"the password in memory\.buffer_url"):
        unfit(tmp_path, memory={"buffer_url": "redis://:hunter2@127.0.0.1"}, **OTHERS)
    good = {**backend, "api_key_file": tmp_path / "good.key"}
    unfit(tmp_path, backends=[good], memory={"buffer_url": "redis://127.0.0.1"}, **OTHERS)


def test_an_open_door_without_a_budget_is_refused(tmp_path: Path) -> None:
    """Also where a tenant's policy is what is asked about; a budget in tokens or money is enough."""
    opened = tmp_path / "open.toml"
    opened.write_text('[egress]\nmodels = ["*"]\n')
    with pytest.raises(ConfigError, match="the policy of the box opens the door") as told:
        unfit(tmp_path, policy=str(opened), **OTHERS)
    assert "budgets.tenant.usd_per_month" in told.value.hint
    bounded = tmp_path / "bounded.toml"
    bounded.write_text('[egress]\nmodels = ["*"]\n[budgets.tenant]\nusd_per_month = 10.0\n')
    unfit(tmp_path, policy=str(bounded), tenants={"acme": {"policy": str(opened)}}, **OTHERS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--dev", "--host", "0.0.0.0"], "--dev listens on loopback only"), (["--host", "0.0.0.0"], "loopback only")],
)
def test_beyond_loopback_somebody_has_to_be_told_apart(tmp_path: Path, arguments: list[str], says: str) -> None:
    """Exit code 2, in a line, before anything is opened."""
    command = [sys.executable, "-m", "aibox", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "home").exists()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    found = Upstream()
    yield found
    found.close()


@pytest.mark.loopback
def test_a_policy_is_read_anew_without_dropping_a_stream(tmp_path: Path, upstream: Upstream) -> None:
    """SIGHUP: a broken file keeps the old one and says so; a good one holds for what begins then; streams go on."""
    (tmp_path / "tenant.toml").write_text("version = 1\n")
    more = '[tenants.default]\npolicy = "tenant.toml"\n'
    with serving(tmp_path, upstream, more=more, arguments=("--dev",)) as server:
        assert guards.DEV in server.text
        stream = server.ask("HOLD", stream=True)
        assert stream.status == 200
        strict = '[checks.topics]\ninput = "block"\n[topics.banned]\nweather = ["weather"]\n'
        (tmp_path / "policy.toml").write_text("[checks.no_such_check]\ninput = 'block'\n")
        server.process.send_signal(signal.SIGHUP)
        server.until(lambda: len(server.lines("reload.failed")) == 1)
        (tmp_path / "policy.toml").write_text("[[[")
        server.process.send_signal(signal.SIGHUP)
        server.until(lambda: len(server.lines("reload.failed")) == 2)
        assert server.lines("reload.failed")[1]["level"] == "error"
        assert "policy.toml" in server.lines("reload.failed")[1]["message"]
        assert server.ask("about the weather").status == 200
        (tmp_path / "policy.toml").write_text(strict)
        server.process.send_signal(signal.SIGHUP)
        server.until(lambda: server.lines("reloaded"))
        blocked = server.ask("about the weather")
        assert blocked.status == 400
        assert json.loads(blocked.read())["error"]["code"] == "policy.guardrail"
        agent = json.loads(server.ask("about the weather", model="agent:default").read())
        assert agent["choices"][0]["finish_reason"] == "content_filter"
        # A tenant's own, too.
        (tmp_path / "policy.toml").write_text("version = 1\n")
        (tmp_path / "tenant.toml").write_text("[rates.tenant]\nrequests_per_minute = 1\n[limits]\n")
        server.process.send_signal(signal.SIGHUP)
        server.until(lambda: len(server.lines("reloaded")) == 2)
        assert server.ask("about the weather").status == 200
        assert server.ask("about the weather").status == 429
        upstream.release.set()
        assert stream.read().endswith(b"data: [DONE]\n\n")
