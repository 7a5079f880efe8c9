"""What code made in the sandbox comes to the person who asked: checked where it can be, marked where not, on record."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import aibox
from aibox.agents.artifacts import MAX_A_CALL, media_type_of
from aibox.agents.events import ArtifactMade, Event, Reply, Subagent, ToolCalled, ToolReturned, UsageReported
from aibox.errors import AccessError
from aibox.policy.artifacts import ArtifactRules
from aibox.policy.policy import Policy
from aibox.sandbox.bubblewrap import Bubblewrap
from aibox.testing import ScriptedBackend, call
from aibox.types import Decision, Label, Scope

pytestmark = pytest.mark.anyio

KEY = "AKIA" + "QWERTYUIOPASDFGH"
PNG = b"\x89PNG\r\n\x1a\n not really a picture \xff"
DRAW = f"open('chart.png', 'wb').write({PNG!r}); print('drawn')"
FIGURE = f"""
import sys, types
class Figure:
    def savefig(self, file, format): file.write({PNG!r})
plot = sys.modules["matplotlib.pyplot"] = types.SimpleNamespace(
    get_fignums=lambda: [1], figure=lambda n: Figure(), close=lambda which: None)
None
"""


@pytest.fixture
async def sandbox() -> AsyncIterator[aibox.Sandbox]:
    sandbox = aibox.Sandbox(Bubblewrap())
    yield sandbox
    await sandbox.close()


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[aibox.AuditChain]:
    async with aibox.AuditChain(tmp_path / "audit.db") as chain:
        yield chain


async def events_of(agent: aibox.Agent, **options: Any) -> list[Event]:
    return [event async for event in agent.stream("Draw it.", **options)]


def made_in(events: list[Event]) -> list[ArtifactMade]:
    return [event for event in events if isinstance(event, ArtifactMade)]


def entries(reply: Reply) -> list[dict[str, Any]]:
    assert reply.receipt is not None
    return [dict(entry.detail) for entry in reply.receipt.entries if entry.kind == "artifact.made"]


async def test_a_figure_and_a_table_are_events_before_the_tool_returns(
    scope: Scope, sandbox: aibox.Sandbox, chain: aibox.AuditChain
) -> None:
    """Name, type, size, digest, label, call and bytes are there, on the reply too, and each has an entry."""
    code = FIGURE + "open('sums.csv', 'w').write('n,square\\n2,4\\n')"
    model = ScriptedBackend(call("python", {"code": code}), "There.")
    guardrail = aibox.Guardrail(Policy.profile("balanced"))
    agent = aibox.Agent("x", router=model, sandbox=sandbox, guardrail=guardrail, audit=chain)
    events = await events_of(agent, scope=scope, label="confidential/PHI")

    figure, table = made_in(events)
    called = next(event for event in events if isinstance(event, ToolCalled))
    returned = next(event for event in events if isinstance(event, ToolReturned))
    assert events.index(called) < events.index(figure) < events.index(table) < events.index(returned)
    assert called.call_id == figure.call_id == returned.call_id != ""
    assert (figure.name, figure.media_type, figure.data, figure.checked) == ("figure-1.png", "image/png", PNG, False)
    assert (table.name, table.media_type, table.data) == ("sums.csv", "text/csv", b"n,square\n2,4\n")
    assert table.checked
    assert str(table.label) == "confidential/PHI"
    assert table.size == 13
    assert table.sha256 == hashlib.sha256(b"n,square\n2,4\n").hexdigest()
    assert "figure-1.png shown to the user" in returned.text
    reply = events[-1]
    assert isinstance(reply, Reply)
    assert reply.artifacts == (figure, table)

    held = entries(reply)
    assert [(d["outcome"], d["checked"], d["sha256"]) for d in held] == [
        ("delivered", False, figure.sha256),
        ("delivered", True, table.sha256),
    ]
    shown = figure._repr_mimebundle_()
    assert set(shown) == {"text/plain", "image/png"}


async def test_only_what_is_new_is_handed_out(scope: Scope, sandbox: aibox.Sandbox) -> None:
    """A file is an artifact when code made or changed it: not a second time, and not what was put in."""
    steps = [
        call("write_file", {"path": "in.txt", "text": "given"}),
        call("python", {"code": "open('a.txt', 'w').write('one')"}),
        call("bash", {"command": "cat a.txt in.txt > /dev/null"}),
        call("bash", {"command": "printf two > a.txt; printf changed > in.txt"}),
    ]
    agent = aibox.Agent("x", router=ScriptedBackend(*steps, "done"), sandbox=sandbox)
    made = made_in(await events_of(agent, scope=scope))
    assert [(one.name, one.data) for one in made] == [
        ("a.txt", b"one"),
        ("a.txt", b"two"),
        ("in.txt", b"changed"),
    ]


async def test_an_image_is_held_back_where_the_policy_says_so(
    scope: Scope, sandbox: aibox.Sandbox, chain: aibox.AuditChain
) -> None:
    """Strict: the event says why and has no bytes, the model is told, and the entry has the digest of what was made."""
    model = ScriptedBackend(call("python", {"code": DRAW}), "Done.")
    policy = Policy(artifacts=ArtifactRules(unchecked=Decision.REDACT))
    agent = aibox.Agent("x", router=model, sandbox=sandbox, policy=policy, audit=chain)
    reply = await agent.run("Draw it.", scope=scope)
    (chart,) = reply.artifacts
    assert chart.data is None
    assert chart.sha256 == ""
    assert "artifacts.unchecked" in chart.withheld
    assert "held back" in reply.tool_calls[0].text
    with pytest.raises(AccessError, match="held back"):
        chart.save("/")
    (held,) = entries(reply)
    assert (held["outcome"], held["made_sha256"]) == ("withheld", hashlib.sha256(PNG).hexdigest())


@pytest.mark.parametrize("profile", ["strict", "clinic", "bank", "defence"])
def test_careful_profiles_hand_out_nothing_unchecked(profile: str) -> None:
    """And a laptop with the default or the permissive one shows figures."""
    assert Policy.profile(profile).artifacts.held_back(Label(), checked=False)
    for open_ in ("balanced", "permissive"):
        assert not Policy.profile(open_).artifacts.held_back(Label(), checked=False)


async def test_nothing_is_handed_out_above_the_ceiling(scope: Scope, sandbox: aibox.Sandbox) -> None:
    """The label is the turn's when the thing was made, compartments included."""
    policy = Policy(artifacts=ArtifactRules(ceiling=Label.parse("confidential/PHI")))
    code = "open('a.txt', 'w').write('text')"
    for label, given in (("confidential/PHI", True), ("confidential/MNPI", False), ("restricted", False)):
        model = ScriptedBackend(call("python", {"code": code}), "Done.")
        agent = aibox.Agent("x", router=model, sandbox=sandbox, guardrail=aibox.Guardrail(policy))
        reply = await agent.run("Go.", scope=scope.narrow(session=""), label=label)
        assert (reply.artifacts[0].data is not None) == given
        assert ("artifacts.ceiling" in reply.artifacts[0].withheld) != given


