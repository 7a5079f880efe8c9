"""One declaration a route, on the method that answers it: what is served and what is documented are made of the same.

    @route("GET", "/v1/memory/{id}", roles=ASKS)
    async def get(self, who: Principal, id: str) -> MemoryRecord: ...

The signature says the rest: `who` is the caller, `body` what was sent (a model, or bytes), `query` the query's model,
`match` an `If-Match`, every other argument a part of the path; what it returns is the answer, an AsyncIterator of
events is a stream.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from aibox.errors import AIBoxError
from aibox.server.principal import Role
from aibox.server.scopes import KeyScope, scope_of

F = TypeVar("F", bound=Callable[..., Any])

ASKS = (Role.USER, Role.SERVICE, Role.TENANT_ADMIN, Role.PLATFORM_ADMIN)
"""Everybody but an auditor, who reads evidence and nothing else. Each of them has what is their own."""
READS_EVIDENCE = (Role.AUDITOR, Role.TENANT_ADMIN)
ADMINISTERS = (Role.TENANT_ADMIN, Role.PLATFORM_ADMIN)
OPERATES = (Role.PLATFORM_ADMIN,)
MAX_BODY_BYTES = 1 << 20
"""Of a request that does not say otherwise."""
_MARK = "__aibox_route__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route as it is served and documented. `roles` empty: nobody has to prove who they are."""

    method: str
    path: str
    name: str
    """Unique: the group and the method, such as `memory.remember`."""
    roles: tuple[Role, ...]
    about: str = ""
    status: int = 200
    media: str = "application/json"
    parts: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the path, and their types."""
    query: Any = None
    body: Any = None
    """A model, `bytes`, or None."""
    answer: Any = None
    """A model, `bytes`, `str`, or None for an answer without a body."""
    streams: bool = False
    """The answer is a stream of events, each of the type `answer`."""
    event: Any = None
    """The type of each event, where the body may ask for a stream in the place of the answer."""
    cut: Callable[[AIBoxError], BaseModel] | None = None
    """The event that ends a stream which the server cannot finish."""
    openai: bool = False
    """Errors are in OpenAI's shape; else RFC 9457 problems."""
    matches: bool = False
    """What it answers has a `digest`, which is its entity tag; the method hears of `If-Match` as `match`."""
    records: bool = False
    """What it does leaves entries of its own in the tenant's log; else one is written for it."""
    watched: bool = False
    """A caller who leaves ends the work."""
    max_body_bytes: int = MAX_BODY_BYTES
    examples: Sequence[Mapping[str, Any]] = ()

    @property
    def scope(self) -> KeyScope | None:
        """What an API key must be for, if it names what it is for."""
        return scope_of(self.name) if self.roles else None

    @property
    def changes(self) -> bool:
        return self.method != "GET"


def route(method: str, path: str, *, roles: Sequence[Role], **more: Any) -> Callable[[F], F]:
    """Declare a method as the answer to a route; `more` are fields of Route."""

    def mark(function: F) -> F:
        setattr(function, _MARK, {"method": method, "path": path, "roles": tuple(roles), **more})
        return function

    return mark


def routes_of(kind: type) -> list[tuple[Route, str]]:
    """The routes that a class declares, with the name of the method that answers each."""
    found = []
    for name, function in vars(kind).items():
        if (given := getattr(function, _MARK, None)) is None:
            continue
        hints = get_type_hints(function, include_extras=True)
        answer, streams = hints.pop("return"), False
        if get_origin(answer) is AsyncIterator:
            (answer,), streams = get_args(answer), True
        about: dict[str, Any] = {"about": inspect.getdoc(function) or "", "answer": answer, "streams": streams}
        about |= {"query": hints.pop("query", None), "body": hints.pop("body", None)}
        hints.pop("who", None)
        hints.pop("match", None)
        if streams:
            about["media"] = "text/event-stream"
        elif answer is type(None):
            about |= {"answer": None, "status": 204}
        about |= {"name": f"{kind.__name__.removesuffix('API').lower()}.{name.rstrip('_')}", "parts": hints}
        found.append((Route(**{**about, **given}), name))
    return found
