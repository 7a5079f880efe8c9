"""The configuration is read anew while the server runs: all of it or nothing, on record, and no stream is dropped."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from platform_world import ISSUER, Asked, Person, Provider, World, world
from server_parts import Running, Upstream, serving

from aibox.box import Box
from aibox.errors import AuthError, ConfigError, IntegrityError
from aibox.server.reload import KIND
from aibox.server.tokens import Tokens
from aibox.settings import BackendSettings, Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def upstreams() -> Iterator[tuple[Upstream, Upstream]]:
    found = Upstream(), Upstream()
    yield found
    for one in found:
        one.close()


def table(upstream: Upstream, name: str, model: str, more: str = "") -> str:
    return (
        f'[[backends]]\nkind = "openai"\nname = "{name}"\nmodels = ["{model}"]\n'
        f'url = "http://127.0.0.1:{upstream.port}/v1"\n{more}'
    )


def entries(server: Running) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(server.send("GET", "/v1/audit?limit=1000").read())["data"]
    return [one for one in found if one["kind"] == KIND]


@pytest.mark.loopback
def test_backends_come_and_go_while_a_stream_goes_on(tmp_path: Path, upstreams: tuple[Upstream, Upstream]) -> None:
    """A new one serves, one that is gone takes nothing new and ends what it began, a broken file changes nothing."""
    old, new = upstreams
    with serving(tmp_path, old, arguments=("--dev",)) as server:
        config = tmp_path / "aibox.toml"
        before = config.read_text()
        own = before[before.index("[[backends]]") : before.index("[memory]")]
        stream = server.ask("HOLD", stream=True)
        assert stream.status == 200
        server.until(lambda: old.begun == 1)

        config.write_text(before.replace(own, table(new, "new", "m2") + "[[[\n"))
        server.process.send_signal(signal.SIGHUP)
        server.until(lambda: len(server.lines("reload.failed")) == 1)
        config.write_text(before.replace(own, table(new, "two words", "m2")))
        refused = server.send("POST", "/v1/admin/reload")
        assert refused.status == 400
        assert "two words" in json.loads(refused.read())["detail"]
        assert server.ask("still there").status == 200
        assert server.ask("not yet", model="m2").status == 404

        config.write_text(before.replace(own, table(new, "new", "m2") + '[routing]\naliases = { quick = "new/m2" }\n'))
        server.process.send_signal(signal.SIGHUP)
        server.until(lambda: server.lines("reloaded"))
        assert server.lines("reloaded")[0]["backends"] == ["new"]
        assert server.ask("hello", model="m2").status == 200
        assert server.ask("hello", model="quick").status == 200
        assert server.ask("hello", model="agent:default").status == 200
        assert new.asked == ["hello"] * 3
        assert server.ask("gone").status == 404
        assert old.asked == ["HOLD", "still there"]
        old.release.set()
        assert stream.read().endswith(b"data: [DONE]\n\n")
        outcomes = [(one["detail"]["outcome"], one["detail"].get("backends")) for one in entries(server)]
        assert outcomes == [("refused", None), ("refused", None), ("taken up", ["new"])]


@pytest.mark.loopback
def test_a_key_in_a_file_and_what_needs_a_new_start(tmp_path: Path, upstreams: tuple[Upstream, Upstream]) -> None:
    """A model server's key that was changed in its file is sent from then on; other settings are named, and stay."""
    up, _ = upstreams
    (tmp_path / "up.key").write_text("the-first-key-of-all")
    with serving(tmp_path, up, arguments=("--dev",)) as server:
        config = tmp_path / "aibox.toml"
        config.write_text(config.read_text().replace("[memory]", 'api_key_file = "up.key"\n[memory]'))
        shown = json.loads(server.send("POST", "/v1/admin/reload").read())
        assert (shown["backends"], shown["restart"]) == (["up"], [])
        server.ask("one").read()
        (tmp_path / "up.key").write_text("and-the-second-one")
        config.write_text(config.read_text() + "[server.limits]\ngrace_s = 3\n[traces]\nurl = 'http://127.0.0.1:9'\n")
        shown = json.loads(server.send("POST", "/v1/admin/reload").read())
        assert shown["restart"] == ["server.limits", "traces"]
        server.ask("two").read()
        sent = [headers["authorization"] for headers in up.headers]
        assert sent == ["Bearer the-first-key-of-all", "Bearer and-the-second-one"]


