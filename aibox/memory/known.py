"""What is known about somebody, to be read by them: in a terminal, in a notebook, with the way to have it forgotten."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from aibox.memory.document import Document
from aibox.memory.record import Record
from aibox.types import Scope

_MEANING = {
    "user": "about you",
    "feedback": "how you want the work done",
    "project": "what you are working on",
    "reference": "where things are found",
}


@dataclass(frozen=True, slots=True)
class Known:
    """The memories of one user and the documents that the user added."""

    scope: Scope
    records: Sequence[Record]
    documents: Sequence[Document] = ()

    def __str__(self) -> str:
        if not self.records and not self.documents:
            return f"Nothing is remembered for {self.scope.user} of {self.scope.tenant}."
        lines = [f"What is remembered for {self.scope.user} of {self.scope.tenant}:"]
        for kind, meaning in _MEANING.items():
            mine = [record for record in self.records if record.type == kind]
            lines += [f"  {meaning} ({kind})", *(_line(record) for record in mine)] if mine else []
        if self.documents:
            lines += ["  documents", *(f"    {d.name}  ({d.visibility}, {d.label})  {d.id}" for d in self.documents)]
        lines.append(
            "To forget one: await memory.forget(scope=scope, ids=[...]); everything: "
            "await memory.forget(scope=scope, subject=scope.user)"
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        cells = [
            (record.type, record.text, str(record.label), _since(record), record.id) for record in self.records
        ] + [(d.visibility + " document", d.name, str(d.label), "", d.id) for d in self.documents]
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in cells)
        head = "".join(f"<th>{name}</th>" for name in ("kind", "what", "label", "since", "id"))
        who = html.escape(f"{self.scope.user} of {self.scope.tenant}")
        how = "<code>await memory.forget(scope=scope, ids=[id])</code>"
        return f"<p>Remembered for {who}. To forget: {how}</p><table><tr>{head}</tr>{rows}</table>"


def _since(record: Record) -> str:
    return record.citation.rpartition(" of ")[2]


def _line(record: Record) -> str:
    sure = f", {record.confidence:.0%} sure" if record.confidence < 1 else ""
    return f"    {record.text}  ({record.label}, {_since(record)}{sure})  {record.id}"
