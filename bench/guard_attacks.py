"""Attacks found and benign texts flagged, source by source; ours beside others. Part of bench/guardrails.py."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import guard_meaning
import guard_peers
from report import Report, p

from aibox.errors import MissingExtraError
from aibox.guardrails import heads, injection, jailbreak
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.normalise import normalise
from aibox.policy.policy import Policy
from aibox.types import Scope

Sources = dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]


def direct(text: str) -> float:
    """Rules and the head together, as one score of a user's text."""
    found = (*jailbreak.scan(text), *injection.scan(text, floor=0))
    return max((finding.score for finding in found), default=0.0)


def rules(text: str) -> float:
    return max((finding.score for finding in jailbreak.scan(text)), default=0.0)


def trained(text: str) -> float:
    """The head alone, on the text as it stands."""
    direct = heads.head("direct")
    return max((direct.calibrated(margin) for _, _, margin in direct.margins(normalise(text).text)), default=0.0)


def document(text: str) -> float:
    found = (*jailbreak.scan(text, sentences=True), *injection.scan(text, foreign=True, floor=0))
    return max((finding.score for finding in found), default=0.0)


def above(scores: list[float], threshold: float) -> str:
    """The share above a threshold with its 95 % interval (Wilson)."""
    n, hits = len(scores), sum(score > threshold for score in scores)
    if not n:
        return "no rows"
    z, share = 1.96, hits / n
    middle, wide = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (middle - wide) / (1 + z * z / n), (middle + wide) / (1 + z * z / n)
    return f"{share:6.1%} ({max(0.0, low):.0%} to {high:.0%}, n={n})"


def share(scores: list[float], threshold: float) -> float | None:
    return sum(score > threshold for score in scores) / len(scores) if scores else None


def auc(positive: list[float], negative: list[float]) -> float | None:
    """The chance that an attack scores above a benign text; ties count half."""
    if not positive or not negative:
        return None
    ranked = sorted([(score, 1) for score in positive] + [(score, 0) for score in negative])
    total, at = 0.0, 0
    while at < len(ranked):
        end = at
        while end < len(ranked) and ranked[end][0] == ranked[at][0]:
            end += 1
        total += sum(label for _, label in ranked[at:end]) * (at + end + 1) / 2
        at = end
    n = len(positive)
    return (total - n * (n + 1) / 2) / (n * len(negative))


