"""How decisions, labels and ladders of thresholds are written in a policy file, and the ground of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

from aibox.errors import ConfigError
from aibox.types import Decision, Label


def _decision(value: object) -> object:
    return _parsed(value) if isinstance(value, str) else value


def _parsed(text: str) -> Decision:
    """Raises ValueError, which the validation puts the place to: it says where in the file the word stands."""
    try:
        return Decision.parse(text)
    except ConfigError as error:
        raise ValueError(f"{error.message}; {error.hint}") from None


DecisionField = Annotated[
    Decision,
    BeforeValidator(_decision),
    PlainSerializer(str),
    WithJsonSchema({"enum": [str(d) for d in Decision]}),
]


def _label(value: object) -> object:
    return Label.parse(value) if isinstance(value, str) else value


LabelField = Annotated[Label, BeforeValidator(_label), PlainSerializer(str), WithJsonSchema({"type": "string"})]


Steps = tuple[tuple[int, Decision], ...]
"""`(score in thousandths, decision)`: at or above the score, at least that decision."""


def _ladder(value: object) -> object:
    """`"block"` means: block whatever the score. `{"0.5" = "flag", "0.9" = "block"}` is a ladder of thresholds."""
    if isinstance(value, str):
        value = {"0": value}
    if not isinstance(value, Mapping):
        return value
    steps = tuple((_threshold(score), _parsed(str(decision))) for score, decision in value.items())
    return join_ladders(steps, ())


def _threshold(score: object) -> int:
    """Thresholds are kept in thousandths, so that a policy has one canonical form without floats."""
    try:
        thousandths = round(float(str(score)) * 1000)
    except (ValueError, OverflowError):
        raise ValueError(f"a threshold is a number from 0 to 1, not {score!r}") from None
    if not 0 <= thousandths <= 1000:
        raise ValueError(f"a threshold is a number from 0 to 1, not {score!r}")
    return thousandths


def _ladder_out(steps: Steps) -> dict[str, str]:
    return {f"{score / 1000:g}": str(decision) for score, decision in steps}


Ladder = Annotated[
    Steps,
    BeforeValidator(_ladder),
    PlainSerializer(_ladder_out),
    WithJsonSchema({"type": ["string", "object"]}),
]


def join_ladders(a: Steps, b: Steps) -> Steps:
    """The pointwise maximum of two step functions, with the steps that change nothing left out."""
    joined: list[tuple[int, Decision]] = []
    for score, decision in sorted((*a, *b), key=lambda step: (step[0], -step[1])):
        if not joined or decision > joined[-1][1]:
            joined.append((score, decision))
    return tuple(step for step in joined if step[1] > Decision.ALLOW)


class Part(BaseModel):
    """One part of a policy: frozen, with no keys but its own, and no number that is none or has no end.

    Of two numbers the smaller holds, and `nan` is neither: a join with it would lift a limit.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
    )
