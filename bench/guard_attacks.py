"""Attacks found and benign texts flagged, source by source; ours beside others. Part of bench/guardrails.py."""

from __future__ import annotations

import itertools
import json
import math
import time
import tomllib
from pathlib import Path
from typing import Any

import guard_peers
from report import Report, p

from aibox.guardrails import heads, injection, jailbreak
from aibox.guardrails.features import windows
from aibox.guardrails.normalise import normalise

Sources = dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]


def direct(text: str) -> float:
    """Rules and the head together, as one score of a user's text."""
    found = (*jailbreak.scan(text), *injection.scan(text, floor=0))
    return max((finding.score for finding in found), default=0.0)


def rules(text: str) -> float:
    return max((finding.score for finding in jailbreak.scan(text)), default=0.0)


def trained(text: str) -> float:
    """The head alone, on the text as it stands."""
    return max((heads.head("direct").score(words) for _, _, words in windows(normalise(text).text)), default=0.0)


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


OURS = {"ours": direct, "rules alone": rules, "head alone": trained}


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
        except RuntimeError as error:
            report.left_out.append(f"{name}: {error}")
            continue
        scores = iter(answers.scores)
        lines = [(*kind, list(itertools.islice(scores, len(texts)))) for *kind, texts in kinds]
        show(report, name, lines, answers.took_ms)
    indirect_goal(report, sources)


def show(report: Report, name: str, lines: list[tuple[Any, ...]], took_ms: list[float]) -> None:
    """One detector's rows: at the score that 1 in 100 benign texts exceeds, and another's at its own word too."""
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
    figure = auc(attacks, benign + by.get(("trigger_en", 0), []))
    report.row(f"{name}: attacks pooled", above(attacks, limit), f"threshold {limit:.3f} from {len(benign)} benign")
    report.row(f"{name}: AUC, attacks against benign and trigger words", "none" if figure is None else f"{figure:.3f}")
    report.row(f"{name}: time a text", f"p50 {p(took_ms, 50):.2f} ms", f"p95 {p(took_ms, 95):.2f}")
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


def indirect_goal(report: Report, sources: Sources) -> None:
    scores: dict[int, list[float]] = {0: [], 1: []}
    for spec, rows in sources.values():
        if spec["role"] == "indirect":
            for row in rows:
                scores[row["label"]].append(document(row["text"]))
    got = auc(scores[1], scores[0])
    seen = json.loads(Path(heads.__file__).parent.joinpath("weights", "card.json").read_text("utf-8"))["heads"][
        "indirect"
    ]["auc_of_unseen_attack_kinds"]
    note = (
        "" if got is not None else f"no file of this role that was not trained on; kinds left out in training: {seen}"
    )
    report.goal("guardrails.indirect_auc", got, unit="", against="clean documents", note=note)