async def test_text_is_checked_as_an_answer_is(scope: Scope, sandbox: aibox.Sandbox) -> None:
    """A secret in a file is taken out or stops it, whatever the file is called, and so does one in a name."""
    code = (
        f"open('a.png', 'w').write('key: {KEY}'); open('{KEY}.txt', 'w').write('hello');"
        "open('b.csv', 'w').write('plain')"
    )
    model = ScriptedBackend(call("python", {"code": code}), "Done.")
    guardrail = aibox.Guardrail(Policy(checks={"secrets": {"output": ((0, Decision.REDACT),)}}))
    agent = aibox.Agent("x", router=model, sandbox=sandbox, guardrail=guardrail)
    named, poisoned, plain = (await agent.run("Go.", scope=scope)).artifacts
    assert (named.name, named.data) == ("file.txt", b"hello")
    assert poisoned.media_type == "text/plain"
    assert poisoned.data is not None
    assert KEY.encode() not in poisoned.data
    assert poisoned.sha256 == hashlib.sha256(poisoned.data).hexdigest()
    assert plain.data == b"plain"

    blocking = aibox.Guardrail(Policy(checks={"secrets": {"output": ((0, Decision.BLOCK),)}}))
    model = ScriptedBackend(call("python", {"code": code}), "Done.")
    agent = aibox.Agent("x", router=model, sandbox=sandbox, guardrail=blocking)
    reply = await agent.run("Go.", scope=scope.narrow(session="other"))
    assert [one.data is None for one in reply.artifacts] == [False, True, False]


