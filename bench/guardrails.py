"""What the guardrail finds and what it costs, source by source: python bench/guardrails.py [--data DIR].

DIR holds a `sources.toml` that names each file's role and whether it was trained on; only other files count for goals.
Without it, bench/held_out is measured: texts of our own, written before their author saw the detectors.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import guard_judge
import guard_meaning
from guard_attacks import above, auc, detect, read
from report import Report, arguments, p

from aibox.guardrails import content, entity_model, grounding, heads, injection, jailbreak, pii
from aibox.guardrails.entities import Entities
from aibox.guardrails.once import once
from aibox.guardrails.reading import LONG_CHARS
from aibox.types import Finding

HELD_OUT = Path(__file__).with_name("held_out")
FORMATS = {
    "CREDIT_CARD": "CARD",
    "EMAIL_ADDRESS": "EMAIL",
    "IBAN_CODE": "IBAN",
    "US_SSN": "SSN",
    "IP_ADDRESS": "IP",
}


def categories(report: Report, folder: Path) -> None:
    """How often a category is named on texts never trained on. There are no labels by category but in what was."""
    card = json.loads(Path(heads.__file__).parent.joinpath("weights", "content.json").read_text("utf-8"))
    for name, head in card["heads"].items():
        report.row(f"content: {name}", f"AUC {head['auc_of_folds']}", f"{head['rows']} rows, five folds of one source")
    for source, (spec, rows) in read(folder).items():
        if not spec["train"] and spec["role"] in ("benign", "trigger_en", "trigger", "over_refusal", "harm"):
            for label in (0, 1):
                texts = [row["text"] for row in rows if row["label"] == label]
                scores = [max((found.score for found in content.scan(text)), default=0.0) for text in texts]
                if scores:
                    report.row(f"content: {source} (label {label})", above(scores, 0.8), "some category at 0.8")


TUNED = "presidio_synth_v2_first900.json"
"""Every other sentence template of it was looked at when the threshold was chosen; the others count for goals."""


def sentences(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All rows with labelled spans, and those of them that nothing was chosen on."""
    every, held = [], []
    for path in sorted((folder.parent / "pii").glob("*.json")):
        rows = json.loads(path.read_text("utf-8"))
        templates = sorted({row.get("template_id") for row in rows}) if path.name == TUNED else []
        every += rows
        held += [row for row in rows if not templates or templates.index(row["template_id"]) % 2]
    return every, held


def personal(report: Report, folder: Path) -> None:
    every, held = sentences(folder)
    if not every:
        report.left_out.append("personal data: no file beside the data folder")
        return
    hits, false = spans(every, pii.scan)
    formats = [hit for type_ in FORMATS for hit in hits.get(type_, [])]
    against = "labelled spans"
    got = sum(formats) / len(formats) if formats else None
    report.goal("guardrails.pii_formats_recall", got, unit="", against=against, note=", ".join(FORMATS))
    note = f"{len(held)} sentences of templates that nothing was chosen on"
    hits, false = spans(held, pii.scan)
    shown(report, "pii alone", hits, false)
    if not entity_model.installed():
        report.left_out.append(f"the named-entity model, which is not installed: {entity_model.INSTALL}")
        report.goal("guardrails.pii_person_recall", None, unit="", against=against, note="no named-entity model")
        report.goal("guardrails.pii_false_spans_per_kchar", false, unit="", against=against, note=note)
        return
    entities = Entities()
    hits, false = spans(held, lambda text: (*pii.scan(text), *entities.scan(text)))
    shown(report, "pii and entities", hits, false)
    people = hits.get("PERSON", [])
    got = sum(people) / len(people) if people else None
    report.goal("guardrails.pii_person_recall", got, unit="", against=against, note=note)
    report.goal("guardrails.pii_false_spans_per_kchar", false, unit="", against=against, note=note)


