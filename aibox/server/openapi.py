"""The OpenAPI 3.1 document, made of the table of routes that is served. pydantic writes the schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from aibox import __version__
from aibox.server.once import METHODS, UNKEPT
from aibox.server.route import Route
from aibox.server.shapes.fault import OpenAIError, Problem
from aibox.server.shapes.shape import Answer

REF = "#/components/schemas/{model}"
_TOLD = {
    400: "What was asked cannot be: the answer says what is wrong with it, or which check refused.",
    401: "The token is missing, wrong, or has ended.",
    403: "The caller's roles do not allow it, or the policy does not.",
    404: "It is not there, or it is not the caller's: both answer alike.",
    409: "It is in a state in which this cannot be done, or the same is under way.",
    413: "The body is longer than may be sent.",
    429: "A limit was reached; `Retry-After` says whether waiting helps.",
}
_INTRODUCTION = (
    "The platform over HTTP. Whose something is follows from the token alone: no header, query or body names a tenant "
    "or a user on whose behalf to act. `x-roles` of a route lists the roles of which a caller needs one, "
    "`x-scope` the scope that an API key needs which names scopes."
)


def _header(name: str, description: str, schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    told = {"name": name, "in": "header", "required": False, "description": description}
    return {**told, "schema": {"type": "string", **(schema or {})}}


_READ = {
    "Case": _header(
        "X-Aibox-Case",
        "The case, or matter, that the request belongs to: pseudonyms are one mapping in each.",
        {"pattern": "^[!-~]{0,255}$"},
    ),
    "Correlation": _header(
        "X-Correlation-ID",
        "An id of the caller's own for the request, which answer, log, evidence and calls to models then bear. One "
        "that is not 8 to 64 letters, digits, `-` and `_` is passed over, and another one made.",
    ),
    "Match": _header(
        "If-Match",
        "The `ETag` of what is to be replaced, or `*` for whatever is there. 412 where it is another by now, 428 where "
        "something is there and this header is not.",
        {"examples": ['"sha256:..."']},
    ),
    "Traceparent": _header("traceparent", "The span of the caller that the request belongs to (W3C Trace Context)."),
    "Once": _header(
        "Idempotency-Key",
        "The request is done once: a repeat with this key has the same answer, for a day. 422 where the key was used "
        "for something else, 409 while the first is under way.",
        {"pattern": "^[ -~]{0,255}$", "examples": ["8e03978e-40d5-43e8-bc93-6894a57f9324"]},
    ),
}
"""Headers of a request, as the server reads them."""
_WRITTEN: dict[str, dict[str, Any]] = {
    "X-Correlation-ID": {"description": "The id of the request.", "schema": {"type": "string"}},
    "ETag": {"description": "The digest of what is there, for `If-Match`.", "schema": {"type": "string"}},
    "RateLimit-Policy": {
        "description": "The limits that it draws from, if there are any (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string", "examples": ['"tenant-requests";q=600;w=60']},
    },
    "RateLimit": {
        "description": "What is left of each, and the seconds until there is more.",
        "schema": {"type": "string", "examples": ['"tenant-requests";r=599;t=1']},
    },
    "Retry-After": {
        "description": "Seconds after which asking again may help.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "WWW-Authenticate": {
        "description": "How to prove who asks, and whether what was sent does not hold (RFC 6750).",
        "schema": {"type": "string", "examples": ['Bearer error="invalid_token"']},
    },
    "Idempotency-Replayed": {
        "description": "The answer is that of the first request with this `Idempotency-Key`.",
        "schema": {"type": "string", "const": "true"},
    },
}
"""Headers of an answer."""
_ALWAYS = ("X-Correlation-ID",)
_LIMITED = (*_ALWAYS, "RateLimit-Policy", "RateLimit")


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The document of these routes."""
    schemas = _Schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "aibox", "version": __version__, "description": _INTRODUCTION},
        "paths": paths,
        "components": {
            "schemas": schemas.defined,
            "parameters": dict(_READ),
            "headers": dict(_WRITTEN),
            "responses": _faults(schemas),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}],
    }


