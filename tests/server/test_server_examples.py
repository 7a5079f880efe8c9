"""The examples of the OpenAPI document: each is one that its schema allows, and one that a served route has given."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from platform_world import ROLES, Asked, Person, World, world
from pydantic import TypeAdapter
from test_server_isolation import ABSENT, OPERATIONS, ROWS, Model
from test_server_isolation import asked as request_of

import aibox
from aibox.server.shapes import inference
from aibox.server.table import openapi, table

pytestmark = pytest.mark.anyio

DOCUMENT = openapi()
SHAPES: dict[str, Any] = DOCUMENT["components"]["schemas"]
EVERY = Person("acme", "eva", ROLES)
UNASKED = {"health.healthz", "ready.readyz"}
"""Routes that the matrix has no row for, as nobody is refused."""
NEVER_HERE = {"openai.embeddings", "openai.responses"}
"""A vector has some hundred numbers, and its example three; what a response says besides, its server chooses."""


def examples() -> Iterator[tuple[str, Any, Any]]:
    """Where each stands, the schema, and the example."""
    for name, schema in SHAPES.items():
        yield from ((name, schema, one) for one in schema.get("examples", ()))
    for name, (_, _, operation) in OPERATIONS.items():
        for one in operation["parameters"]:
            if "schema" in one:
                schema = one["schema"]
                given = [*([one["example"]] if "example" in one else ()), *schema.get("examples", ())]
                yield from ((f"{name}, {one['name']}", schema, example) for example in given)
        for response in operation["responses"].values():
            for media, content in response.get("content", {}).items():
                for key, one in content.get("examples", {}).items():
                    yield f"{name}, {media}, {key}", content["schema"], one["value"]


def valid(schema: Any, example: Any) -> None:
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(example)


@pytest.mark.parametrize(("schema", "example"), [pytest.param(*more, id=name) for name, *more in examples()])
def test_an_example_is_what_its_schema_allows(schema: Any, example: Any) -> None:
    """And what an event's data holds is what its own schema allows."""
    valid(schema, example)
    data = schema.get("properties", {}).get("data", {})
    for written in (data, *data.get("anyOf", ())):
        if "contentSchema" in written and example["data"] != "[DONE]":
            valid(written["contentSchema"], json.loads(example["data"]))


def test_what_is_answered_has_an_example() -> None:
    """Every JSON answer, every stream, both shapes of an error, every kind of event, and every parameter."""
    for name, (_, _, operation) in OPERATIONS.items():
        for status, response in operation["responses"].items():
            if not status.startswith("2"):
                continue
            for media, content in response.get("content", {}).items():
                if media == "application/json" and name != "document.openapi":
                    assert SHAPES[content["schema"]["$ref"].rpartition("/")[2]]["examples"], name
                if media == "text/event-stream":
                    assert len(content["examples"]) >= 1, name
        for one in operation["parameters"]:
            if "schema" not in one:
                continue
            # What may be sent is an example, and so is what holds where nothing is.
            told = json.dumps(one)
            shown = any(f'"{word}": ' in told for word in ("example", "examples", "enum"))
            assert shown or one["schema"].get("default") not in (None, ""), (name, one)
    assert SHAPES["Problem"]["examples"]
    assert SHAPES["OpenAIError"]["examples"]
    for kind in SHAPES["SubagentEvent"]["properties"]["event"]["oneOf"]:
        assert SHAPES[kind["$ref"].rpartition("/")[2]]["examples"], kind


def test_an_example_has_every_field_of_its_shape_and_no_other() -> None:
    """Read as the shape and written again it is the same."""
    kinds = {getattr(kind, "__name__", ""): kind for one in table() for kind in (one.answer, one.event)}
    known = {name: kinds[name] for name in SHAPES if name in kinds and not hasattr(inference, name)}
    assert len(known) > 40
    for name, kind in known.items():
        (example,) = SHAPES[name]["examples"]
        adapter = TypeAdapter(kind)
        assert adapter.dump_python(adapter.validate_python(example), mode="json") == example, name