def spans(
    rows: list[dict[str, Any]], scan: Callable[[str], tuple[Finding, ...]]
) -> tuple[dict[str, list[bool]], float]:
    """Of each type which spans have 80 % of their characters covered, and how many findings a 1,000 touch none."""
    found: dict[str, list[bool]] = {}
    false, chars = 0, 0
    for row in rows:
        text, labelled = row["full_text"], row["spans"]
        findings = scan(text)
        chars += len(text)
        covered = {place for finding in findings for place in range(*finding.span)}
        for span in labelled:
            wanted = range(span["start_position"], span["end_position"])
            found.setdefault(span["entity_type"], []).append(len(covered.intersection(wanted)) >= 0.8 * len(wanted))
        false += sum(
            not any(f.span[0] < s["end_position"] and s["start_position"] < f.span[1] for s in labelled)
            for f in findings
        )
    return found, 1000 * false / chars


def shown(report: Report, name: str, found: dict[str, list[bool]], false: float) -> None:
    for type_, hits in sorted(found.items()):
        report.row(
            f"{name}: {type_}", f"{sum(hits) / len(hits):6.1%}", f"n={len(hits)}, 80 % of the characters covered"
        )
    report.row(f"{name}: false spans a 1,000 characters", f"{false:.2f}")


GROUNDING = (("begin_wow", "Fully attributable", "grounding_auc_begin"), ("wice", "supported", "grounding_auc_wice"))


def grounded(report: Report, folder: Path) -> None:
    """Claims against the evidence that they were given, on whatever parts of the two sets are there."""
    card = json.loads(Path(heads.__file__).parent.joinpath("weights", "grounding.json").read_text("utf-8"))
    for start, supported, goal in GROUNDING:
        scores: dict[bool, list[float]] = {True: [], False: []}
        names, took = [], []
        for path in sorted((folder.parent / "grounding").glob(f"{start}_*.jsonl")):
            names.append(path.name)
            for row in map(json.loads, filter(str.strip, path.read_text("utf-8").split("\n"))):
                started = time.perf_counter()
                scores[row["label"] == supported].append(grounding.score(row["claim"], row["evidence"]))
                took.append((time.perf_counter() - started) * 1e3)
        note = f"{', '.join(names) or 'no file'}"
        if mine := [name for name in names if name in card["trained_on"]]:
            note += f"; TRAINED ON {', '.join(mine)}: of rows left out in training {card['auc_of_rows_left_out']}"
        # What was trained on says what rows left out of training said, and nothing more.
        got = card["auc_of_rows_left_out"] if mine and names == mine else auc(scores[False], scores[True])
        report.goal(f"guardrails.{goal}", got, unit="", against="labels of the set", note=note)
        if took:
            alarms, found = above(scores[True], 0.5), above(scores[False], 0.5)
            report.row(f"grounding: {start}", f"unsupported found {found}", f"supported flagged {alarms}")
            report.row(f"grounding: {start}, time a claim", f"p50 {p(took, 50):.2f} ms", f"p95 {p(took, 95):.2f}")


TEXT = (
    "Dear team, the quarterly figures are attached. Please look at the table on page 4 before the meeting on Monday; "
    "the second column was wrong last time. I asked Ms. Keller to send the corrected file to everyone by Friday. "
)


LETTER = """Dear Ms. Keller,

Thank you for the time that you took on the telephone last week. As promised I have gone through the whole file again,
and I believe that we can settle the matter without another meeting. The boiler was installed by our own people, so it
is ours to repair, and you will not be charged for the visit nor for any of the parts. I am sorry that it took us so
long to find out who had signed for it.

Our engineer Tomasz Wieczorek will come to 18 Harbour Lane, Kingsbridge, next Thursday between nine and noon. Please
make sure that somebody can let him in and that the cellar is not locked. He will need about two hours, most of it for
draining the old pipes. If the weather turns cold before then, keep the small heater running at night, and do not try
to open the valve on your own; it is stiff, and the handle has broken before.

You also asked about the invoice. The amount that you were sent in spring was wrong, because the discount for the first
year had been left out. Fatima El Amrani in our accounts department has corrected it, and you should have the new one in
a few days. There is nothing to pay until then. If you have paid already, tell us which account the money should go back
to and it will be there within a week.

One more thing. When the work is done, we would be glad if you could answer a few questions about how you were treated.
It takes five minutes, it is not for advertising, and nobody outside the company will read what you wrote. We ask
because we would rather hear it from you than find it out later, and because the people who do the work like to know
when it went well.

If anything in this letter is not as we agreed, call me, or write to the address at the foot of the page. My colleague
Bogdan Ionescu knows the file as well as I do and can answer while I am away. I hope that this is the last time that you
have to think about the boiler for many years, and I thank you once more for your patience with us in what must have
been a tiresome month.

With kind regards,
Ngozi Okafor
"""


