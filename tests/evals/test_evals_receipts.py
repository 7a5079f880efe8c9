"""Turns of yesterday as cases, replays, and the commands for both: consent, scrubbing, evidence, exit codes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import aibox
from aibox.errors import ConfigError, IntegrityError
from aibox.evals.case import Dataset
from aibox.evals.held import HeldTurns, read_held
from aibox.evals.receipts import cases_from, replay
from aibox.policy.reuse import ReuseRules
from aibox.testing import ScriptedBackend, call
from aibox.testing.backend_contract import BackendContract
from aibox.types import Label, Scope

pytestmark = pytest.mark.anyio
CONSENT = aibox.Policy.profile("balanced").model_copy(update={"reuse": ReuseRules(evals=True)})


@aibox.tool
def owed(customer: str) -> float:
    """Open invoices of a customer, in EUR."""
    return 1240.5


def books(
    model: Any, chain: aibox.AuditChain | None, *, instructions: str = "You keep the books.", **options: Any
) -> aibox.Agent:
    return aibox.Agent(
        instructions, router=model, tools=[owed], guardrail=aibox.Guardrail(CONSENT), audit=chain, **options
    )


@pytest.fixture
async def turn(chain: aibox.AuditChain, tmp_path: Path, scope: Scope) -> aibox.Receipt:
    """A turn with a tool and an e-mail address, whose words are held."""
    model = ScriptedBackend(call("owed", {"customer": "acme"}), "Acme owes 1240.50 EUR.")
    held = HeldTurns(model, tmp_path / "held.jsonl", policy=CONSENT)
    reply = await books(held, chain).run("What does Acme owe? Tell eva.meyer@example.org.", scope=scope)
    assert reply.receipt is not None
    return reply.receipt


def test_nothing_is_kept_unless_every_policy_says_so(tmp_path: Path) -> None:
    """A join with a policy that is silent about it takes the consent away."""
    for policy in (aibox.Policy(), CONSENT & aibox.Policy()):
        with pytest.raises(ConfigError, match="does not let turns be kept"):
            HeldTurns(ScriptedBackend(), tmp_path / "h", policy=policy)
    HeldTurns(ScriptedBackend(), tmp_path / "h", policy=CONSENT & CONSENT)


async def test_what_is_kept_is_scrubbed_and_private(turn: aibox.Receipt, tmp_path: Path) -> None:
    """No address and no user name lies in the file, and nobody else may read it."""
    path = tmp_path / "held.jsonl"
    assert "eva" not in path.read_text("utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(read_held(path)) == 2


async def test_a_turn_becomes_a_case(turn: aibox.Receipt, tmp_path: Path) -> None:
    """Question, answer and tools of then; the receipt names the turn."""
    dataset, left_out = cases_from([turn], read_held(tmp_path / "held.jsonl"), policy=CONSENT)
    case = dataset[0]
    assert not left_out
    assert case.input.startswith("What does Acme owe? Tell ⟪")
    assert (case.expected, case.tools, case.id) == ("Acme owes 1240.50 EUR.", ("owed",), f"turn-{turn.turn}")
    dataset.save(tmp_path / "cases.jsonl")
    assert Dataset.load(tmp_path / "cases.jsonl") == dataset


async def test_streamed_turns_are_held_too(chain: aibox.AuditChain, tmp_path: Path, scope: Scope) -> None:
    """How an answer was delivered does not decide whether its words are found again."""
    held = HeldTurns(ScriptedBackend("Hello there."), tmp_path / "h.jsonl", policy=CONSENT)
    reply = [event async for event in books(held, chain).stream("Hi", scope=scope)][-1]
    assert isinstance(reply, aibox.Reply)
    assert reply.receipt is not None
    assert cases_from([reply.receipt], read_held(held.path), policy=CONSENT)[0][0].expected == "Hello there."


async def test_what_makes_no_case_is_told(
    turn: aibox.Receipt, chain: aibox.AuditChain, tmp_path: Path, scope: Scope
) -> None:
    """Turns of another period, above the ceiling, without words or without an answer are named with the reason."""
    held = read_held(tmp_path / "held.jsonl")
    other = await books(ScriptedBackend("x"), chain).run("Another question", scope=scope)
    assert other.receipt is not None
    low = CONSENT.model_copy(update={"reuse": ReuseRules(evals=True, ceiling=Label.parse("public"))})
    late = turn.entries[-1].ts_us + 1
    _, left_out = cases_from([other.receipt, turn], held, policy=CONSENT)
    assert left_out == [f"turn {other.receipt.turn}: 1 of its 1 model calls are not held"]
    with pytest.raises(ConfigError, match="it is internal, and public may be kept"):
        cases_from([turn], held, policy=low)
    with pytest.raises(ConfigError, match="not of this period"):
        cases_from([turn], held, policy=CONSENT, since_us=late)
    with pytest.raises(ConfigError, match="does not let"):
        cases_from([turn], held, policy=aibox.Policy())


async def test_a_receipt_that_does_not_hold_is_no_case(turn: aibox.Receipt, tmp_path: Path) -> None:
    """Evidence that was changed stops the making of cases."""
    from dataclasses import replace

    with pytest.raises(IntegrityError):
        cases_from([replace(turn, entries=turn.entries[1:])], read_held(tmp_path / "held.jsonl"), policy=CONSENT)


async def test_a_label_above_the_ceiling_is_not_kept(tmp_path: Path, scope: Scope) -> None:
    """What the policy's ceiling does not cover never reaches the file."""
    held = HeldTurns(ScriptedBackend("ok", "ok"), tmp_path / "h.jsonl", policy=CONSENT)
    agent = books(held, None)
    await agent.run("A secret", scope=scope, label="confidential")
    assert not held.path.exists()
    await agent.run("No secret", scope=scope)
    assert "No secret" in held.path.read_text()


