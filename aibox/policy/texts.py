"""What a policy says about texts beyond scores: topics, lengths, and the form of an answer. The checks enforce it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field, PlainSerializer, StringConstraints, WithJsonSchema

from aibox.policy.fields import Part
from aibox.types import Where

Spotlight = Literal["off", "quote", "mark"]
"""How what others wrote is shown to a model: as it is, between marks, or also with marks between its words."""
SPOTLIGHTS: tuple[Spotlight, ...] = ("off", "quote", "mark")

EXAMPLE = "~"
Phrase = Annotated[str, StringConstraints(strip_whitespace=True, min_length=2, max_length=200)]
"""Words as they are written; a word that ends in `*` stands for all that begin with it.

What begins with `~` is an example sentence: what means nearly the same counts, where there is an embedder.
"""


def _fences(value: object) -> object:
    """A list of phrases is one fence; a list of lists is what several levels made of theirs."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [value] if value else []
    return value


Fences = Annotated[
    frozenset[frozenset[Phrase]],
    BeforeValidator(_fences),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "default": []}),
]


class TopicRules(Part):
    """What may be talked about, by words and by example sentences. The check `topics` finds it."""

    banned: dict[str, frozenset[Phrase]] = Field(default_factory=dict)
    """Topic -> phrases that speak of it. Of several levels topics and phrases unite."""
    allowed: Fences = frozenset()
    """A message holds one of these phrases, or it is off topic. It must hold one of each level's list."""

    def __and__(self, other: TopicRules) -> TopicRules:
        names = sorted({*self.banned, *other.banned})
        none: frozenset[str] = frozenset()
        return TopicRules.model_construct(
            banned={name: self.banned.get(name, none) | other.banned.get(name, none) for name in names},
            allowed=self.allowed | other.allowed,
        )


class TokenLimits(Part):
    """How long a text may be, in tokens as the check `tokens` estimates them. `limits.output_tokens` bounds answers."""

    input: int | None = Field(default=None, gt=0)
    tool_arguments: int | None = Field(default=None, gt=0)
    tool_result: int | None = Field(default=None, gt=0)
    retrieved: int | None = Field(default=None, gt=0)

    def __and__(self, other: TokenLimits) -> TokenLimits:
        def least(name: str) -> int | None:
            bounds = [bound for bound in (getattr(self, name), getattr(other, name)) if bound is not None]
            return min(bounds) if bounds else None

        return TokenLimits(**{name: least(name) for name in TokenLimits.model_fields})

    def of(self, where: Where) -> int | None:
        limit: int | None = getattr(self, where, None)
        return limit


def _schemas(value: object) -> object:
    """One schema as a table, or several as their JSON texts: kept as texts, so that a policy has one canonical form."""
    if isinstance(value, Mapping):
        return [msgspec.json.encode(value, order="deterministic").decode()] if value else []
    return value


def _schemas_out(texts: frozenset[str]) -> list[str]:
    return sorted(texts)


Schemas = Annotated[
    frozenset[str],
    BeforeValidator(_schemas),
    PlainSerializer(_schemas_out),
    WithJsonSchema({"type": "object", "description": "A JSON Schema.", "default": {}}),
]


class FormRules(Part):
    """What an answer must be. The check `form` finds an answer that is something else."""

    output: Schemas = frozenset()
    """A JSON Schema: the answer is JSON that it describes. Of several levels all must hold."""

    def __and__(self, other: FormRules) -> FormRules:
        return FormRules.model_construct(output=self.output | other.output)

    @property
    def schemas(self) -> list[Any]:
        return [msgspec.json.decode(text) for text in sorted(self.output)]