async def test_what_has_not_changed_stays_as_it_is(tmp_path: Path) -> None:
    """A backend keeps its connections and its state; one that left closes when the last call that found it is over."""
    tables = [
        BackendSettings(kind="openai", name=name, url="http://127.0.0.1:1/v1", models=(name,)) for name in ("a", "b")
    ]
    async with Box(Settings(home=tmp_path, policy="permissive", backends=tuple(tables))) as box:
        a, b = (replica for replica in box.router.plan_in_force.registry.replicas)
        closed: list[str] = []
        for replica in (a, b):
            replica.backend.close = lambda name=replica.name: gone(closed, name)  # type: ignore[method-assign]
        b.wanted = 1
        owned = tables[0].model_copy(update={"tenants": frozenset({"acme"})})
        await box.reload(box.settings.model_copy(update={"backends": (owned,)}))
        assert box.router.plan_in_force.registry.replicas == (a,)
        b.wanted = 0
        await ended(closed, ["b"])
        with pytest.raises(ConfigError, match="is external and the policy's door is shut"):
            await box.reload(
                box.settings.model_copy(update={"backends": (owned, BackendSettings(
                    kind="openai", name="far", url="https://api.example.com/v1", models=("x",)))})
            )  # fmt: skip
        assert box.router.plan_in_force.registry.replicas == (a,)
        assert len(box.settings.backends) == 1
    assert closed == ["b", "a"]


async def gone(closed: list[str], name: str) -> None:
    closed.append(name)


async def ended(found: list[str], wanted: list[str]) -> None:

    with anyio.fail_after(60):
        while found != wanted:
            await anyio.sleep(0.01)


async def test_what_fails_after_all_takes_everything_back(tmp_path: Path) -> None:
    """An agent that cannot be made anew: policy, guardrail and routes are those of before."""
    (tmp_path / "p.toml").write_text("version = 1\n")
    async with Box(Settings(home=tmp_path, policy=str(tmp_path / "p.toml"))) as box:
        before = box.policy, box.guardrail, box.router.plan_in_force

        def after() -> None:
            assert box.policy.digest != before[0].digest
            raise ConfigError("no agent")

        (tmp_path / "p.toml").write_text("[limits]\nmodel_calls = 3\n")
        with pytest.raises(ConfigError, match="no agent"):
            await box.reload(box.settings, after=after)
        assert (box.policy, box.guardrail, box.router.plan_in_force) == before


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"kind": "embedded", "path": "nowhere.gguf"}, "cannot read the model file"),
        ({"kind": "embedded", "path": "garbage"}, "is not a GGUF file"),
        ({"kind": "openai", "url": "https://10.0.0.1/v1", "ca_bundle": "garbage"}, "certificates cannot"),
    ],
)
async def test_a_file_that_no_call_could_use_is_found_before_what_works_goes(
    tmp_path: Path, table: dict[str, Any], why: str
) -> None:
    """A model file that is not there or is none, and certificates that are none: the backend before goes on."""
    (tmp_path / "garbage").write_text("garbage")
    files = {name: tmp_path / table[name] for name in ("path", "ca_bundle") if name in table}
    works = BackendSettings(kind="openai", name="a", url="http://127.0.0.1:1/v1", models=("a",))
    async with Box(Settings(home=tmp_path, policy="permissive", backends=(works,))) as box:
        before = box.router.plan_in_force
        broken = BackendSettings(**{**table, **files, "name": "b"})
        with pytest.raises(ConfigError, match=why):
            await box.reload(box.settings.model_copy(update={"backends": (broken,)}))
        assert box.router.plan_in_force == before


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def test_issuers_come_and_go(w: World) -> None:
    """A token of an issuer that is trusted no more is refused at once, though it was believed a moment ago."""
    eva = Person("acme", "eva", ("user", "platform_admin"))
    assert (await w.send("get", "/v1/models", Asked(), eva.token())).status_code == 200
    (issuer,) = w.settings.server.issuers
    elsewhere = issuer.model_copy(update={"issuer": f"{ISSUER}/other", "jwks_url": f"{ISSUER}/jwks"})

    def trusts(*issuers: Any) -> None:
        server = w.settings.server.model_copy(update={"issuers": issuers})
        w.settings = w.settings.model_copy(update={"server": server})

    trusts(issuer, elsewhere)
    other = eva.token(iss=f"{ISSUER}/other")
    assert (await w.send("get", "/v1/models", Asked(), other)).status_code == 401
    shown = (await w.send("post", "/v1/admin/reload", Asked(), eva.token())).json()
    assert shown["issuers"] == [ISSUER, f"{ISSUER}/other"]
    assert (await w.send("get", "/v1/models", Asked(), other)).status_code == 200
    trusts(elsewhere)
    assert (await w.send("post", "/v1/admin/reload", Asked(), eva.token())).status_code == 200
    assert (await w.send("get", "/v1/models", Asked(), eva.token())).status_code == 401
    trusts()
    refused = await w.send("post", "/v1/admin/reload", Asked(), other)
    assert (refused.status_code, refused.json()["detail"][:18]) == (400, "from the local key")
    assert (await w.send("get", "/v1/models", Asked(), other)).status_code == 200


