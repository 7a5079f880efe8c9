"""The OpenAPI document: made of what is served, and true of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from platform_world import ROLES, Asked, Person, world

from aibox.server.app import create_app
from aibox.server.asked import CASE, CORRELATION, TRACEPARENT
from aibox.server.table import openapi, table, written

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = openapi()
OPERATIONS = [
    pytest.param(path, method, operation, id=operation["operationId"])
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def test_the_document_in_the_tree_is_the_one_that_is_served() -> None:
    """`docs/openapi.json` is what `aibox serve --openapi` prints."""
    assert (ROOT / "docs" / "openapi.json").read_text("utf-8") == written(), "aibox serve --openapi > docs/openapi.json"


def test_every_route_has_a_name_and_a_place_of_its_own() -> None:
    """No two routes answer one request, and each can be named in the evidence."""
    routes = table()
    assert len({route.name for route in routes}) == len(routes)
    assert len({(route.method, route.path) for route in routes}) == len(routes)


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_an_operation_says_what_a_client_must_know(path: str, method: str, operation: dict[str, Any]) -> None:
    """A sentence, the roles, and where something is sent an example that is what the schema asks for."""
    assert operation["summary"].endswith(".")
    assert operation["x-roles"] or operation["security"] == []
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return
    assert content["examples"], f"{method} {path} has no example"
    schema = {**content["schema"], "components": DOCUMENT["components"]}
    for example in content["examples"].values():
        Draft202012Validator(schema).validate(example["value"])


def test_headers_that_are_read_and_written_are_declared() -> None:
    """The correlation id everywhere, a key to be done once where something is done, the limits in every answer."""
    read = {"X-Correlation-ID": CORRELATION, "traceparent": TRACEPARENT, "X-Aibox-Case": CASE}
    shared = DOCUMENT["components"]["parameters"]
    named = {one["name"]: f"#/components/parameters/{key}" for key, one in shared.items()}
    own = {"idempotency-key", "if-match"}
    assert {name.lower() for name in named} == {*(raw.decode() for raw in read.values()), *own}
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            told = {one.get("$ref") for one in operation["parameters"]}
            good = next(one for status, one in operation["responses"].items() if status.startswith("2"))
            assert named["X-Correlation-ID"] in told
            assert "X-Correlation-ID" in good["headers"]
            assert (named["X-Aibox-Case"] in told) == bool(operation["x-roles"])
            once = method != "get" and bool(operation["x-roles"]) and not path.startswith("/v1/admin/keys")
            assert (named["Idempotency-Key"] in told) == once, path
            tagged = path.startswith("/v1/admin/policy/{level}") and not path.endswith("/versions")
            assert (named["If-Match"] in told) == (tagged and method != "get"), path
            assert ("ETag" in good["headers"]) == tagged, path
            if operation["x-roles"]:
                refused = DOCUMENT["components"]["responses"][operation["responses"]["429"]["$ref"].rpartition("/")[2]]
                assert {"RateLimit", "RateLimit-Policy"} <= {*good["headers"], *refused["headers"]}
                assert "Retry-After" in refused["headers"]


def test_every_reference_leads_somewhere() -> None:
    """A schema that is named is there."""
    text = json.dumps(DOCUMENT)
    named = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert named <= set(DOCUMENT["components"]["schemas"])


def test_the_app_serves_the_table(tmp_path: Path) -> None:
    """Each row of the table has a route in the application, and the application no other."""
    from aibox.box import Box
    from aibox.server.auth import Callers
    from aibox.server.hot import ROUTES
    from aibox.settings import Settings

    box = Box(Settings(home=tmp_path))
    box.__dict__["_open"] = True  # nothing of it is used
    app = create_app(box, callers=Callers(), agents={})
    served = {(method, served.route.path) for one in app.rest.routes for method, served in one.app.served.items()}
    served |= {("POST", path) for path in ROUTES}
    assert served == {(route.method, route.path) for route in table()}


@pytest.mark.parametrize(
    ("kind", "body", "holds"),
    [
        ("NewPolicy", {"toml": "version = 1"}, True),
        ("NewPolicy", {"policy": {}, "toml": None}, True),
        ("NewPolicy", {}, False),
        ("NewPolicy", {"toml": "version = 1", "policy": {}}, False),
        ("NewKey", {"user": "ci", "models": ["m"], "scopes": ["inference"]}, True),
        ("NewKey", {"user": "ci", "models": [], "scopes": []}, True),
        ("NewKey", {"user": "ci", "models": ["m"]}, False),
        ("NewKey", {"user": "ci", "models": ["m"], "scopes": ["agents", "inference"]}, False),
        ("NewMemory", {"text": "x", "label": "confidential/PHI, MNPI"}, True),
        ("NewMemory", {"text": "x", "label": "Confidential"}, False),
    ],
)
@pytest.mark.anyio
async def test_what_a_schema_says_of_several_fields_is_what_is_held(
    tmp_path: Path, kind: str, body: dict[str, Any], *, holds: bool
) -> None:
    """What the document allows is done, and what it does not is a 400."""
    schema = {"$ref": f"#/components/schemas/{kind}", "components": DOCUMENT["components"]}
    assert Draft202012Validator(schema).is_valid(body) == holds
    path = {"NewPolicy": "/v1/admin/policy/own", "NewKey": "/v1/admin/keys", "NewMemory": "/v1/memory"}[kind]
    async with world(tmp_path) as w:
        method = "put" if kind == "NewPolicy" else "post"
        answered = await w.send(method, path, Asked(body=body), Person("acme", "eva", ROLES).token())
    assert (answered.status_code < 300) == holds, answered.text
    if body == {}:
        assert answered.json()["detail"] == "the body: give `toml` or `policy`"
