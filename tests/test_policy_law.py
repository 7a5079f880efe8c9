"""The law of joins over as many random cases as are asked for: `make test-laws` asks for a million.

`AIBOX_TEST_LAWS=all` is a million, `AIBOX_TEST_SEED` another million; a failure prints seed and case.
"""

from __future__ import annotations

import functools
import os
import random
from typing import Any, TypeVar

import pytest

from aibox.policy.policy import Policy
from aibox.policy.texts import SPOTLIGHTS
from aibox.types import PLACES, Decision, Label

SEED = int(os.environ.get("AIBOX_TEST_SEED", "1"))
PARTS = 4
CASES = 250_000 if os.environ.get("AIBOX_TEST_LAWS") == "all" else 250
KNOWN = 2_000
"""So many different policies take part, in random company."""
T = TypeVar("T")

CHECKS = ("pii", "jailbreak", "injection")
TOOLS = ("search", "send", "read")
MODELS = ("outside/a", "outside/b")
KINDS = ("*", "tool", "tool.called", "model.called")
LABELS = ("public", "internal", "confidential/PHI", "restricted/MNPI", "restricted/PHI,MNPI")


def policy(chance: random.Random) -> Policy:
    """A random one. Any part may be silent, because what silence means is where a join could relax."""

    def some(names: tuple[str, ...]) -> list[str]:
        return chance.sample(names, chance.randint(0, len(names)))

    def ladder() -> dict[str, str]:
        return {str(chance.choice([0, 0.25, 0.5, 0.9, 1])): str(chance.choice(list(Decision))) for _ in range(2)}

    def number(least: int = 1) -> int:
        return chance.randint(least, 9)

    parts: dict[str, Any] = {
        "checks": {check: {where: ladder() for where in some(PLACES)} for check in some(CHECKS)},
        "on_check_failure": str(chance.choice(list(Decision))),
        "judge": {
            "places": some(PLACES),
            "from_score": number() / 10,
            "principles": some(("No word of dragons.", "No word of the moon.")),
            "decision": chance.choice(["flag", "block"]),
            "measured": {"found": (10 + number()) / 20, "false_alarms": number() / 50},
        },
        "pseudonyms": {
            "irreversible": some(("*", "CARD")),
            "unmask": some(("eva", "adam")),
            "format_preserving": some(("*", "CARD", "EMAIL")),
        },
        "spotlight": chance.choice(SPOTLIGHTS),
        "topics": {"banned": {topic: some(("buy", "sell*")) for topic in some(("money", "war"))}},
        "tokens": {"input": number(), "retrieved": number()},
        "form": {"output": {"minimum": number()}},
        "models": some(("*", *MODELS)),
        "tools": {"deny": some(TOOLS), "approve": some(TOOLS), "approve_from": chance.choice(LABELS)},
        "artifacts": {"unchecked": str(chance.choice(list(Decision))), "ceiling": chance.choice(LABELS)},
        "egress": {"models": some(("*", *MODELS)), "approve": some(MODELS), "ceiling": chance.choice(LABELS)},
        "limits": {"input_kib": number(), "turn_s": number()},
        "reuse": {"evals": chance.random() < 0.5, "ceiling": chance.choice(LABELS)},
        "retention": {"bodies_days": {kind: number() for kind in some(KINDS)}},
        "budgets": {
            "tenant": {"tokens_per_day": number(0)},
            "user": {"usd_per_month": number(0)},
            "models": {model: {"tokens_per_day": number(0)} for model in some(MODELS)},
        },
        "rates": {"user": {"requests_per_minute": number()}},
        "traces": {"content": chance.random() < 0.5},
        "sandbox": {"pids": number(), "wall_s": number()},
        "gpus": {tenant: number() for tenant in some(("acme", "rival"))},
    }
    if chance.random() < 0.5:
        parts["tools"]["allow"] = some(TOOLS)
    return Policy.read({name: part for name, part in parts.items() if chance.random() < 0.7})


def bounded(mine: float | None, joined: float | None) -> bool:
    return mine is None or (joined is not None and joined <= mine)


def of_model(one: Policy, model: str) -> int | None:
    return one.budgets.models[model].tokens_per_day if model in one.budgets.models else None


