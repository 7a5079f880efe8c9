"""Traces on their way to a collector: gathered, bounded, sent in batches by OTLP. A turn never waits for them.

To a host that is not the operator's own they pass the door: the tenant's policy must name the host, each batch is on
record before it is sent, and ids that a caller chose are told as digests.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

from aibox.agents.http import Http, Passing, whole
from aibox.errors import AIBoxError, LimitError, StoreError, UpstreamError
from aibox.inference.accounts import Call
from aibox.inference.addresses import is_inside
from aibox.outbound import otlp
from aibox.outbound.harmless import harmless
from aibox.outbound.span import UNTRACED, Place, Span, Value, kept, new_span, new_trace, read_parent
from aibox.outbound.turns import TurnTrace
from aibox.policy.policy import Policy
from aibox.protocols import Recorder
from aibox.settings import read_secret
from aibox.settings_outbound import TraceSettings
from aibox.types import Label, Level, Scope

QUEUE = 4096
"""Spans that wait, of which the texts are `QUEUE_MIB` at most; what comes then is dropped, and counted."""
QUEUE_MIB = 16
MAX_CHARS = 256
"""Of a name, and of an attribute that is no text of anybody's: ids and reasons are a model server's own words."""
MAX_LISTED = 64
BATCH = 512
LINGER_S = 2.0
TIMEOUT_S = 10.0
ATTEMPTS = 5
BACKOFF_S = 1.0
MAX_WAIT_S = 30.0
CLOSE_S = 3.0
"""How long the last spans may take when everything stops."""
SYSTEM = "aibox"
"""In whose name what is nobody's turn is recorded."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})
_RETRYABLE = (429, 502, 503, 504)


