"""What a server keeps about people besides the box: who was seen, and answers to requests that are done once.

Whoever erases a person erases them here too, from the command line as well.
"""

from __future__ import annotations

from pathlib import Path

from aibox.box import Box
from aibox.server.answers import Answers
from aibox.server.people import People


def keep(box: Box) -> tuple[People, Answers]:
    """Both, closed with the box and erased with it."""
    people = People(box.settings.place(None, "people.db"))
    answers = Answers(box.settings.place(None, "idempotency.db"), key=box.keys.secret("idempotency"))
    for name, store in (("people", people), ("answers", answers)):
        box.keep(store)
        box.audit.register(name, store)
    return people, answers


def keep_if_served(box: Box) -> None:
    """As `keep`, where a server has kept something: a box that served nobody gets no files by it."""
    places = [box.settings.place(None, name) for name in ("people.db", "idempotency.db")]
    if any(not isinstance(place, Path) or place.exists() for place in places):
        keep(box)