class _Schemas:
    """Every type of the table, written by pydantic in one go so that a name stands for one schema."""

    def __init__(self, routes: Sequence[Route]) -> None:
        wanted: dict[int, tuple[Any, Any, TypeAdapter[Any]]] = {}
        for kind in (Problem, OpenAIError, *(one for route in routes for one in (route.answer, route.event))):
            if kind not in (None, bytes, str):
                wanted[id(kind)] = (id(kind), "serialization", TypeAdapter(kind))
        for route in routes:
            for kind in (route.body, route.query, *route.parts.values()):
                if kind not in (None, bytes):
                    wanted[id(kind)] = (id(kind), "validation", TypeAdapter(kind))
        made, shared = TypeAdapter.json_schemas(list(wanted.values()), ref_template=REF)
        self._by_kind = {key: schema for (key, _), schema in made.items()}
        self.defined: dict[str, Any] = shared.get("$defs", {})
        self.parts, self._examples = _examples()
        for name, example in self._examples.items():
            self.defined[name]["examples"] = [example]

    def of(self, kind: Any) -> dict[str, Any]:
        return dict(self._by_kind[id(kind)])

    def fields(self, kind: Any) -> tuple[Mapping[str, Any], Sequence[str]]:
        """The properties of a model, and which of them are required."""
        schema = self.of(kind)
        if "$ref" in schema:
            schema = self.defined[_named(schema)]
        return schema.get("properties", {}), schema.get("required", ())

    def event(self, kind: Any) -> dict[str, Any]:
        """Server-sent events of a type as what is answered."""
        schema = self.of(kind)
        # Of a union the piece of an answer, and what ends it.
        names = ("TextEvent", "Told") if "discriminator" in schema else (_named(schema),)
        examples = {name: {"value": _sent(self._examples[name])} for name in names}
        written: dict[str, Any] = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
        data = written
        if not any("event" in one["value"] for one in examples.values()):
            # Of OpenAI's streams those without names of events end with a word, or as an answer that fails does.
            written["contentSchema"] = {"anyOf": [schema, self.of(OpenAIError)]}
            data = {"anyOf": [{"const": "[DONE]"}, written]}
            examples["end"] = {"value": {"data": "[DONE]"}}
        fields = {"id": {"type": "string"}, "event": {"type": "string"}, "data": data}
        return {"schema": {"type": "object", "properties": fields, "required": ["data"]}, "examples": examples}


def _examples() -> tuple[dict[str, Any], dict[str, Any]]:
    """Of parts of paths, by group and name, and of shapes. One may hold others: each is written down once."""
    text = resources.files("aibox.server.shapes").joinpath("examples.json").read_text("utf-8")
    shapes: dict[str, Any] = {}

    def held(value: dict[str, Any]) -> Any:
        return shapes[value["$ref"]] if "$ref" in value else value

    given = json.loads(text)
    for name, example in given["shapes"].items():
        shapes[name] = json.loads(json.dumps(example), object_hook=held)
    return given["parts"], shapes


def _named(schema: Mapping[str, Any]) -> str:
    name: str = schema["$ref"].rpartition("/")[2]
    return name


def _sent(example: Mapping[str, Any]) -> dict[str, str]:
    """An event as it is sent; those of OpenAI's chat have no name."""
    data = {"data": json.dumps(example, separators=(",", ":"), ensure_ascii=False)}
    return {"event": example["type"], **data} if "type" in example else data


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    summary, _, more = route.about.partition("\n\n")
    made: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.name.partition(".")[0]],
        "summary": " ".join(summary.split()),
        "x-roles": [str(role) for role in route.roles],
    }
    if route.scope is not None:
        made["x-scope"] = str(route.scope)
    if more:
        made["description"] = more
    if not route.roles:
        made["security"] = []
    if parameters := _parameters(route, schemas):
        made["parameters"] = parameters
    if route.body is bytes:
        media = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        # An empty file is a file.
        made["requestBody"] = {"required": False, "content": media}
    elif route.body is not None:
        content: dict[str, Any] = {"schema": schemas.of(route.body)}
        if route.examples:
            content["examples"] = {f"{n}": {"value": dict(one)} for n, one in enumerate(route.examples, 1)}
        made["requestBody"] = {"required": _needed(route.body), "content": {"application/json": content}}
    made["responses"] = _responses(route, schemas)
    return made


