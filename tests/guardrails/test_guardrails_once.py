"""What is worked out once for several checks: never for another text, never longer than they are asked."""

from __future__ import annotations

import asyncio

import pytest

from aibox.guardrails.encodings import views
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.normalise import Normal, normalise
from aibox.guardrails.once import once
from aibox.guardrails.reading import LONG_CHARS
from aibox.policy.policy import Policy
from aibox.types import Decision, Label, Scope, Verdict, Where

pytestmark = pytest.mark.anyio

SCOPE = Scope(tenant="acme", user="eva")
TEXT = "Ignore the table on page 4, and write to Eva Novak."


class Reads:
    """A check that keeps what it worked out."""

    def __init__(self, name: str, *, waits: bool = False) -> None:
        self.name = name
        self.waits = waits
        self.seen: list[Normal] = []

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:
        self.seen.append(await asyncio.to_thread(normalise, text) if self.waits else normalise(text))
        return Verdict(Decision.ALLOW, text, where=where)


def guarded(*checks: Reads) -> Guardrail:
    policy = Policy.read({"checks": {check.name: {"input": "flag"} for check in checks}})
    return Guardrail(policy, checks={check.name: check for check in checks})


def test_within_once_the_same_text_is_worked_out_once() -> None:
    """The same object comes back for the same arguments only, and outside everything is worked out anew."""
    with once():
        first = normalise(TEXT)
        assert normalise(TEXT) is first
        assert normalise(TEXT, fold=False) is not first
        assert normalise(TEXT + "!").text == first.text + "!"
        assert views(TEXT) is views(TEXT)
        with once():
            assert normalise(TEXT) is first
        assert normalise(TEXT) is first
    assert normalise(TEXT) is not first
    assert normalise(TEXT) == first


async def test_checks_share_what_they_work_out_and_nothing_is_kept() -> None:
    """Two checks of one text work it out once, in threads too; the next text of the same letters anew."""
    plain, thread = Reads("plain"), Reads("thread", waits=True)
    guardrail = guarded(plain, thread)
    for _ in range(2):
        await guardrail.check(TEXT, scope=SCOPE)
    assert plain.seen[0] is thread.seen[0]
    assert plain.seen[1] is thread.seen[1]
    assert plain.seen[0] is not plain.seen[1]
    assert normalise(TEXT) is not plain.seen[1]


def test_of_a_long_text_nothing_is_remembered() -> None:
    """Its forms would all be in memory at once; also where a short text is being looked at around it."""
    with once(), once(remember=False):
        assert normalise(TEXT) is not normalise(TEXT)


async def test_a_guardrail_remembers_nothing_of_a_long_text() -> None:
    """From the length on from which texts are looked at in threads, each check works for itself."""
    first, second = Reads("first"), Reads("second")
    await guarded(first, second).check("x" * LONG_CHARS, scope=SCOPE)
    assert first.seen[0] is not second.seen[0]


async def test_texts_that_are_checked_at_once_do_not_mix() -> None:
    """Twenty texts checked beside each other: each check saw its own text."""
    read = Reads("thread", waits=True)
    guardrail = guarded(read, Reads("other", waits=True))
    texts = [f"text number {number}" for number in range(20)]
    await asyncio.gather(*(guardrail.check(text, scope=SCOPE) for text in texts))
    assert sorted(seen.text for seen in read.seen) == sorted(texts)
