"""The ASGI application: HTTP around the library, and no behaviour of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import get_args

from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aibox.agents.agent import Agent
from aibox.audit.chain import AuditChain
from aibox.box import Box
from aibox.errors import AIBoxError
from aibox.server import stores
from aibox.server.admin_api import AdminAPI, KeysAPI
from aibox.server.api_keys import ApiKeys
from aibox.server.approvals_api import ApprovalsAPI
from aibox.server.auth import Callers
from aibox.server.buckets import Buckets
from aibox.server.chat_api import ChatAPI
from aibox.server.document_api import DocumentAPI
from aibox.server.endpoint import ByMethod, Served, failed
from aibox.server.evidence_api import AuditAPI, ReceiptsAPI
from aibox.server.gate import OUR_FAULT, Gate
from aibox.server.guard_api import GuardAPI
from aibox.server.health_api import HealthAPI
from aibox.server.hot import ROUTES, HotPath
from aibox.server.inference_api import InferenceAPI
from aibox.server.log import Log
from aibox.server.memory_api import KnowledgeAPI, MemoryAPI
from aibox.server.metrics import Metrics
from aibox.server.metrics_api import MetricsAPI
from aibox.server.observability_api import ObservabilityAPI
from aibox.server.once import Once
from aibox.server.people_api import TenantsAPI, UsersAPI
from aibox.server.policies_api import PoliciesAPI
from aibox.server.principal import Principal
from aibox.server.rates import RateLimits
from aibox.server.ready_api import ReadyAPI
from aibox.server.reload import Reload
from aibox.server.route import routes_of
from aibox.server.sandbox_api import SandboxAPI
from aibox.server.sessions_api import SessionsAPI
from aibox.server.shut import Shut
from aibox.server.table import openapi
from aibox.server.tenant_api import TenantAPI

NOTHINGS = 2**53 - 1
"""A number that an entry might have, and none ever will."""


def create_app(
    box: Box,
    *,
    callers: Callers,
    agents: Mapping[str, Agent] | None = None,
    keys: ApiKeys | None = None,
    log: Log | None = None,
    rates: RateLimits | None = None,
    reload: Reload | None = None,
    kept: stores.Kept | None = None,
) -> Gate:
    """Serve an open box. `agents` are offered as `agent:NAME`; None offers the box's default agent.

    `keys` are the API keys that administrators may manage; None where there are none. `rates` None holds the policy's
    rates in this process. `reload` reads the configuration anew, where there is one. `kept` are the server's stores;
    None opens them. `await kept.in_force.start()` before agents are made also has runs that a stop broke off go on
    under what was written as policies.
    """
    offered = agents if agents is not None else {"default": box.agent()}
    rates = rates or RateLimits(Buckets())
    gauges: dict[str, tuple[str, Callable[[], float]]] = {
        "aibox_requests_under_way": ("Requests under way.", lambda: gate.live)
    }
    counts: dict[str, tuple[str, Callable[[], Mapping[str, float]]]] = {}
    if (traces := box.traces) is not None:
        gauges["aibox_trace_spans_waiting"] = ("Spans that wait to be sent.", lambda: traces.waiting)
        counts["aibox_trace_spans_total"] = ("Spans that were sent, or dropped and why.", traces.counts)
    if (webhooks := box.webhooks) is not None:
        about = "Attempts to deliver webhooks, by outcome, and deliveries that were given up."
        counts["aibox_webhooks_total"] = (about, lambda: webhooks.counts)
    metrics = Metrics(gauges, counts=counts)
    people, answers, policies, in_force = kept or stores.keep(box)
    if keys is not None:
        box.audit.register("keys", keys)

    async def admits(who: Principal) -> None:
        await people.admit(who)
        await in_force.admit(who)

    callers.admits = admits
    shut = Shut(
        people,
        keys,
        gate=lambda: gate,
        sandbox=lambda: vars(box).get("sandbox"),
        log=log,
    )
    people.on_look = shut.begin
    box.keep(shut)
    api = InferenceAPI(box, agents=offered)
    parts = (
        api,
        ChatAPI(offered),
        SessionsAPI(box.state, agents=offered),
        ApprovalsAPI(box.state, agents=offered),
        GuardAPI(box),
        MemoryAPI(box),
        KnowledgeAPI(box),
        SandboxAPI(box),
        TenantAPI(box),
        ReceiptsAPI(box.audit),
        AuditAPI(box.audit),
        KeysAPI(box, keys, shut),
        TenantsAPI(box, people, shut, in_force),
        UsersAPI(box, people, shut),
        PoliciesAPI(box, policies, in_force),
        AdminAPI(box, reload),
        ObservabilityAPI(box),
        HealthAPI(),
        ReadyAPI(box, people=people.check, keys=None if keys is None else keys.check, redis=rates.check),
        MetricsAPI(metrics),
        DocumentAPI(openapi),
    )
    rest = Starlette(
        routes=_routes(parts, callers=callers, audit=box.audit),
        exception_handlers={
            AIBoxError: failed,
            HTTPException: _unknown,
            ClientDisconnect: _gone,
            Exception: _bug,
        },
    )
    # A path that is nearly one is none: behind a proxy that ends TLS a redirect would lead to plain HTTP, and clients
    # go there with all that they say.
    rest.router.redirect_slashes = False
    limits = box.settings.server.limits
    hot = HotPath(api, callers=callers, rest=rest, max_body=limits.body_mib << 20)
    gate = Gate(
        hot,
        callers=callers,
        limits=limits,
        rates=rates,
        rules=box.rules,
        once=Once(answers),
        log=log,
        on_end=metrics.ended,
        traces=traces,
    )
    box.on_call += [gate.called, metrics.called]
    return gate


def _routes(parts: Sequence[object], *, callers: Callers, audit: AuditChain) -> list[Route]:
    """What the parts declare, bound to them."""
    made: dict[str, dict[str, Served]] = {}
    for part in parts:
        for route, name in routes_of(type(part)):
            served = Served(route, getattr(part, name), callers=callers, audit=audit)
            made.setdefault(route.path, {})[route.method] = served
    # What is written out comes before what is a parameter: `/v1/audit/checkpoint` is no entry.
    paths = sorted(made, key=lambda path: path.replace("{", "~"))
    bound = [Route(_numbered(path, made[path]), ByMethod(made[path])) for path in paths]
    # The hot path answers these; any other method comes through to here.
    return [*(Route(path, ByMethod({}, also=["POST"])) for path in ROUTES), *bound]


def _numbered(path: str, served: Mapping[str, Served]) -> str:
    """The path as Starlette reads it: a part that is a number matches nothing else."""
    parts = {name: kind for one in served.values() for name, kind in one.route.parts.items()}
    for name, kind in parts.items():
        if get_args(kind)[:1] == (int,):
            path = path.replace(f"{{{name}}}", f"{{{name}:number}}")
    return path


class _Number(IntegerConvertor):
    """Digits, however many. Of more than Python reads (4300) it makes a number that nothing has."""

    def convert(self, value: str) -> int:
        try:
            return super().convert(value)
        except ValueError:
            return NOTHINGS


register_url_convertor("number", _Number())


async def _unknown(_: Request, error: Exception) -> Response:
    """A path or method that is not there, as a problem (RFC 9457 sec. 4.2.1)."""
    assert isinstance(error, HTTPException)
    told = {"type": "about:blank", "title": error.detail, "status": error.status_code, "detail": error.detail}
    headers = dict(error.headers or {})
    return JSONResponse(
        {**told, "hint": "GET /v1/openapi.json lists what there is"},
        status_code=error.status_code, headers=headers, media_type="application/problem+json",
    )  # fmt: skip


async def _bug(request: Request, _: Exception) -> Response:
    """A bug of ours, in the shape of every other error; the gate, which it comes to next, says in the log where."""
    return await failed(request, AIBoxError(OUR_FAULT))


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)
