"""The guards of a server for others, where they stand: in `aibox serve` as it is started, and in what it reads anew."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_parts import PATIENCE_S, Running, Upstream, serving

from aibox.server.api_keys import ApiKeys
from aibox.server.principal import Role
from aibox.types import Scope

pytestmark = pytest.mark.loopback

KEYS = '[server]\nport = 0\napi_keys = "keys.db"\n'
BACKEND = '[[backends]]\nkind = "openai"\nname = "up"\nurl = "http://127.0.0.1:9/v1"\nmodels = ["m"]\n'
DOOR = '[egress]\nmodels = ["*"]\n'
GOOD = "Vq3x9tLm2RkWz81b"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    found = Upstream()
    yield found
    found.close()


def start(folder: Path, config: str, *, policy: str = "version = 1\n") -> tuple[int | None, str]:
    """How `aibox serve` ends and what it says; None: it serves, and is then told to stop."""
    (folder / "policy.toml").write_text(policy)
    (folder / "aibox.toml").write_text(f'home = "home"\npolicy = "policy.toml"\n{config}')
    command, env = [sys.executable, "-m", "aibox", "serve"], {**os.environ, "COLUMNS": "500"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder, env=env) as process:
        assert process.stderr is not None
        patience = threading.Timer(PATIENCE_S, process.kill)
        patience.start()
        said = []
        try:
            for line in process.stderr:
                said.append(line)
                if "aibox serves" in line:
                    return None, "".join(said)
            return process.wait(PATIENCE_S), "".join(said)
        finally:
            patience.cancel()
            process.send_signal(signal.SIGTERM)
            process.stderr.read()


@pytest.mark.parametrize("secret", ["changeme-changeme", "short-k3y", "${VLLM_KEY_FROM_ENV}"])
def test_a_server_for_others_does_not_start_with_a_secret_that_is_none(tmp_path: Path, secret: str) -> None:
    """Exit code 2 and the name of what to set, never the secret; with a secret of its own it starts."""
    code, said = start(tmp_path, f'{BACKEND}api_key = "{secret}"\n{KEYS}')
    assert code == 2, said
    assert "backends[up].api_key" in said
    assert "set backends[up].api_key to a" in said
    assert secret not in said
    assert "Traceback" not in said


def test_a_secret_in_a_url_or_a_file_is_looked_at_before_a_start_too(tmp_path: Path) -> None:
    """Of a URL the password, of a file what is in it: exit code 2, which names the setting; good ones are served."""
    code, said = start(tmp_path, f'{BACKEND}{KEYS}rates_url = "redis://:hunter2@127.0.0.1:9"\n')
    assert (code, "set the password in server.rates_url to a longer one" in said, "hunter2" in said) == (2, True, False)
    (tmp_path / "up.key").write_text("todo-later-on-monday")
    code, said = start(tmp_path, f'{BACKEND}api_key_file = "up.key"\n{KEYS}')
    assert (code, "set the file of backends[up].api_key_file to a secret" in said, "monday" in said) == (2, True, False)
    (tmp_path / "up.key").write_text(GOOD)
    assert start(tmp_path, f'{BACKEND}api_key_file = "up.key"\n{KEYS}')[0] is None


def test_a_server_for_others_does_not_start_with_an_open_door_and_no_budget(tmp_path: Path) -> None:
    """Exit code 2 and which budget to set; with it, and where one local key is all that there is, it starts."""
    code, said = start(tmp_path, BACKEND + KEYS, policy=DOOR)
    assert code == 2, said
    assert "the policy of the box opens the door and bounds no spending" in said
    assert "set budgets.tenant.usd_per_month" in said
    assert "Traceback" not in said
    bounded = f"{DOOR}[budgets.tenant]\nusd_per_month = 10.0\n"
    assert start(tmp_path, BACKEND + KEYS, policy=bounded)[0] is None
    assert start(tmp_path, f"{BACKEND}[server]\nport = 0\n", policy=DOOR)[0] is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_server_that_tells_nobody_apart_is_not_bound_beyond_loopback(tmp_path: Path, host: str) -> None:
    """The address from the file: exit code 2, what to configure, and nothing was opened."""
    code, said = start(tmp_path, f'{BACKEND}[server]\nport = 0\nhost = "{host}"\n')
    assert code == 2, said
    assert f"listens on loopback only, not on {host}" in said
    assert "configure [[server.issuers]], or server.api_keys" in said
    assert not (tmp_path / "home").exists()


def key(server: Running) -> str:
    async def made() -> str:
        keys = ApiKeys(server.home / "keys.db")
        scope, roles = Scope(tenant="default", user="root"), [Role.USER, Role.TENANT_ADMIN, Role.PLATFORM_ADMIN]
        text = await keys.create(scope=scope, roles=roles)
        await keys.close()
        return text

    return asyncio.run(made())


def test_what_a_server_would_not_start_with_it_does_not_read_anew(tmp_path: Path, upstream: Upstream) -> None:
    """By a signal and by the route: refused with what to set, on record, and what was in force goes on being used."""
    with serving(tmp_path, upstream, server='api_keys = "keys.db"') as server:
        root, config, policy = key(server), tmp_path / "aibox.toml", tmp_path / "policy.toml"
        plain = config.read_text()
        good, bad = (plain.replace("[memory]", f'api_key = "{text}"\n[memory]') for text in (GOOD, "changeme-changeme"))

        def reload() -> tuple[int, str]:
            answer = server.send("POST", "/v1/admin/reload", key=root)
            return answer.status, answer.read().decode()

        def in_force() -> tuple[str, str | None]:
            digest = json.loads(server.send("GET", "/v1/admin/policy", key=root).read())["digest"]
            assert server.ask("hi", key=root).status == 200
            return digest, upstream.headers[-1].get("authorization")

        config.write_text(good)
        assert reload()[0] == 200
        before = in_force()
        assert before[1] == f"Bearer {GOOD}"

        config.write_text(bad)
        status, text = reload()
        assert (status, "backends[up].api_key holds a placeholder" in text, "changeme" in text) == (400, True, False)
        assert "set backends[up].api_key to a secret of its own" in text
        server.process.send_signal(signal.SIGHUP)
        server.until(lambda: len(server.lines("reload.failed")) == 1)
        assert "backends[up].api_key holds a placeholder" in server.lines("reload.failed")[0]["message"]
        assert in_force() == before

        config.write_text(good)
        policy.write_text(DOOR)
        status, text = reload()
        assert (status, "the policy of the box opens the door and bounds no spending" in text) == (400, True)
        assert "set budgets.tenant.usd_per_month" in text
        assert in_force() == before
        shown = json.loads(server.send("GET", "/v1/audit?kind=config.reloaded&limit=1000", key=root).read())["data"]
        assert [one["detail"]["outcome"] for one in shown] == ["taken up", "refused", "refused", "refused"]

        policy.write_text(f"{DOOR}[budgets.tenant]\nusd_per_month = 10.0\n")
        assert reload()[0] == 200
        assert in_force()[0] != before[0]
