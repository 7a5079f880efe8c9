"""Content by category: named, never more than a flag of its own accord, and with weights that are those on the card."""

from __future__ import annotations

import json
from importlib import resources

import pytest
from growth import cpu_s

from aibox.guardrails.content import CATEGORIES, Content, heads, scan
from aibox.guardrails.guardrail import Guardrail
from aibox.policy.policy import Policy
from aibox.protocols import Check
from aibox.testing.check_contract import CheckContract
from aibox.types import Decision, Scope

DESPAIR = "I hate my life. I want to kill myself tonight, and cutting myself does not help any more."


class TestContentKeepsTheContract(CheckContract):
    found = DESPAIR
    clean = "The train leaves at noon."

    @pytest.fixture
    def check(self) -> Check:
        return Content()


def test_a_category_is_named_and_spans_its_part_of_a_long_text() -> None:
    """In a long text about other things the finding names the category and spans the part that it stands in."""
    letter = "The meeting was moved to Monday, and the report is due by the end of the week. " * 60
    text = letter + DESPAIR + " " + letter
    found = {finding.rule: finding for finding in scan(text)}
    start, end = found["self-harm"].span
    assert start < text.index(DESPAIR) + 60 < end
    assert end - start < 2_000


@pytest.mark.parametrize(
    "text",
    ["How do I kill a Python process?", "Summarise the annual report.", "Wie koche ich Reis?", "Shoot me an e-mail."],
)
def test_everyday_text_has_no_category(text: str) -> None:
    """Everyday questions, also with words of violence in another sense, score below the threshold of a policy."""
    assert scan(text, floor=0.8) == ()


@pytest.mark.anyio
async def test_it_flags_and_a_policy_may_do_more(scope: Scope) -> None:
    """The check itself never refuses; a policy that says block does."""
    flags, blocks = (
        Guardrail(Policy.read({"checks": {"content": {"input": {"0.5": decision}}}})) for decision in ("flag", "block")
    )
    assert (await Content().check(DESPAIR, scope=scope)).decision == Decision.FLAG
    verdict = await flags.check(DESPAIR, scope=scope)
    assert (verdict.decision, verdict.text) == (Decision.FLAG, DESPAIR)
    assert (await blocks.check(DESPAIR, scope=scope)).blocked


def test_the_card_names_sources_categories_and_folds() -> None:
    """Every category has its rows, its area under the curve and its curve on the card, and its sources by digest."""
    card = json.loads(resources.files("aibox.guardrails").joinpath("weights", "content.json").read_text("utf-8"))
    assert tuple(card["heads"]) == CATEGORIES == tuple(head.name for head in heads())
    assert all(
        head["rows"] > 50 and 0.5 < head["auc_of_folds"] < 1 and head["curve"] for head in card["heads"].values()
    )
    assert all(len(source["sha256"]) == 64 for source in card["trained_on"].values())


@pytest.mark.parametrize("unit", ["a", "a ", "é\u0301", "kill ", "!", "\n"])
def test_time_is_linear_on_hostile_texts(unit: str) -> None:
    """Ten times as much text takes about ten times as long."""

    def seconds(size: int) -> float:
        text = (unit * (size // len(unit) + 1))[:size]
        return cpu_s(lambda: scan(text))

    seconds(1_000)
    assert seconds(200_000) < 30 * seconds(20_000) + 0.5