def test_the_receipt_of_the_document_holds(tmp_path: Path) -> None:
    """It is one that a server gave, and can be verified as any."""
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(SHAPES["ReceiptShown"]["examples"][0]))
    assert aibox.verify(path).entries == 2


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def w(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("examples"), model=Model()) as made:
        yield made


def shape(value: Any, schema: Any) -> Any:
    """Names and kinds of JSON. What is free in the schema, empty or null says nothing of them."""
    if "$ref" in schema:
        schema = SHAPES[schema["$ref"].rpartition("/")[2]]
    if isinstance(value, dict):
        if not (fields := schema.get("properties")):
            return {}
        return {key: shape(one, fields.get(key, {})) for key, one in value.items()}
    if isinstance(value, list):
        return [shape(one, schema.get("items", {})) for one in value[:1]]
    return "number" if type(value) in (int, float) else type(value).__name__


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        free = not (one and other)
        return free or (one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one))
    if isinstance(one, list) and isinstance(other, list):
        return all(map(alike, one, other))
    return one == other or "NoneType" in (one, other)


ANSWERED = [
    pytest.param(name, response["content"]["application/json"]["schema"], id=name)
    for name, (_, _, operation) in OPERATIONS.items()
    for status, response in operation["responses"].items()
    if status.startswith("2") and "application/json" in response.get("content", {})
    if name not in {*NEVER_HERE, "document.openapi"}
]


@pytest.mark.parametrize(("name", "schema"), ANSWERED)
async def test_a_served_route_answers_as_its_example(w: World, name: str, schema: Any) -> None:
    """The matrix's own request of each route, and what came: the names and kinds of the example, and no others."""
    method, path, _ = OPERATIONS[name]
    asked = Asked() if name in UNASKED else await request_of(w, name, EVERY)
    answered = await w.send(method, path, asked, EVERY.token())
    assert answered.status_code < 300, answered.text
    (example,) = SHAPES[schema["$ref"].rpartition("/")[2]]["examples"]
    found, told = shape(answered.json(), schema), shape(example, schema)
    found.pop("aibox", None)  # of an agent's answer on OpenAI's routes
    assert alike(found, told), (found, told)


async def test_an_error_is_told_as_its_example(w: World) -> None:
    """In both shapes, to the letter."""
    problem = await w.send("get", "/v1/memory/{id}", Asked(path=ABSENT), EVERY.token())
    body = {"model": "llama", "messages": [{"role": "user", "content": "hello"}]}
    error = await w.send("post", "/v1/chat/completions", Asked(body=body), EVERY.token())
    assert [problem.json()] == SHAPES["Problem"]["examples"]
    assert [error.json()] == SHAPES["OpenAIError"]["examples"]


@pytest.mark.parametrize("path", ["/v1/chat/stream", "/v1/chat/completions"])
async def test_a_stream_says_what_its_examples_say(w: World, path: str) -> None:
    """Every event that comes is one that the document allows, and the ones of its examples are among them."""
    content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    body: Any = {"message": "hello"}
    if path.endswith("completions"):
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    answered = await w.send("post", path, Asked(body=body), EVERY.token())
    came = [
        dict(line.split(": ", 1) for line in event.split("\n"))
        for event in answered.text.strip().split("\n\n")
    ]  # fmt: skip
    seen = set()
    for event in came:
        valid(content["schema"], event)
        seen.add((event.get("event"), event["data"] == "[DONE]"))
    for one in content["examples"].values():
        assert (one["value"].get("event"), one["value"]["data"] == "[DONE]") in seen


@pytest.mark.parametrize(
    "name", ["approvals.show", "memory.get", "knowledge.remove", "sandbox.read", "receipts.get", "keys.revoke"]
)
async def test_an_id_in_a_path_looks_as_its_example(w: World, name: str) -> None:
    """As long as those that are given out, and of the same signs at the same places."""
    (made,) = (await ROWS[name](w, EVERY)).path.values()
    (example,) = [one["example"] for one in OPERATIONS[name][2]["parameters"] if one.get("in") == "path"]
    assert [sign == "-" for sign in made] == [sign == "-" for sign in str(example)] or name == "sandbox.read"
    assert len(made) == len(str(example))