class Traces:
    """Sends spans. `rules` is the policy of a tenant, `recorder` keeps the evidence of what leaves."""

    def __init__(
        self, settings: TraceSettings, *, rules: Callable[[str], Policy], recorder: Recorder, version: str = ""
    ) -> None:
        otlp.require()
        self.rules = rules
        self.sent = 0
        self.dropped: Counter[str] = Counter()
        """By reason: `full`, `door`, `failed`, `rejected` by the collector, or a `bug` of ours."""
        self.last_error, self.last_error_us = "", 0
        """Why a batch was last not taken, in our own words, and when (Unix microseconds); empty: nothing has failed."""
        self.calls: dict[str, Span] = {}
        """Model calls under way, by their spans."""
        self.host = urlsplit(settings.url).hostname or ""
        self.external = settings.external if settings.external is not None else not is_inside(self.host)
        self._url = settings.url
        self._ratio = settings.ratio
        self._recorder = recorder
        self._http = Http(private_hosts=() if self.external else [self.host], inside=True, timeout_s=TIMEOUT_S)
        self._headers = _authorization(settings)
        self._resource: dict[str, Value] = {"service.name": "aibox", "service.instance.id": uuid.uuid4().hex}
        if version:
            self._resource["service.version"] = version
        self._waiting: deque[Span] = deque()
        self._texts = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._refused: set[str] = set()
        self._denied: list[str] = []

    @harmless
    def begin(self, traceparent: bytes, correlation: str) -> Place | None:
        """Where a request stands that has just come; None when it is not to be traced."""
        parent = read_parent(traceparent) if traceparent else None
        if parent is not None:
            trace, span, sampled = parent
            return Place(trace, new_span(), span) if sampled else None
        trace = new_trace(correlation)
        return Place(trace, new_span()) if kept(trace, self._ratio) else None

    @harmless
    def request(
        self, place: Place, *, tenant: str, correlation: str, route: str, method: str, status: int, took_s: float
    ) -> None:
        """A request is over."""
        ends = time.time_ns()
        method = method if method in _METHODS else "_OTHER"  # as the conventions have it: a caller may send any word
        span = Span(place, f"{method} {route}", tenant, "server", ends - round(took_s * 1e9), ends)
        span.attributes = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
        if not self.external:
            span.attributes["aibox.correlation"] = correlation
        if status >= 500:
            span.error = span.attributes["error.type"] = str(status)
        self.add(span)

    @harmless
    def turn(self, turn: str, *, scope: Scope, agent: str) -> TurnTrace | None:
        """Hears of a turn, of an agent or, where that is empty, of a model without one; None when it is not traced."""
        if scope.trace == UNTRACED:
            return None
        if scope.trace:
            trace, _, parent = scope.trace.partition("-")
        else:
            trace, parent = new_trace(scope.correlation), ""
            if not kept(trace, self._ratio):
                return None
        place = Place(trace, new_span(), parent) if agent or not parent else Place(trace, parent)
        return TurnTrace(self, place, scope=scope, turn=turn, agent=agent)

    @harmless
    def called(self, call: Call) -> None:
        """A model call has ended: what is known of it is added to its span, or is one where nobody began one."""
        trace, _, within = call.scope.trace.partition("-")
        if not within:
            return
        span = self.calls.get(within)
        own = span is None
        if span is None:
            ends = time.time_ns()
            place, begins = Place(trace, new_span(), within), ends - round(call.total_s * 1e9)
            span = Span(place, f"chat {call.model}", call.scope.tenant, "client", begins, ends)
            span.attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": call.model}
        span.attributes |= {
            "gen_ai.provider.name": call.backend,
            "gen_ai.usage.input_tokens": call.usage.input_tokens,
            "gen_ai.usage.output_tokens": call.usage.output_tokens,
            "aibox.external": call.external,
        }
        if call.first_token_s is not None:
            span.attributes["gen_ai.response.time_to_first_chunk"] = call.first_token_s
        if call.usage.cost_usd is not None:
            span.attributes["aibox.cost_usd"] = call.usage.cost_usd
        if own:
            if call.outcome != "answered":
                span.error = span.attributes["error.type"] = call.outcome
            self.add(span)

    def may_tell(self, tenant: str, label: Label) -> bool:
        """Whether a text with this label may be told where the spans of the tenant go."""
        return not self.external or label <= self.rules(tenant).egress.ceiling

    def add(self, span: Span) -> None:
        """A span that is complete. Never waits and never raises."""
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        if self.external and not self._passes(span.tenant):
            self._shut(span.tenant)
            return
        span.name = span.name[:MAX_CHARS]
        for name, value in span.attributes.items():
            if isinstance(value, str) and len(value) > MAX_CHARS:
                span.attributes[name] = value[:MAX_CHARS]
            elif isinstance(value, list):
                span.attributes[name] = [one[:MAX_CHARS] for one in value[:MAX_LISTED]]
        size = sum(map(len, span.texts.values()))
        if len(self._waiting) >= QUEUE or self._texts + size > QUEUE_MIB << 20 or self._ending.is_set():
            self.dropped["full"] += 1
            return
        self._waiting.append(span)
        self._texts += size
        if len(self._waiting) >= BATCH:
            self._wake.set()

    def counts(self) -> dict[str, float]:
        """What became of spans since the start: `sent`, or dropped, by reason."""
        return {"sent": self.sent, **{reason: count for reason, count in self.dropped.items() if count}}

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def close(self) -> None:
        """Send what waits, for a few seconds. Closing twice is allowed."""
        self._ending.set()
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_S)
            self._task.cancel()
            await asyncio.wait([self._task])
            self.dropped["failed"] += len(self._waiting)
            self._waiting.clear()

    def _passes(self, tenant: str) -> bool:
        rules = self.rules(tenant).egress
        return rules.serves(tenant) and rules.allows_host(self.host)

    def _shut(self, tenant: str) -> None:
        """The door is shut for a tenant's spans. That is on record once, and not for each of them."""
        self.dropped["door"] += 1
        if tenant not in self._refused:
            self._refused.add(tenant)
            self._denied.append(tenant)

    async def _work(self) -> None:
        while not (self._ending.is_set() and not self._waiting):
            await _until(self._wake, LINGER_S)
            if not self._ending.is_set():
                self._wake.clear()
            while self._denied:
                await self._record_denied(self._denied.pop())
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                self._texts -= sum(len(text) for span in batch for text in span.texts.values())
                await self._deliver(batch)

    async def _deliver(self, batch: list[Span]) -> None:
        if self.external:
            # A policy may have been read anew since they were taken in.
            passing = [span for span in batch if self._passes(span.tenant)]
            self.dropped["door"] += len(batch) - len(passing)
            batch = [replace(span, place=_disguised(span)) for span in passing]
            if not batch:
                return
        try:
            taken = await self._taken(batch)
        except asyncio.CancelledError:
            self.dropped["failed"] += len(batch)
            raise
        except Exception:  # noqa: BLE001 - one batch that cannot be sent must not be the last; /metrics counts it
            self.dropped["bug"] += len(batch)
            self._failed("spans that cannot be encoded or sent: a bug of ours")
            return
        self.dropped["failed"] += 0 if taken else len(batch)

    async def _taken(self, batch: Sequence[Span]) -> bool:
        """Whether the collector has answered for a batch, or the door has; after the last attempt it has not."""
        data = await asyncio.to_thread(otlp.encode, batch, resource=self._resource)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                wait_s = await self._send(batch, data, attempt)
            except (UpstreamError, LimitError, StoreError) as error:
                self._failed(error.message)
                wait_s = BACKOFF_S * 2 ** (attempt - 1)
            except AIBoxError as error:
                self._failed(error.message)
                self.dropped["door"] += len(batch)  # what was refused once is refused again
                return True
            if wait_s is None:
                return True
            if wait_s < 0 or self._ending.is_set():
                break
            if attempt < ATTEMPTS:
                await _until(self._ending, min(wait_s, MAX_WAIT_S))
        return False

    async def _send(self, batch: Sequence[Span], data: bytes, attempt: int) -> float | None:
        """None when it was taken; else how long to wait for another attempt, negative for none."""
        passing = self._recorded(batch, data, attempt)
        headers = {"Accept": otlp.MEDIA, **self._headers}
        form = (data, otlp.MEDIA)
        async with self._http.request("POST", self._url, passing=passing, headers=headers, form=form) as answer:
            body = await whole(answer, max_kib=256)
            status = int(answer.status_code)
            after = str(answer.headers.get("retry-after", ""))
        if 200 <= status < 300:
            refused = min(otlp.rejected(body), len(batch))
            if refused:
                self._failed(f"the collector rejected {refused} spans of {len(batch)}")
            self.dropped["rejected"] += refused
            self.sent += len(batch) - refused
            return None
        self._failed(f"the collector answered {status}")
        if status not in _RETRYABLE:
            return -1
        return float(after) if after.isdecimal() else BACKOFF_S * 2 ** (attempt - 1)

    def _recorded(self, batch: Sequence[Span], data: bytes, attempt: int) -> Passing:
        """The door, asked when the connection is about to be made: one entry a tenant, durable before anything goes."""
        tenants = Counter(span.tenant for span in batch)

        async def passing(host: str) -> str:
            passage = uuid.uuid4().hex
            for tenant, spans in tenants.items() if self.external else ():
                detail = {"passage": passage, **self._detail(tenant, host), "bytes": len(data), "spans": spans}
                detail["sha256"] = hashlib.sha256(data).hexdigest()
                if attempt > 1:
                    detail["attempt"] = f"attempt {attempt}"
                await self._recorder.append("egress.allowed", scope=Scope(tenant=tenant, user=SYSTEM), detail=detail)
            return passage

        return passing

    def _failed(self, why: str) -> None:
        self.last_error, self.last_error_us = why[:200], time.time_ns() // 1000

    async def _record_denied(self, tenant: str) -> None:
        detail = {**self._detail(tenant, self.host), "bytes": 0, "reason": "the policy does not open the door for it"}
        try:
            await self._recorder.append("egress.denied", scope=Scope(tenant=tenant, user=SYSTEM), detail=detail)
        except AIBoxError:
            self._refused.discard(tenant)  # on record with the next one

    def _detail(self, tenant: str, host: str) -> dict[str, Any]:
        rules = self.rules(tenant)
        label = rules.egress.ceiling if rules.traces.content else Label(Level.PUBLIC)
        return {"host": host, "purpose": "traces", "label": str(label), "policy": rules.digest}


async def _until(event: asyncio.Event, most_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(most_s):
            await event.wait()


def _authorization(settings: TraceSettings) -> dict[str, str]:
    key = read_secret(settings.api_key, settings.api_key_file)
    if key is None:
        return {}
    if settings.user is None:
        return {"Authorization": f"Bearer {key}"}
    return {"Authorization": "Basic " + base64.b64encode(f"{settings.user}:{key}".encode()).decode()}


def _disguised(span: Span) -> Place:
    """With a digest in place of ids that a caller may have chosen: they could hold a text."""
    place = span.place
    trace = hashlib.sha256(f"aibox trace {place.trace}".encode()).hexdigest()[:32]
    return Place(trace, place.span, "" if span.kind == "server" else place.parent)


def installed() -> str:
    """The version of this package; empty in a tree that nobody has installed."""
    try:
        return version("aibox-sdk")
    except PackageNotFoundError:
        return ""
