"""Memories as JSON lines: out of one memory and into another."""

from __future__ import annotations

from typing import Annotated

import msgspec

from aibox.errors import ConfigError
from aibox.memory.record import Record, RecordType, new_id, now_us
from aibox.types import Label, Scope


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """One record; whose it is is said by who imports it."""

    text: str
    type: RecordType
    label: str
    agent: str = ""
    session: str = ""
    source: str = ""
    confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    created_us: Annotated[int, msgspec.Meta(ge=0)] = 0
    valid_from_us: Annotated[int, msgspec.Meta(ge=0)] = 0
    valid_until_us: Annotated[int, msgspec.Meta(ge=0)] = 0


def dump(records: list[Record]) -> str:
    """A line a record."""
    names = [name for name in _Line.__struct_fields__ if name != "label"]
    lines = [_Line(label=str(r.label), **{name: getattr(r, name) for name in names}) for r in records]
    return "".join(msgspec.json.encode(line).decode() + "\n" for line in lines)


def load(lines: str, scope: Scope) -> list[Record]:
    """The records, as the scope's user's. Raises ConfigError that names the line which is none."""
    records = []
    for number, text in enumerate(lines.split("\n"), 1):
        if not text.strip():
            continue
        try:
            line = msgspec.json.decode(text, type=_Line)
            fields = {name: getattr(line, name) for name in _Line.__struct_fields__ if name != "label"}
            own = Scope(tenant=scope.tenant, user=scope.user, agent=line.agent, session=line.session)
            created_us = line.created_us or now_us()
            fields |= {"tenant": own.tenant, "user": own.user, "created_us": created_us, "id": new_id(created_us)}
            records.append(Record(**fields, label=Label.parse(line.label)))
        except (msgspec.MsgspecError, ConfigError) as error:
            raise ConfigError(f"line {number} is not an exported memory: {error}") from None
    return records