def entity_cost(report: Report, *, quick: bool) -> None:
    """A letter of 2 KB, no sentence of it seen before, and a text of which every sentence has to be asked about."""
    if not entity_model.installed():
        report.goal("guardrails.ner_2kb_p50_ms", None, unit="ms", against="one core", note="no named-entity model")
        return
    names = "Yesterday Ngozi Okafor of {} Harbour Lane met Tomasz Wieczorek and wrote to Fatima El Amrani about it. "
    dense = "".join(names.format(number) for number in range(100, 121))[:2048]
    took: dict[str, list[float]] = {"prose": [], "names in every sentence": [], "prose again": []}
    for _ in range(5 if quick else 30):
        entities = Entities()
        for name, text in (
            ("prose", LETTER[:2048]),
            ("names in every sentence", dense),
            ("prose again", LETTER[:2048]),
        ):
            started = time.process_time()
            entities.scan(text)
            took[name].append((time.process_time() - started) * 1e3)
    for name, times in took.items():
        report.row(f"named-entity model over 2 KB: {name}", f"p50 {p(times, 50):.2f} ms", f"p95 {p(times, 95):.2f}")
    note = "CPU time, an English letter with five names, no sentence seen before"
    report.goal("guardrails.ner_2kb_p50_ms", p(took["prose"], 50), unit="ms", against="one core", note=note)


def hot(text: str) -> None:
    with once(remember=len(text) < LONG_CHARS):  # as the guardrail asks them
        jailbreak.scan(text)
        injection.scan(text)
        pii.scan(text)


def cost(report: Report, *, quick: bool) -> None:
    def cpu_ms(size: int, rounds: int, of: str = TEXT) -> float:
        text = (of * (size // len(of) + 1))[:size]
        taken = []
        for _ in range(rounds):
            started = time.process_time()
            hot(text)
            taken.append((time.process_time() - started) * 1e3)
        return statistics.median(taken)

    at_2kb = cpu_ms(2048, 50 if quick else 300)
    small, large = cpu_ms(1024, 50), cpu_ms(1 << 20, 1 if quick else 3)
    report.row("rules, head and PII formats over 2 KB", f"p50 {at_2kb:.2f} ms", "CPU time")
    letter = cpu_ms(2048, 50 if quick else 300, LETTER)
    report.row("the same over a letter, hardly a word of it twice", f"p50 {letter:.2f} ms", "CPU time")
    against = "one core"
    report.goal("guardrails.hot_2kb_p50_ms", at_2kb, unit="ms", against=against, note="CPU time, English prose")
    growth = math.log(large / small) / math.log(1024)
    note = f"{small:.2f} ms for 1 KB, {large:.0f} ms for 1 MB"
    report.goal("guardrails.cost_growth_1kb_to_1mb", growth, unit="", against=against, note=note)


def main() -> None:
    options = arguments(
        __doc__,
        data="a folder with sources.toml and the files it names, instead of bench/held_out",
        judge="a GGUF file, or `demo`: what a language model adds where rules are in doubt (slow: a minute or many)",
    )
    report = Report("guardrails")
    folder = options.data or HELD_OUT
    cost(report, quick=options.quick)
    entity_cost(report, quick=options.quick)
    detect(report, folder, quick=options.quick)
    categories(report, folder)
    personal(report, folder)
    grounded(report, folder)
    guard_meaning.topics(report, read(folder))
    guard_judge.measure(report, folder, model=options.judge, quick=options.quick)
    if options.data is None:
        report.left_out.append(
            "texts of others, personal data and claims, which the repository does not hold: --data DIR"
        )
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