async def test_a_token_that_was_being_checked_is_not_believed_under_new_settings(w: World) -> None:
    """The issuer goes while its keys are on their way: refused, then and afterwards."""
    eva = Person("acme", "eva", ("user",))
    asked, go = anyio.Event(), anyio.Event()
    (settings,) = w.settings.server.issuers

    class Slow(Provider):
        async def get(self, url: str, *, correlation: str = "") -> dict[str, Any]:
            asked.set()
            await go.wait()
            return await super().get(url)

    tokens = Tokens([settings], http=Slow())
    bearer, refused = eva.token(), []

    async def authenticate() -> None:
        try:
            await tokens.authenticate(bearer)
        except AuthError as error:
            refused.append(error.message)

    async with anyio.create_task_group() as group:
        group.start_soon(authenticate)
        await asked.wait()
        tokens.use(tokens.plan([]))
        go.set()
    await authenticate()
    assert len(refused) == 2


async def test_whatever_goes_wrong_is_on_record_as_what_it_was(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody thought of is a refusal too, in no words of its own; what was in force is taken back."""
    eva = Person("acme", "eva", ("user", "platform_admin", "tenant_admin"))

    def fails(*_: Any) -> Any:
        raise TypeError(f"a secret: {SECRET}")

    with monkeypatch.context() as broken:
        broken.setattr(w.reload, "_read", fails)
        refused = await w.send("post", "/v1/admin/reload", Asked(), eva.token())
    assert refused.status_code == 400
    with monkeypatch.context() as broken:
        broken.setattr(w.reload, "_renew", fails)
        with pytest.raises(ConfigError, match="TypeError"):
            await w.reload()
    assert (await w.send("post", "/v1/admin/reload", Asked(), eva.token())).status_code == 200
    found = [*await w.box.audit.entries_of("acme", KIND), *await w.box.audit.entries_of(w.settings.server.tenant, KIND)]
    assert [one.detail["outcome"] for one in found] == ["refused", "taken up", "taken up", "taken back"]
    assert SECRET not in f"{refused.text}{[one.detail for one in found]}"


SECRET = "in-no-record"


async def test_the_operator_who_asks_is_told_which_file_does_not_hold(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other callers are not told, and whoever asks for a reload needs: the words, under the code of the error."""

    async def fails(*_: Any, **__: Any) -> Any:
        raise IntegrityError("the policy house.toml is not signed", hint="aibox policy sign house.toml")

    monkeypatch.setattr(w.box, "reload", fails)
    root = Person("ops", "root", ("platform_admin",))
    answer = await w.send("post", "/v1/admin/reload", Asked(), root.token())
    assert (answer.status_code, answer.json()["title"]) == (500, "integrity")
    assert answer.json()["detail"] == "the policy house.toml is not signed"
    assert answer.json()["hint"] == "aibox policy sign house.toml"
