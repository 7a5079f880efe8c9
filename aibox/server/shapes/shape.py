"""What all that is sent and answered has in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from aibox.errors import ConfigError
from aibox.types import Label


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
    try:
        Label.parse(value)
    except ConfigError as error:
        raise ValueError(f"it is no label: {error.hint}") from None
    return value


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
LabelText = Annotated[str, Field(max_length=1000, examples=["internal", "confidential/PHI"]), AfterValidator(_is_label)]
"""How secret a text is: a level, and compartments after a slash. What is left out is `internal`."""
