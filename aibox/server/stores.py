"""What a server keeps about people and tenants besides the box: who was seen, answers, what was written as policies.

Whoever erases a person erases them here too, from the command line as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from aibox.box import Box
from aibox.server.answers import Answers
from aibox.server.api_keys import ApiKeys
from aibox.server.in_force import InForce
from aibox.server.people import People
from aibox.server.policies import Policies

_NAMES = ("people.db", "idempotency.db", "policies.db")


class Kept(NamedTuple):
    """The stores, and what puts into force what is written there."""

    people: People
    answers: Answers
    policies: Policies
    in_force: InForce


def keep(box: Box) -> Kept:
    """All of them, closed with the box and erased with it."""
    places = [box.settings.place(None, name) for name in _NAMES]
    people, policies = People(places[0]), Policies(places[2])
    answers = Answers(places[1], key=box.keys.secret("idempotency"))
    in_force = InForce(box, policies)
    for part in (people, answers, policies, in_force):
        box.keep(part)
    for name, store in (("people", people), ("answers", answers), ("policies", policies)):
        box.audit.register(name, store)
    return Kept(people, answers, policies, in_force)


def keep_if_served(box: Box) -> None:
    """As `keep`, and the API keys, where a server has kept something: a box that served nobody gets no files by it."""
    places = [box.settings.place(None, name) for name in _NAMES]
    if any(map(_is_there, places)):
        keep(box)
    if (place := box.settings.api_keys) is not None and _is_there(place):
        keys = ApiKeys(place)
        box.keep(keys)
        box.audit.register("keys", keys)


def _is_there(place: str | Path) -> bool:
    return not isinstance(place, Path) or place.exists()
