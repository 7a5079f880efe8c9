"""What pydantic found wrong with somebody's file, in one line that names the key."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError


def explain_validation(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong, in one line, with the likely key where an unknown one was given."""
    first = error.errors()[0]
    # Of a mapping pydantic names the key, and then says that it means the key.
    where = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] != "extra_forbidden":
        # Of the whole there is no name.
        return f"{where}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")
    known: Any = model
    for part in first["loc"][:-1]:
        field = getattr(known, "model_fields", {}).get(part)
        known = field.annotation if field else None
    names = list(getattr(known, "model_fields", {}))
    close = get_close_matches(str(first["loc"][-1]), names, n=1)
    suggestion = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names)}" if names else ""
    return f"unknown key {where!r}{suggestion}"
