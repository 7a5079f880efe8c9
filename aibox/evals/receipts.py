"""Yesterday's turns as tomorrow's tests: cases from receipts, and a turn that is run again to see what changed.

A receipt holds digests and no words; the words are in what `HeldTurns` kept. A receipt that does not verify is no case.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aibox.agents.agent import Agent
from aibox.audit.receipt import Receipt
from aibox.errors import AIBoxError, ConfigError
from aibox.evals.case import Case, Dataset
from aibox.evals.held import Held, require_consent
from aibox.evals.run import Run, run
from aibox.evals.scrub import Names
from aibox.evals.subject import subject_of
from aibox.policy.policy import Policy
from aibox.types import Label, Scope


class NotHeldError(ConfigError):
    """A turn cannot become a case or be run again; the message says why."""

    code = "config.not_held"


def cases_from(
    receipts: Iterable[Receipt],
    held: Held,
    *,
    policy: Policy,
    since_us: int = 0,
    until_us: int = 2**62,
    key: str | None = None,
) -> tuple[Dataset, list[str]]:
    """Cases from the turns of a period, and a line for each turn that gave none, with the reason.

    The answer of then is what is expected, the tools of then are those of the case. Raises ConfigError where the policy
    does not consent or nothing is left, IntegrityError for a receipt that does not hold: evidence is not sorted out in
    silence. `key` pins the log's public key.
    """
    require_consent(policy)
    cases: dict[str, Case] = {}
    left_out = []
    for receipt in receipts:
        receipt.verify(key)
        if not since_us <= receipt.entries[-1].ts_us < until_us:
            left_out.append(f"turn {receipt.turn}: not of this period")
            continue
        try:
            case = case_from(receipt, held, ceiling=policy.reuse.ceiling)
        except NotHeldError as error:
            left_out.append(error.message)
            continue
        cases[case.id] = case
    if not cases:
        raise NotHeldError("no turn gave a case", hint="; ".join(left_out[:3]) or "give receipts")
    return Dataset.of(list(cases.values()), name="receipts"), left_out


def case_from(receipt: Receipt, held: Held, *, ceiling: Label) -> Case:
    """The case that one turn is. Raises NotHeldError."""
    details = [(entry.kind, entry.detail) for entry in receipt.entries]
    ended = receipt.entries[-1].detail
    if receipt.entries[-1].kind != "turn.sealed" or ended.get("outcome") != "answered":
        raise NotHeldError(f"turn {receipt.turn}: it was not answered")
    if not Label.parse(str(ended["label"])) <= ceiling:
        raise NotHeldError(f"turn {receipt.turn}: it is {ended['label']}, and {ceiling} may be kept")
    digests = _digests(receipt)
    calls = [held[digest] for digest in digests if digest in held]
    if not digests or len(calls) != len(digests):
        raise NotHeldError(
            f"turn {receipt.turn}: {len(digests) - len(calls)} of its {len(digests)} model calls are not held"
        )
    talk = [message for message in calls[0].request["messages"] if message["role"] in ("user", "assistant")]
    if not talk or talk[-1]["role"] != "user" or not all(isinstance(message.get("content"), str) for message in talk):
        raise NotHeldError(f"turn {receipt.turn}: its first call does not end with a user's text")
    started = next((detail for kind, detail in details if kind == "turn.started"), {})
    return Case(
        id=f"turn-{receipt.turn}",
        input=talk[-1]["content"],
        expected=calls[-1].message.get("content") or "",
        tools=tuple(str(d["tool"]) for kind, d in details if kind == "tool.called" and d.get("decision") == "allowed"),
        history=tuple({"role": message["role"], "content": message["content"]} for message in talk[:-1]),
        label=str(started["label"]) if "label" in started else None,
        source=f"turn {receipt.turn} of {receipt.tenant}",
    )


@dataclass(frozen=True, slots=True)
class Replayed:
    """A turn of then and the same question now. `changes` names what is different; the words are in `diff`."""

    case: Case
    run: Run
    changes: tuple[str, ...]
    diff: str

    @property
    def same(self) -> bool:
        return not self.changes

    def __str__(self) -> str:
        if self.same:
            return f"{self.case.source}: the same"
        return "\n".join([f"{self.case.source}:", *(f"  {change}" for change in self.changes), self.diff]).rstrip()

    def _repr_markdown_(self) -> str:
        return f"```diff\n{self}\n```"


async def replay(
    receipt: Receipt,
    held: Held,
    agent: Agent,
    *,
    policy: Policy,
    scope: Scope | None = None,
    key: str | None = None,
) -> Replayed:
    """Run a turn again, with this agent, and compare: answer, tools, label, policy, model, what was decided.

    The question is the scrubbed one, so that names stand where personal data stood. Tools run for real: give an agent
    whose tools may. Raises NotHeldError where the words are no longer held, ConfigError without the policy's consent.
    """
    require_consent(policy)
    receipt.verify(key)
    case = case_from(receipt, held, ceiling=policy.reuse.ceiling)
    history = [dict(message) for message in case.history] or None
    scope = scope or Scope.local()
    now = await run(agent, case.input, scope=scope, audit=agent.parts.audit, label=case.label, history=history)
    changes = list(_changes(receipt, held, case, now, agent))
    text = Names().hide(_text(now))
    diff = "\n".join(difflib.unified_diff(str(case.expected).split("\n"), text.split("\n"), "then", "now", lineterm=""))
    if text != case.expected:
        changes.append("the answer")
    return Replayed(case, now, tuple(changes), diff)


def _changes(receipt: Receipt, held: Held, case: Case, now: Run, agent: Agent) -> Iterable[str]:
    details = [(entry.kind, entry.detail) for entry in receipt.entries]

    def then(kind: str, name: str) -> list[Any]:
        return [detail.get(name) for k, detail in details if k == kind]

    first = held[_digests(receipt)[0]]
    prompt = "\n".join(str(m.get("content")) for m in first.request["messages"] if m["role"] == "system")
    if Names().hide(agent.parts.instructions) not in prompt:
        yield "the prompt"
    policy = agent.parts.policy.digest
    if policy not in then("turn.started", "policy"):
        yield f"the policy: {then('turn.started', 'policy')[0]}, now {policy}"
    if now.error is not None:
        yield f"it failed: {now.error}"
        return
    for what, old, new in (
        ("the tools", case.tools or (), tuple(call.name for call in now.calls if call.began)),
        ("the label", str(receipt.entries[-1].detail["label"]), str(now.label)),
        ("the model", _last(then("model.answered", "model")), now.reply.model),
        (
            "what the guardrail decided",
            tuple(then("guardrail.decided", "decision")),
            tuple(str(v.decision) for v in now.verdicts),
        ),
    ):
        if old != new:
            yield f"{what}: {_shown(old)}, now {_shown(new)}"
    answered = {(d["model"], d["weights_sha256"]) for k, d in details if k == "model.answered" and d["weights_sha256"]}
    weights = {(model, sha256) for model, _, sha256 in subject_of(agent, now.entries).weights if sha256}
    if answered and weights and answered != weights:
        yield "the weights"


def _digests(receipt: Receipt) -> list[tuple[str, str]]:
    """Request and answer of each model call of the turn, as the chain recorded them."""
    called = [str(entry.detail.get("sha256", "")) for entry in receipt.entries if entry.kind == "model.called"]
    answered = [str(e.detail.get("answer_sha256", "")) for e in receipt.entries if e.kind == "model.answered"]
    if not all((*called, *answered)):
        raise NotHeldError(
            f"turn {receipt.turn}: its receipt was narrowed, and no longer says which calls were its own"
        )
    return list(zip(called, answered, strict=False))


def _text(now: Run) -> str:
    try:
        return now.text
    except (AssertionError, AIBoxError):
        return ""


def _last(values: list[Any]) -> Any:
    return values[-1] if values else ""


def _shown(value: Any) -> str:
    return (" ".join(value) if isinstance(value, tuple) else str(value)) or "none"