def relaxed(both: Policy, one: Policy, chance: random.Random) -> list[str]:
    """Where the join `both` is weaker than `one`, for a random event of each part."""
    check, where, tool, model = (chance.choice(names) for names in (CHECKS, PLACES, TOOLS, MODELS))
    score, tenant, user, kind = (
        chance.random(),
        chance.choice(("acme", "else")),
        chance.choice(("eva", "bob")),
        "tool.x",
    )
    marked = Label.parse(chance.choice(LABELS))
    spec, checked = f"{check} at {where} with {score}", chance.random() < 0.5
    holds = {
        spec: both.decide(check, where=where, score=score) >= one.decide(check, where=where, score=score),  # type: ignore[arg-type]
        "on_check_failure": both.on_check_failure >= one.on_check_failure,
        "judge": both.judge.grey(where, score) or not one.judge.grey(where, score),  # type: ignore[arg-type]
        "judge.principles": one.judge.told <= both.judge.told,
        "models": one.may_ask(model) or not both.may_ask(model),
        "irreversible": not both.pseudonyms.reversible("CARD") or one.pseudonyms.reversible("CARD"),
        "format_preserving": one.pseudonyms.keeps_form("CARD") or not both.pseudonyms.keeps_form("CARD"),
        "unmask": one.pseudonyms.may_unmask(user) or not both.pseudonyms.may_unmask(user),
        "spotlight": SPOTLIGHTS.index(both.spotlight) >= SPOTLIGHTS.index(one.spotlight),
        "topics": all(words <= both.topics.banned[name] for name, words in one.topics.banned.items()),
        "tokens": bounded(one.tokens.input, both.tokens.input),
        "form": one.form.output <= both.form.output,
        "tools.allow": one.tools.allows(tool) or not both.tools.allows(tool),
        "tools.approve": both.tools.needs_approval(tool) or not one.tools.needs_approval(tool),
        "tools.approve_from": both.tools.asks_under(marked) or not one.tools.asks_under(marked),
        "artifacts": bool(both.artifacts.held_back(marked, checked=checked))
        or not one.artifacts.held_back(marked, checked=checked),
        "egress.models": one.egress.allows(model) or not both.egress.allows(model),
        "egress.approve": both.egress.asks(model) or not one.egress.asks(model),
        "egress.ceiling": marked <= one.egress.ceiling or not marked <= both.egress.ceiling,
        "limits": both.limits.input_kib <= one.limits.input_kib and both.limits.turn_s <= one.limits.turn_s,
        "reuse": (one.reuse.evals or not both.reuse.evals)
        and (marked <= one.reuse.ceiling or not marked <= both.reuse.ceiling),
        "retention": bounded(one.retention.days(kind), both.retention.days(kind)),
        "budgets": bounded(one.budgets.tenant.tokens_per_day, both.budgets.tenant.tokens_per_day)
        and bounded(one.budgets.user.usd_per_month, both.budgets.user.usd_per_month),
        "budgets.models": bounded(of_model(one, model), of_model(both, model)),
        "rates": bounded(one.rates.user.requests_per_minute, both.rates.user.requests_per_minute),
        "traces": one.traces.content or not both.traces.content,
        "sandbox": both.sandbox.pids <= one.sandbox.pids and both.sandbox.wall_s <= one.sandbox.wall_s,
        "gpus": both.gpus.get(tenant, 0) <= one.gpus.get(tenant, 0),
    }
    return [name for name, held in holds.items() if not held]


@pytest.mark.parametrize("part", range(PARTS))
def test_no_random_case_relaxes_and_no_writing_of_a_join_matters(part: int) -> None:
    """Of two to four random levels the join is weaker than none, in any order, grouping and repetition the same."""
    chance = random.Random(SEED * PARTS + part)
    known = [policy(chance) for _ in range(min(CASES, KNOWN))]
    for case in range(CASES):
        levels = chance.choices(known, k=chance.randint(2, 4))
        joined = functools.reduce(Policy.__and__, levels)
        for level in levels:
            weaker = relaxed(joined, level, chance)
            assert not weaker, f"seed {SEED}, part {part}, case {case}: {weaker} of {level!r} in {joined!r}"
        again = chance.sample([*levels, chance.choice(levels)], k=len(levels) + 1)
        while len(again) > 1:  # beside each other anywhere, which is any grouping
            at = chance.randrange(len(again) - 1)
            again[at : at + 2] = [again[at] & again[at + 1]]
        assert again[0] == joined, f"seed {SEED}, part {part}, case {case}"
        # What is equal has one digest, which takes longest: of one in a hundred it is made.
        assert case % 100 or again[0].digest == joined.digest
