"""Reports for people and for machines that show tests: Markdown, one HTML page without scripts, JUnit XML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from aibox.evals.report import CaseResult, Report


def markdown(reports: Sequence[Report]) -> str:
    """All reports on one page."""
    parts = []
    for report in reports:
        parts.append(f"# {_md(report.name)}\n\n{_md(headline(report))}\n")
        parts.append("| | |\n|---|---|\n" + "".join(f"| {name} | `{_md(value)}` |\n" for name, value in facts(report)))
        parts.append("| case | passed | pass@1 | 95% interval | | why not |\n|---|---|---|---|---|---|")
        parts += ["| " + " | ".join(_md(cell) for cell in row(result)) + " |" for result in report.results]
        parts.append("")
    return "\n".join(parts) + "\n"


def html_page(reports: Sequence[Report]) -> str:
    """One page that needs nothing else: no script, no font, no picture from anywhere."""
    body = []
    for report in reports:
        body.append(f"<h1>{html.escape(report.name)}</h1><p>{html.escape(headline(report))}</p><table>")
        body += [f"<tr><th>{n}</th><td><code>{html.escape(v)}</code></td></tr>" for n, v in facts(report)]
        body.append("</table><table><tr><th>case<th>passed<th>pass@1<th>95% interval<th><th>why not</tr>")
        for result in report.results:
            kind = {"always": "good", "never": "bad", "flaky": "flaky"}[result.tally.stability]
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row(result))
            body.append(f'<tr class="{kind}">{cells}</tr>')
        body.append("</table>")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title><style>{_STYLE}</style>"
    return f"{head}{''.join(body)}\n"


def junit(reports: Sequence[Report]) -> bytes:
    """The format that continuous integration reads: a suite a report, a test a case, failed unless it was solved."""
    root = ET.Element("testsuites")
    for report in reports:
        failed = [result for result in report.results if not result.solved]
        suite = ET.SubElement(
            root, "testsuite", name=_xml(report.name), tests=str(len(report.results)), failures=str(len(failed))
        )
        properties = ET.SubElement(suite, "properties")
        for name, value in facts(report):
            ET.SubElement(properties, "property", name=name, value=_xml(value))
        for result in report.results:
            seconds = sum(run.duration_us for run in result.runs) / 1e6
            case = ET.SubElement(
                suite, "testcase", classname=_xml(report.name), name=_xml(result.case), time=f"{seconds:.3f}"
            )
            if not result.solved:
                failure = ET.SubElement(case, "failure", message=_xml(str(result.tally)))
                failure.text = _xml(result.reason)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def headline(report: Report) -> str:
    """What the report says in one line."""
    tally = report.tally
    said = f"{tally} over {len(report.results)} cases"
    if report.gate is not None:
        said += f"; gate: {report.outcome} ({report.gate})"
    return said + (f"; flaky: {', '.join(report.flaky)}" if report.flaky else "")


def facts(report: Report) -> list[tuple[str, str]]:
    """What the report is bound to."""
    subject = report.subject
    weights = [f"{model} {known} {digest[:16]}".strip() for model, known, digest in subject.weights] or ["unrecorded"]
    digests = [(name, getattr(subject, name)) for name in ("model", "prompt", "tools", "skills", "policy", "settings")]
    sealed = "not sealed" if report.receipt is None else report.receipt.digest
    return [
        ("report", report.digest),
        *digests,
        ("weights", ", ".join(weights)),
        ("data set", report.dataset),
        ("receipt", sealed),
    ]


def row(result: CaseResult) -> tuple[str, ...]:
    """One case: name, passes, estimate, interval, stability, the first reason."""
    tally = result.tally
    low, high = tally.interval()
    estimate = tally.pass_at_1
    shown = "?" if estimate is None else f"{estimate:.2f}"
    return (
        result.case,
        f"{tally.passed}/{tally.runs}",
        shown,
        f"{low:.2f} to {high:.2f}",
        tally.stability,
        result.reason[:300],
    )


def _md(text: str) -> str:
    """Text that stays text in a cell: an answer may hold anything."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("`", "'")


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 sec. 2.2 forbids."""
    return "".join(
        c for c in text if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff"
    )


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:75rem}table{border-collapse:collapse;margin:1rem 0}"
    "td,th{border:1px solid #ccc;padding:.3rem .6rem;text-align:left;vertical-align:top}code{word-break:break-all}"
    ".good td:first-child{border-left:5px solid #2a7}.bad td:first-child{border-left:5px solid #c33}"
    ".flaky td:first-child{border-left:5px solid #d90}"
)