async def test_why_a_file_stayed_inside_says_no_name_that_a_check_took_out(
    scope: Scope, sandbox: aibox.Sandbox
) -> None:
    """A file whose name cannot be said, and so not be read, has a secret in it: neither person nor model is told."""
    code = f"open(b'\\xff {KEY}.txt', 'w').write('x')"
    model = ScriptedBackend(call("python", {"code": code}), "Done.")
    guardrail = aibox.Guardrail(Policy.profile("balanced"))
    (made,) = (
        await aibox.Agent("x", router=model, sandbox=sandbox, guardrail=guardrail).run("Go.", scope=scope)
    ).artifacts
    assert (made.name, made.data) == ("file.txt", None)
    assert made.withheld
    told = [message for message in model.requests[1].messages if message["role"] == "tool"]
    assert made.withheld in str(told)
    assert KEY not in str(made) + str(told)


async def test_what_checks_do_not_read_is_unchecked(scope: Scope, sandbox: aibox.Sandbox) -> None:
    """Too long a text and bytes that are none are no way round the checks: the policy decides on them as on images."""
    code = "open('long.txt', 'w').write('x' * 300_000); open('nul.txt', 'wb').write(b'text' + bytes(1))"
    policy = Policy(artifacts=ArtifactRules(unchecked=Decision.BLOCK))
    model = ScriptedBackend(call("python", {"code": code}), "Done.")
    agent = aibox.Agent("x", router=model, sandbox=sandbox, guardrail=aibox.Guardrail(policy))
    made = (await agent.run("Go.", scope=scope)).artifacts
    assert [(one.name, one.checked, one.data) for one in made] == [("long.txt", False, None), ("nul.txt", False, None)]


async def test_sizes_and_counts_are_bounded(scope: Scope, sandbox: aibox.Sandbox) -> None:
    """A flood of files is cut, a large one is named only, and the model is told both."""
    code = "for n in range(40): open(f'{n:02}', 'w').write('x')\nopen('00', 'wb').truncate(5 << 20)"
    model = ScriptedBackend(call("python", {"code": code}), "Done.")
    reply = await aibox.Agent("x", router=model, sandbox=sandbox).run("Go.", scope=scope)
    assert len(reply.artifacts) == MAX_A_CALL
    assert reply.artifacts[0].data is None
    assert "larger than" in reply.artifacts[0].withheld
    assert all(one.data == b"x" for one in reply.artifacts[1:])
    assert "more than 16 files" in reply.tool_calls[0].text


async def test_links_and_odd_names_lead_nowhere(scope: Scope, sandbox: aibox.Sandbox, tmp_path: Path) -> None:
    """A link is no artifact, a name is cut to what is safe to show, and saving stays in the folder."""
    code = "import os; os.symlink('/etc/passwd', 'p'); os.mkdir('d'); open('d/a\\x1b[31m\\u202e.txt', 'w').write('x')"
    model = ScriptedBackend(call("python", {"code": code}), "Done.")
    reply = await aibox.Agent("x", router=model, sandbox=sandbox).run("Go.", scope=scope)
    (odd,) = reply.artifacts
    assert odd.name == "d/a__31m_.txt"
    first, second = odd.save(tmp_path), odd.save(tmp_path)
    assert (first.name, second.name) == ("a__31m_.txt", "a__31m_-1.txt")
    assert {path.parent for path in (first, second)} == {tmp_path}