def _needed(body: type[BaseModel]) -> bool:
    """Whether something has to be sent: what is not is read as an object without fields."""
    try:
        body.model_validate({})
    except ValidationError:
        return True
    return False


def _parameters(route: Route, schemas: _Schemas) -> list[dict[str, Any]]:
    group = route.name.partition(".")[0]
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": schemas.of(kind),
            "example": schemas.parts[f"{group}.{name}"],
        }
        for name, kind in route.parts.items()
    ]
    if route.query is not None:
        fields, required = schemas.fields(route.query)
        for name, schema in fields.items():
            one: dict[str, Any] = {"name": name, "in": "query", "required": name in required, "schema": schema}
            if "description" in schema:
                one["description"] = schema["description"]
            found.append(one)
    read = ["Correlation", "Traceparent"]
    if route.roles:
        read.insert(0, "Case")
        if _once(route):
            read.append("Once")
        if route.matches and route.changes:
            read.append("Match")
    return found + [{"$ref": f"#/components/parameters/{name}"} for name in read]


def _once(route: Route) -> bool:
    return bool(route.roles) and route.method in METHODS and not route.path.startswith(UNKEPT)


def _tagged(route: Route) -> bool:
    return route.matches and route.answer is not None


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _responses(route: Route, schemas: _Schemas) -> dict[str, Any]:
    more = [*(("Idempotency-Replayed",) if _once(route) else ()), *(("ETag",) if _tagged(route) else ())]
    good: dict[str, Any] = {"description": "Done.", "headers": _headers(*(_LIMITED if route.roles else _ALWAYS), *more)}
    if route.streams:
        good["content"] = {route.media: schemas.event(route.answer)}
        good["description"] = "A stream of events. The schema is that of each of them; its data is JSON."
    elif route.answer in (bytes, str):
        good["content"] = {route.media: {"schema": {"type": "string"}}}
    elif route.answer is not None:
        good["content"] = {route.media: {"schema": schemas.of(route.answer)}}
        if route.event is not None:
            good["content"]["text/event-stream"] = schemas.event(route.event)
    shape = OpenAIError if route.openai else Problem
    told = {str(status): _fault(shape, status) for status in _TOLD if _may(status, route)}
    return {str(route.status): good, **told, "default": _fault(shape, 0)}


def _fault(shape: type[Answer], status: int) -> dict[str, str]:
    return {"$ref": f"#/components/responses/{shape.__name__}{status or ''}"}


def _faults(schemas: _Schemas) -> dict[str, Any]:
    """What goes wrong, in both shapes."""
    found = {}
    for shape, media in ((Problem, "application/problem+json"), (OpenAIError, "application/json")):
        for status, text in {**_TOLD, 0: "Something outside aibox failed, or is not there now."}.items():
            content = {media: {"schema": schemas.of(shape)}}
            more = {0: ("Retry-After",), 401: ("WWW-Authenticate",), 429: ("Retry-After",)}.get(status, ())
            headers = _headers(*(_ALWAYS if status == 401 else _LIMITED), *more)
            found[f"{shape.__name__}{status or ''}"] = {"description": text, "headers": headers, "content": content}
    return found


def _may(status: int, route: Route) -> bool:
    if status == 413:
        return route.body is not None
    if status == 409:
        return bool(route.roles) and route.changes
    if not route.roles and status in (401, 403):
        return False
    return status != 404 or bool(route.parts) or route.changes