async def test_what_is_kept_can_be_erased(tmp_path: Path, scope: Scope, other_scope: Scope) -> None:
    """The calls of one user, or of a tenant, go; those of others stay."""
    held = HeldTurns(ScriptedBackend(*["ok"] * 3), tmp_path / "h.jsonl", policy=CONSENT)
    bob = Scope(tenant=scope.tenant, user="bob")
    for number, who in enumerate((scope, bob, other_scope)):
        await books(held, None).run(f"Question {number}", scope=who)
    assert await held.erase(scope=scope, subject="bob") == 1
    assert await held.erase(scope=scope) == 1
    text = held.path.read_text()
    assert ("Question 2" in text, "Question 1" in text, "Question 0" in text) == (True, False, False)
    assert stat.S_IMODE(held.path.stat().st_mode) == 0o600


async def test_a_full_disk_costs_the_copy_and_not_the_turn(
    tmp_path: Path, scope: Scope, caplog: pytest.LogCaptureFixture
) -> None:
    """Keeping is comfort: the answer is given, the loss is counted and logged."""
    held = HeldTurns(ScriptedBackend("ok"), tmp_path, policy=CONSENT)  # a folder cannot be appended to
    assert (await books(held, None).run("Hi", scope=scope)).text == "ok"
    assert held.lost == 1
    assert "could not be kept" in caplog.text


async def test_a_replay_says_what_changed(turn: aibox.Receipt, chain: aibox.AuditChain, tmp_path: Path) -> None:
    """The same agent gives the same; another prompt, answer and tool are each named, with a diff of the words."""
    held = read_held(tmp_path / "held.jsonl")
    same = ScriptedBackend(call("owed", {"customer": "acme"}), "Acme owes 1240.50 EUR.")
    again = await replay(turn, held, books(same, chain), policy=CONSENT)
    # The question has a name where the address stood: there is nothing left to redact.
    assert set(again.changes) <= {"what the guardrail decided: redact, now none"}
    other = await replay(
        turn, held, books(ScriptedBackend("I do not know."), chain, instructions="Guess."), policy=CONSENT
    )
    assert "the prompt" in other.changes
    assert "the tools: owed, now none" in other.changes
    assert "+I do not know." in other.diff
    failed = await replay(turn, held, books(ScriptedBackend(aibox.BackendError("gone")), chain), policy=CONSENT)
    assert any(change.startswith("it failed: gone") for change in failed.changes)
    with pytest.raises(ConfigError, match="not held"):
        await replay(turn, {}, books(same, chain), policy=CONSENT)


class TestHeldTurnsAreABackend(BackendContract):
    """Whoever holds one holds a Backend."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> HeldTurns:
        model = ScriptedBackend(*[lambda _: "One two three four five six seven."] * 40)
        return HeldTurns(model, tmp_path / "h.jsonl", policy=CONSENT)


AGENT = """
import aibox
from aibox.testing import ScriptedBackend

def make(box, wrong=()):
    def answer(request):
        n = int(request.messages[-1]["content"].split()[2])
        return f"The sum is {2 * n + (n in wrong)}."
    return box.agent("Add.", router=ScriptedBackend(*[answer] * 99), memory=None)

def worse(box):
    return make(box, wrong=range(1, 9))