@pytest.mark.parametrize("name", [".profile", "d/.bash_login", "..", "-rf", ".envrc"])
def test_a_saved_file_is_neither_hidden_nor_an_option(name: str, tmp_path: Path) -> None:
    """Wherever it is saved, no shell runs it by its name, no listing hides it, no `*` makes it an option."""
    made = ArtifactMade(
        name=name, media_type="text/plain", size=1, sha256="", label=Label(), tool="bash", call_id="", checked=True,
        data=b"x",
    )  # fmt: skip
    assert made.save(tmp_path).name == f"_{name.rpartition('/')[2]}"
    assert [path.parent for path in tmp_path.rglob("*")] == [tmp_path]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.png", b"<script>", "text/plain"),
        ("a.html", b"<b>", "text/html"),
        ("a.svg", b"<svg/>", "image/svg+xml"),
        ("a.csv", b"\xff\xfe\x00", "application/octet-stream"),
        ("a.png", b"\xff\xfe\x00", "application/octet-stream"),
        ("a.txt", PNG, "image/png"),
        ("a.zip", b"PK\x03\x04\xff", "application/zip"),
        ("noname", b"x", "text/plain"),
    ],
)
def test_a_name_does_not_make_a_type(name: str, data: bytes, told: str) -> None:
    """What is in a file decides whether it is text or an image; its name only says which text."""
    assert media_type_of(name, data) == told


async def test_a_subagents_artifacts_reach_the_person(scope: Scope, sandbox: aibox.Sandbox, tmp_path: Path) -> None:
    """As its events, and on the reply of the turn; its usage counts to the whole."""
    file = tmp_path / "drawer.md"
    file.write_text("---\nname: drawer\ndescription: Draws.\ntools: [python]\n---\nDraw.\n")
    asked = call("delegate", {"description": "d", "subagent_type": "drawer", "prompt": "Draw."})
    model = ScriptedBackend(asked, call("python", {"code": DRAW}), "Drawn.", "There it is.")
    agent = aibox.Agent("x", router=model, sandbox=sandbox, subagents=[file])
    events = await events_of(agent, scope=scope)
    inner = [event.event for event in events if isinstance(event, Subagent)]
    reply = events[-1]
    assert isinstance(reply, Reply)
    assert [one.name for one in made_in(inner)] == ["chart.png"]
    assert [one.name for one in reply.artifacts] == ["chart.png"]
    totals = [e.total for e in (*inner, *events) if isinstance(e, UsageReported)]
    assert max(total.input_tokens for total in totals) == reply.usage.input_tokens


async def test_each_model_call_reports_its_usage(scope: Scope) -> None:
    """Tokens in and out, cached, for reasoning, and cost: of the call and of the turn until then."""

    class Priced(ScriptedBackend):
        def _completion(self, request: Any, answer: Any) -> Any:
            completion = super()._completion(request, answer)
            completion.body["usage"] |= {
                "cost": 0.25,
                "prompt_tokens_details": {"cached_tokens": 2},
                "completion_tokens_details": {"reasoning_tokens": 1},
            }
            return completion

    @aibox.tool
    def step() -> str:
        """Step."""
        return "stepped"

    agent = aibox.Agent("x", router=Priced(call("step", {}), "Done."), tools=[step])
    events = await events_of(agent, scope=scope)
    first, second = (event for event in events if isinstance(event, UsageReported))
    assert (first.usage.cached_tokens, first.usage.reasoning_tokens, first.usage.cost_usd) == (2, 1, 0.25)
    assert first.total == first.usage
    assert first.model
    assert first.backend
    assert second.total == first.usage + second.usage
    reply = events[-1]
    assert isinstance(reply, Reply)
    assert second.total == reply.usage
