"""Who may see which document, said once for the rows and once for the index; what a reader is shown of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from aibox.memory.record import Passage
from aibox.memory.terms import Terms
from aibox.memory.vector_index import hashed
from aibox.types import Label, Scope

Groups = Callable[[Scope], Collection[str]]
"""Says which groups the user of a scope is in, for documents that are restricted to some."""
VISIBLE = """d.tenant = :tenant AND (d.user = :user OR d.visibility = 'shared' OR (d.visibility = 'restricted' AND
EXISTS (SELECT 1 FROM json_each(d.groups) WHERE value IN (SELECT value FROM json_each(:groups)))))"""
"""For a document `d`, with what `Reader.bound` binds."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Who looks: the user, the groups that the user is in, and the highest label that they may be shown."""

    scope: Scope
    groups: frozenset[str] = frozenset()
    ceiling: Label | None = None

    @property
    def bound(self) -> dict[str, Any]:
        return {"tenant": self.scope.tenant, "user": self.scope.user, "groups": json.dumps(sorted(self.groups))}

    @property
    def names(self) -> list[str]:
        """As the index knows who may see what."""
        return [hashed(f"user|{self.scope.user}"), "*", *(hashed(f"group|{group}") for group in sorted(self.groups))]

    def admits(self, label: str) -> bool:
        return self.ceiling is None or Label.parse(label) <= self.ceiling


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage that may be found, with what it is scored by."""

    passage: Passage
    vector: bytes
    terms: Terms


@dataclass(frozen=True, slots=True)
class NewPassage:
    """A passage to be kept: its text and place, and its vector; `for_search` is what its words are taken from."""

    text: str
    heading: str
    page: int
    start: int
    end: int
    for_search: str
    vector: Sequence[float]
    about: str = ""
    """A sentence for the search, see `situate`."""


def readers(user: str, visibility: str, groups: str) -> list[str]:
    """Who may see it, as the index knows them."""
    if visibility == "shared":
        return ["*"]
    names = [hashed(f"group|{group}") for group in json.loads(groups)] if visibility == "restricted" else []
    return [hashed(f"user|{user}"), *names]
