"""What a language model as judge adds in the grey band, weighed as if all were asked. Part of bench/guardrails.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from guard_attacks import above, direct, held_out
from report import Report, p

from aibox.errors import BackendError
from aibox.evals.judge_trial import Trial
from aibox.guardrails.constitution import Constitution
from aibox.inference import demo_model
from aibox.inference.embedded import Embedded
from aibox.types import Scope

GREY = (0.5, 0.97)
"""As in docs/guardrails.md: below, nobody is asked; above, the rules have decided."""
ASKED, ASKED_QUICK = 100, 20
"""So many texts in the band of each label are judged at most."""

Weighed = tuple[float, float]
"""A score, and how many texts it stands for."""


@dataclass(frozen=True)
class Asked:
    """A text in the band. `word`: whether the judge found fault with it, None for no answer."""

    score: float
    weight: float
    attack: bool
    word: bool | None


def measure(report: Report, folder: Path, *, model: str | None, quick: bool) -> None:
    path = demo_model.find() if model == "demo" else Path(model) if model else None
    if path is None:
        report.left_out.append("a judge: give --judge MODEL.gguf, or --judge demo where that model is installed")
        return
    asyncio.run(_measure(report, folder, path, most=ASKED_QUICK if quick else ASKED))


async def _measure(report: Report, folder: Path, path: Path, *, most: int) -> None:
    texts: dict[tuple[str, int], list[str]] = {}
    for spec, rows in held_out(folder, quick=False).values():
        if spec["role"] in ("attack", "explicit", "benign"):
            kind = "benign" if spec["role"] == "benign" else "attack"
            for row in rows:
                texts.setdefault((kind, row["label"]), []).append(row["text"])
    backend = Embedded(path)
    judge = Constitution(backend, model=(await backend.models())[0].id)
    try:
        attacks, calm = await _judged(report, judge, "attacks", texts.get(("attack", 1), []), most, attack=True)
        benign, quiet = await _judged(report, judge, "benign", texts.get(("benign", 0), []), most)
        harmless, _ = await _judged(
            report, judge, "harmless texts of the attacks' files", texts.get(("attack", 0), []), most
        )
    finally:
        await backend.close()
    asked = [*attacks, *benign, *harmless]
    # A half of what was judged says whether the judge can tell, and whether its word counts in the other half.
    halves = [Trial.of([(row.attack, row.word) for row in asked[half::2]]) for half in (0, 1)]
    counts = {id(row): halves[1 - at % 2].measured.tells for at, row in enumerate(asked)}
    whole = Trial.of([(row.attack, row.word) for row in asked])
    note = f"found {whole.measured.found:g}, false alarms {whole.measured.false_alarms:g} at their 95 % bounds"
    told = "it can" if whole.measured.tells else "it cannot, so a policy may not let it do more than flag"
    report.row(f"judge {path.stem}: can it tell, by `aibox policy judge`", told, f"{note}; {whole}")
    ways: tuple[tuple[str, Callable[[Asked], bool]], ...] = (
        ("without a judge", lambda _: False),
        ("with its word taken as it is", lambda row: row.word is True),
        ("with the judge as policies allow", lambda row: row.word is True and counts[id(row)]),
    )
    for name, raised in ways:
        limit = _threshold([*quiet, *((row.score + raised(row), row.weight) for row in benign)])
        found = [*calm, *((row.score + raised(row), row.weight) for row in attacks)]
        total = sum(weight for _, weight in found)
        got = sum(weight for score, weight in found if score > limit) / total if total else 0.0
        report.row(f"judge {path.stem}: pooled TPR at 1 % FPR, {name}", f"{got:6.1%}", f"threshold {limit:.3f}")


async def _judged(
    report: Report, judge: Constitution, name: str, texts: Sequence[str], most: int, *, attack: bool = False
) -> tuple[list[Asked], list[Weighed]]:
    """What the judge said of texts in the band, and the scores of those outside."""
    scored = [(direct(text), text) for text in texts]
    outside = [(score, 1.0) for score, _ in scored if not GREY[0] <= score < GREY[1]]
    grey = [(score, text) for score, text in scored if GREY[0] <= score < GREY[1]]
    chosen = grey[:: -(-len(grey) // most)] if grey else []
    rows: list[Asked] = []
    took = []
    for score, text in chosen:
        started = time.perf_counter()
        try:
            word: bool | None = bool((await judge.judge(text, scope=Scope.local())).principle)
        except BackendError:
            word = None
        took.append(time.perf_counter() - started)
        rows.append(Asked(score, len(grey) / len(chosen), attack, word))
    failed = sum(row.word is None for row in rows)
    note = f"{len(grey)} of {len(texts)} lie in the band, {len(chosen)} judged, {failed} without a valid answer"
    if took:
        note += f"; p50 {p(took, 50):.1f} s"
    report.row(f"judge: says that {name} break a principle", above([float(bool(r.word)) for r in rows], 0.5), note)
    return rows, outside


def _threshold(benign: Sequence[Weighed]) -> float:
    """At most 1 in 100 benign texts lies above."""
    allowed = sum(weight for _, weight in benign) / 100
    for score, weight in sorted(benign, reverse=True):
        allowed -= weight
        if allowed < 0:
            return score
    return 0.0
