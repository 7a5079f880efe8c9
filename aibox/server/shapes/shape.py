"""What all that is sent and answered has in common."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from aibox.types import COMPARTMENT, Level


class Asked(BaseModel):
    """Something that a caller sends. A field that is not known is a mistake, and told."""

    # Built when a route first needs it: a gateway for models alone is not made larger by the others.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True, allow_inf_nan=False,
        defer_build=True,
    )  # fmt: skip


class Answer(BaseModel):
    """Something that the server answers. A client passes over fields that it does not know yet."""

    model_config = ConfigDict(
        frozen=True, from_attributes=True, use_attribute_docstrings=True, serialize_by_alias=True,
        validate_by_name=True, defer_build=True,
    )  # fmt: skip


def _text(value: Any) -> Any:
    return value if isinstance(value, str) else str(value)


def _is_label(value: str) -> str:
    if not re.fullmatch(_LABEL, value):
        raise ValueError(
            "it is no label: one of public, internal, confidential, restricted, then "
            '"/PHI,MNPI" for compartments in capitals'
        )
    return value


def _whole(value: Any) -> Any:
    # JSON has one kind of number, and JSON Schema takes 8.0 for an integer.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_kept(value: str) -> str:
    if "\0" in value:
        raise ValueError("it holds a NUL, which no text does that is kept; leave it out")
    return value


def _sorted(value: Iterable[Any]) -> list[str]:
    return sorted(map(str, value))


Text = Annotated[str, BeforeValidator(_text)]
"""A value of the library that has one text, such as a label or a decision."""
Names = Annotated[list[str], BeforeValidator(_sorted)]
"""A set of names, in order."""
Kept = Annotated[str, Field(json_schema_extra={"pattern": r"^[^\x00]*$"}), AfterValidator(_is_kept)]
"""A text that is stored, or looked for, as it is: PostgreSQL takes none with a NUL."""
Id = Annotated[Kept, Field(min_length=1, max_length=255)]
NAME = r"^[!-~]{1,255}$"
Name = Annotated[str, Field(pattern=NAME)]
"""Of a user, an agent or a conversation: what a scope takes."""
Whole = Annotated[int, BeforeValidator(_whole)]
_LABEL = rf"^({'|'.join(level.name.lower() for level in Level)})(/{COMPARTMENT}(, ?{COMPARTMENT})*)?$"
LabelText = Annotated[
    str,
    Field(max_length=1000, examples=["internal", "confidential/PHI"], json_schema_extra={"pattern": _LABEL}),
    AfterValidator(_is_label),
]
"""How secret a text is: a level, and compartments after a slash. What is left out is `internal`."""