def threshold_of(benign: list[float]) -> float:
    """At most 1 in 100 benign texts lies above."""
    ranked = sorted(benign, reverse=True)
    return ranked[len(ranked) // 100] if ranked else 1.0


def drawn_again(benign: list[float], attacks: list[float], draws: int = 1000) -> str:
    """The 95 % interval of the share found, with both the attacks and the texts that set the threshold drawn again.

    Wilson's interval takes the threshold as given; of a hundred and some benign texts it is the second highest score.
    """
    if not benign or not attacks:
        return "no rows"
    chance = random.Random(0)
    shares = sorted(
        share(chance.choices(attacks, k=len(attacks)), threshold_of(chance.choices(benign, k=len(benign)))) or 0.0
        for _ in range(draws)
    )
    return f"{shares[draws // 40]:.0%} to {shares[-draws // 40]:.0%}"


def read(folder: Path) -> Sources:
    files = tomllib.loads((folder / "sources.toml").read_text("utf-8"))["files"]
    return {
        name: (spec, [json.loads(line) for line in (folder / name).read_text("utf-8").split("\n") if line.strip()])
        for name, spec in sorted(files.items())
        if (folder / name).is_file()
    }


def asked(name: str, texts: list[str]) -> guard_peers.Answers:
    """What a detector says to each text, ours or another's."""
    if name not in OURS:
        return guard_peers.ask(name, texts)
    scores, took = [], []
    for text in texts:
        started = time.perf_counter()
        scores.append(OURS[name](text))
        took.append((time.perf_counter() - started) * 1e3)
    return guard_peers.Answers(scores, took)


def with_meaning(text: str) -> float:
    """What `direct` says, and the check `meaning` beside it: whichever is surer."""
    return max(direct(text), guard_meaning.meant(text))


WITH_MEANING = "with meaning"
OURS = {
    "ours": direct,
    "rules alone": rules,
    "head alone": trained,
    WITH_MEANING: with_meaning,
    "meaning alone": guard_meaning.meant,
}


def held_out(folder: Path, *, quick: bool) -> Sources:
    """The files that nothing was trained on; of each some 400 rows where it is to be quick."""
    sources = {name: pair for name, pair in read(folder).items() if not pair[0]["train"]}
    if not quick:
        return sources
    return {name: (spec, rows[:: max(1, len(rows) // 400)]) for name, (spec, rows) in sources.items()}


def detect(report: Report, folder: Path, *, quick: bool) -> None:
    sources = held_out(folder, quick=quick)
    kinds = [
        (source, spec["role"], label, [row["text"] for row in rows if row["label"] == label])
        for source, (spec, rows) in sources.items()
        if spec["role"] != "indirect"
        for label in (0, 1)
    ]
    every = [text for *_, texts in kinds for text in texts]
    report.left_out.append(guard_peers.NOT_RUN)
    for name in (*OURS, *guard_peers.NAMES):
        try:
            answers = asked(name, every)
        except (RuntimeError, MissingExtraError) as error:
            report.left_out.append(f"{name}: {error}")
            continue
        scores = iter(answers.scores)
        lines = [(*kind, list(itertools.islice(scores, len(texts)))) for *kind, texts in kinds]
        limit = show(report, name, lines, answers.took_ms)
        if name in ("ours", WITH_MEANING):
            by_language_and_kind(report, name, sources, dict(zip(every, answers.scores, strict=True)), limit)
    by_policy(report, sources)
    indirect_goal(report, sources)


def by_policy(report: Report, sources: Sources) -> None:
    """What `balanced` refuses of what users type, whatever the score was that 1 in 100 benign texts exceeds."""
    guardrail = Guardrail(Policy.profile("balanced"))

    async def refused(texts: list[str]) -> list[float]:
        return [float((await guardrail.check(text, scope=Scope.local())).blocked) for text in texts]

    for source, (spec, rows) in sources.items():
        for label in (0, 1):
            texts = [row["text"] for row in rows if row["label"] == label]
            if texts and spec["role"] != "indirect":
                share_of = above(asyncio.run(refused(texts)), 0.5)
                report.row(f"balanced: {source} ({spec['role']}, label {label})", share_of, "refused")


def by_language_and_kind(report: Report, name: str, sources: Sources, scores: dict[str, float], limit: float) -> None:
    """Of files whose rows say so: explicit attacks found in English and in others, and by the trick that they play."""
    parts: dict[str, list[float]] = {}
    for spec, rows in sources.values():
        for row in rows:
            if spec["role"] == "explicit" and row["label"] and {"kind", "lang"} <= row.keys():
                language = "English" if row["lang"] == "en" else "other languages"
                parts.setdefault(language, []).append(scores[row["text"]])
                parts.setdefault(f"kind {row['kind']}", []).append(scores[row["text"]])
    for part, found in sorted(parts.items()):
        report.row(f"{name}: explicit, {part}", above(found, limit), "attacks found")


def show(report: Report, name: str, lines: list[tuple[Any, ...]], took_ms: list[float]) -> float:
    """One detector's rows at the score that 1 in 100 benign texts exceeds, which is returned."""
    by: dict[tuple[str, int], list[float]] = {}
    for _, role, label, scores in lines:
        by.setdefault((role, label), []).extend(scores)
    benign = by.get(("benign", 0), [])
    limit = threshold_of(benign)
    for source, role, label, scores in lines:
        if scores:
            kind = "attacks found" if label and role in ("attack", "explicit") else "flagged"
            if name in guard_peers.NAMES:
                kind += f"; by its own word {share(scores, 0.0) or 0.0:.1%}"
            report.row(f"{name}: {source} ({role}, label {label})", above(scores, limit), kind)
    attacks = by.get(("explicit", 1), []) + by.get(("attack", 1), [])
    triggers = by.get(("trigger_en", 0), []) + by.get(("trigger", 0), [])
    figure = auc(attacks, benign + triggers)
    report.row(f"{name}: attacks pooled", above(attacks, limit), f"threshold {limit:.3f} from {len(benign)} benign")
    report.row(f"{name}: the same, threshold drawn again", drawn_again(benign, attacks), "bootstrap, 95 %")
    report.row(f"{name}: trigger words, all languages", above(triggers, limit), "flagged")
    report.row(f"{name}: AUC, attacks against benign and trigger words", "none" if figure is None else f"{figure:.3f}")
    report.row(f"{name}: time a text", f"p50 {p(took_ms, 50):.2f} ms", f"p95 {p(took_ms, 95):.2f}")
    if name in ("ours", WITH_MEANING):
        honest = [score for (role, label), part in by.items() if label == 0 and role != "attack" for score in part]
        for at in (0.5, 0.8, 0.97):
            report.row(f"{name}: attacks above {at}", above(attacks, at), f"honest texts {above(honest, at).strip()}")
    if name == "ours":
        note = f"threshold {limit:.3f} from {len(benign)} benign texts; files not trained on"
        goals = {
            "explicit_tpr_at_1pct_fpr": share(by.get(("explicit", 1), []), limit),
            "pooled_tpr_at_1pct_fpr": share(attacks, limit),
            "trigger_words_fpr_en": share(by.get(("trigger_en", 0), []), limit),
            "over_refusal_fpr": share(by.get(("over_refusal", 0), []), limit),
        }
        for goal, got in goals.items():
            report.goal(f"guardrails.{goal}", got, unit="", against="the same text's label", note=note)
    return limit


def indirect_goal(report: Report, sources: Sources) -> None:
    got, count = planted_orders(report, "ours", document, sources)
    meant = guard_meaning.meant_in_document
    try:
        planted_orders(report, WITH_MEANING, lambda text: max(document(text), meant(text)), sources)
        planted_orders(report, "meaning alone", meant, sources)
    except MissingExtraError as error:
        report.left_out.append(f"meaning in documents: {error}")
    seen = json.loads(Path(heads.__file__).parent.joinpath("weights", "card.json").read_text("utf-8"))["heads"][
        "indirect"
    ]["auc_of_unseen_attack_kinds"]
    note = f"{count[1]} with and {count[0]} without a planted order; files not trained on"
    if got is None:
        note = f"no file of this role that was not trained on; kinds left out in training: {seen}"
    report.goal("guardrails.indirect_auc", got, unit="", against="clean documents", note=note)


def planted_orders(
    report: Report, name: str, weigh: Callable[[str], float], sources: Sources
) -> tuple[float | None, tuple[int, int]]:
    """What one of ours says of documents: AUC of those with a planted order, and how many have none and one."""
    scores: dict[int, list[float]] = {0: [], 1: []}
    for spec, rows in sources.values():
        if spec["role"] == "indirect":
            for row in rows:
                scores[row["label"]].append(weigh(row["text"]))
    count = len(scores[0]), len(scores[1])
    if not count[1]:
        return None, count
    for at in (0.5, 0.8, 0.95):
        clean = f"clean documents flagged {above(scores[0], at).strip()}"
        report.row(f"{name}: planted orders found in documents above {at}", above(scores[1], at), clean)
    got = auc(scores[1], scores[0])
    report.row(
        f"{name}: AUC, documents with planted orders against clean ones", "none" if got is None else f"{got:.3f}"
    )
    plain = [weigh(row["text"]) for spec, rows in sources.values() if spec["role"] == "benign" for row in rows]
    if (easier := auc(scores[1], plain)) is not None:
        report.row(f"{name}: AUC, documents with planted orders against plain texts", f"{easier:.3f}", "not a goal")
    return got, count
