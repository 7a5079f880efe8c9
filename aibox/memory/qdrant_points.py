"""The points of documents on a Qdrant server: what they are called, bound to, and shown to."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from aibox.memory.cipher import SubjectKey
from aibox.memory.reader import Reader
from aibox.memory.vector_index import hashed

PLACE = ("document", "user", "visibility", "groups", "label")


def collection(tenant: str) -> str:
    return f"aibox_documents_{hashed(tenant)}"


def bound(tenant: str, payload: Mapping[str, Any], number: int | None = None) -> str:
    """What a sealed text is bound to: it opens in no other point, for no other readers and under no lower label."""
    parts = [tenant, *("+".join(v) if isinstance(v := payload[field], list) else v for field in PLACE)]
    return "|".join(parts if number is None else [*parts, str(number)])


def seal(said: Sequence[Any], key: SubjectKey, place: str) -> str:
    return base64.b64encode(key.seal(msgspec.json.encode(said), place)).decode()


def unseal(payload: Mapping[str, Any], key: SubjectKey, tenant: str) -> list[Any]:
    """What the point of a passage or document says. Raises IntegrityError where it was changed or moved."""
    number = payload["number"] if payload["kind"] == "passage" else None
    said: list[Any] = msgspec.json.decode(key.open(base64.b64decode(payload["sealed"]), bound(tenant, payload, number)))
    return said


def may_see(head: Mapping[str, Any], reader: Reader) -> bool:
    """By what is authenticated with the document, whatever the server filtered by."""
    member = {hashed(f"group|{group}") for group in reader.groups} & {*head["groups"]}
    shared = head["visibility"] == "shared" or (head["visibility"] == "restricted" and bool(member))
    return (shared or head["user"] == hashed(reader.scope.user)) and reader.admits(head["label"])


def without_owner(payload: Mapping[str, Any], key: SubjectKey) -> dict[str, Any]:
    seen_by = ["*"] if payload["visibility"] == "shared" else [*payload["groups"]]
    return {**payload, "reader": seen_by, "source": key.digest(payload["document"]).hex()}


def point_id(document: str, number: int) -> str:
    return str(uuid.uuid5(uuid.UUID(document), str(number)))
