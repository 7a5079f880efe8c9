"""The table of routes: what the server serves is what the document says, because both are made of this."""

from __future__ import annotations

import json
from typing import Any

from aibox.server.admin_api import AdminAPI, KeysAPI
from aibox.server.approvals_api import ApprovalsAPI
from aibox.server.chat_api import ChatAPI
from aibox.server.document_api import DocumentAPI
from aibox.server.evidence_api import AuditAPI, ReceiptsAPI
from aibox.server.guard_api import GuardAPI
from aibox.server.health_api import HealthAPI
from aibox.server.hot import MAX_BODY_BYTES, ROUTES
from aibox.server.inference_api import InferenceAPI
from aibox.server.memory_api import KnowledgeAPI, MemoryAPI
from aibox.server.metrics_api import MetricsAPI
from aibox.server.observability_api import ObservabilityAPI
from aibox.server.openapi import document
from aibox.server.people_api import TenantsAPI, UsersAPI
from aibox.server.policies_api import PoliciesAPI
from aibox.server.ready_api import ReadyAPI
from aibox.server.route import ASKS, Route, routes_of
from aibox.server.sandbox_api import SandboxAPI
from aibox.server.sessions_api import SessionsAPI
from aibox.server.shapes import inference as shapes
from aibox.server.tenant_api import TenantAPI

KINDS: tuple[type, ...] = (
    InferenceAPI,
    ChatAPI,
    SessionsAPI,
    ApprovalsAPI,
    GuardAPI,
    MemoryAPI,
    KnowledgeAPI,
    SandboxAPI,
    TenantAPI,
    ReceiptsAPI,
    AuditAPI,
    KeysAPI,
    TenantsAPI,
    UsersAPI,
    PoliciesAPI,
    AdminAPI,
    ObservabilityAPI,
    HealthAPI,
    ReadyAPI,
    MetricsAPI,
    DocumentAPI,
)
"""Whose methods are routes."""
_SAID = "What is the capital of Hungary?"
_HOT: dict[str, tuple[str, Any, Any, Any, dict[str, Any]]] = {
    "chat": (
        "OpenAI's Chat Completions, of a model or of an agent; with `stream` as events.",
        shapes.ChatCompletionRequest,
        shapes.ChatCompletion,
        shapes.ChatChunk,
        {"model": "agent:default", "messages": [{"role": "user", "content": _SAID}]},
    ),
    "completions": (
        "OpenAI's Completions, of a model; with `stream` as events.",
        shapes.CompletionRequest,
        shapes.Completion,
        shapes.Completion,
        {"model": "default", "prompt": "Budapest is"},
    ),
    "embeddings": (
        "OpenAI's Embeddings.",
        shapes.EmbeddingRequest,
        shapes.Embeddings,
        None,
        {"model": "embedding", "input": ["Budapest"]},
    ),
    "responses": (
        "OpenAI's Responses, of a model; with `stream` as events. Nothing is kept between calls.",
        shapes.ResponseRequest,
        shapes.Response,
        shapes.ResponseEvent,
        {"model": "default", "input": _SAID},
    ),
}


def hot() -> list[Route]:
    """The routes that the hot path answers itself."""
    found = []
    for path, api in ROUTES.items():
        about, asked, answered, event, example = _HOT[api]
        found.append(
            Route(
                method="POST", path=path, name=f"openai.{api}", roles=ASKS, about=about, body=asked, answer=answered,
                event=event, openai=True, records=True, watched=True, max_body_bytes=MAX_BODY_BYTES,
                examples=(example,),
            )
        )  # fmt: skip
    return found


def table() -> list[Route]:
    """Every route, in the order of the document."""
    return [*hot(), *(route for kind in KINDS for route, _ in routes_of(kind))]


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document of all of them."""
    return document(table())


def written() -> str:
    """The document as it lies in `docs/openapi.json`."""
    return json.dumps(openapi(), indent=1, ensure_ascii=False) + "\n"