"""


def command(folder: Path, *arguments: str) -> tuple[int, str]:
    env = {**os.environ, "COLUMNS": "200", "AIBOX_SOVEREIGN": "strict"}
    done = subprocess.run(
        [sys.executable, "-m", "aibox", *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_the_commands_as_a_person_uses_them(tmp_path: Path) -> None:
    """Run, compare, verify: each says what it did in a line, and its exit code says whether it was good."""
    (tmp_path / "mine.py").write_text(AGENT)
    rows = [{"id": f"c{n}", "input": f"What is {n} plus {n}?", "expected": 2 * n} for n in range(1, 9)]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ("evals", "run", "cases.jsonl", "--scorer", "numeric", "--repeats", "2")
    code, said = command(tmp_path, *base, "--agent", "mine:make", "--min-pass", "0.8", "--report", "good")
    assert (code, "16/16" in said, "passed" in said) == (0, True, True)
    code, said = command(tmp_path, *base, "--agent", "mine:worse", "--report", "bad", "--against", "good/report.json")
    assert code == 1
    assert "lost: c1" in said
    assert "worse" in said
    home = Path(os.environ["AIBOX_HOME"])
    code, said = command(
        tmp_path,
        "evals",
        "verify",
        "good/report.json",
        "--log",
        str(home / "audit.db"),
        "--key",
        str(home / "keys" / "log.pub"),
    )
    assert (code, "16 runs found in the log" in said) == (0, True)
    (tmp_path / "bad" / "report.json").write_text(
        (tmp_path / "bad" / "report.json").read_text().replace('"passed": false', '"passed": true', 1)
    )
    code, said = command(tmp_path, "evals", "verify", "bad/report.json")
    assert (code, "does not hold" in said) == (1, True)
    code, said = command(tmp_path, *base[:3], "--scorer", "nonsense", "--agent", "mine:make")
    assert (code, "one of exact" in said) == (2, True)


BOOKS = """
import aibox
from aibox.testing import ScriptedBackend, call

@aibox.tool
def owed(customer: str) -> float:
    "Open invoices of a customer, in EUR."
    return 1240.5

def same(box):
    model = ScriptedBackend(call("owed", {"customer": "acme"}), "Acme owes 1240.50 EUR.")
    return box.agent("You keep the books.", router=model, tools=[owed], memory=None)

def forgetful(box):
    return box.agent("You keep the books.", router=ScriptedBackend("I do not know."), tools=[owed], memory=None)
"""


async def test_yesterdays_turns_on_the_command_line(chain: aibox.AuditChain, tmp_path: Path, scope: Scope) -> None:
    """Receipts become cases where the policy consents; a replay exits 0 for the same answer, 1 with a difference."""
    (tmp_path / "consent.toml").write_text("[reuse]\nevals = true\n")
    policy = aibox.Policy.load(tmp_path / "consent.toml")
    model = ScriptedBackend(call("owed", {"customer": "acme"}), "Acme owes 1240.50 EUR.")
    held = HeldTurns(model, tmp_path / "held.jsonl", policy=policy)
    guardrail = aibox.Guardrail(policy)
    agent = aibox.Agent("You keep the books.", router=held, tools=[owed], guardrail=guardrail, audit=chain)
    reply = await agent.run("What does Acme owe?", scope=scope)
    assert reply.receipt is not None
    (tmp_path / "receipts").mkdir()
    reply.receipt.save(tmp_path / "receipts" / "monday.json")
    (tmp_path / "mine.py").write_text(BOOKS)
    made = ("evals", "from-receipts", "receipts", "--held", "held.jsonl", "--out", "cases.jsonl")
    code, said = command(tmp_path, *made)
    assert (code, "does not let" in said, (tmp_path / "cases.jsonl").exists()) == (2, True, False)
    assert command(tmp_path, *made, "--policy", "consent.toml")[0] == 2, "the configured policy has a say, too"
    (tmp_path / "aibox.toml").write_text('policy = "consent.toml"\n')
    code, said = command(tmp_path, *made)
    assert (code, "1 cases in cases.jsonl" in said) == (0, True), said
    assert Dataset.load(tmp_path / "cases.jsonl")[0].expected == "Acme owes 1240.50 EUR."
    again = ("replay", "receipts/monday.json", "--held", "held.jsonl", "--agent")
    code, said = command(tmp_path, *again, "mine:same")
    assert code == 0, said
    code, said = command(tmp_path, *again, "mine:forgetful")
    assert (code, "+I do not know." in said) == (1, True), said


def test_two_reports_are_compared_on_the_command_line(tmp_path: Path) -> None:
    """The cases that were lost are named, and the exit code is 1 when the new report is worse."""
    (tmp_path / "mine.py").write_text(AGENT)
    rows = [{"id": f"c{n}", "input": f"What is {n} plus {n}?", "expected": 2 * n} for n in range(1, 9)]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for made, report in (("mine:make", "old"), ("mine:worse", "new")):
        run = ("evals", "run", "cases.jsonl", "--scorer", "numeric", "--agent", made, "--report", report)
        assert command(tmp_path, *run)[0] in (0, 1)
    reports = ("old/report.json", "new/report.json")
    code, said = command(tmp_path, "evals", "compare", *reports)
    assert (code, "lost: c1" in said, "worse" in said) == (1, True, True), said
    code, said = command(tmp_path, "evals", "compare", *reversed(reports))
    assert (code, "won: c1" in said or "gained: c1" in said) == (0, True), said
