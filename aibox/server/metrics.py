"""What is counted, in Prometheus' text format 0.0.4. Labels are tenants, routes, models and codes: never a text.

Our own, in a page: the official client takes a lock and a look-up a label for each count, which the hot path would pay.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping

from aibox.inference.accounts import Call
from aibox.server.asked import Asked

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TENANTS = 1000
"""Names of tenants among the labels; of more than that the rest are `other` together."""
MEDIA = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[str, ...]


class _Family:
    """One name with its kind, its help and its label names. A histogram has its sums beside the buckets."""

    def __init__(self, name: str, kind: str, about: str, labels: str) -> None:
        self.name = f"aibox_{name}"
        self.head = f"# HELP {self.name} {about}\n# TYPE {self.name} {kind}\n"
        self.labels = labels.split()
        self.values: dict[Labels, float] = {}
        self.buckets: dict[Labels, list[int]] = {}

    def add(self, *labels: str, by: float = 1) -> None:
        self.values[labels] = self.values.get(labels, 0) + by

    def observe(self, *labels: str, value: float) -> None:
        buckets = self.buckets.get(labels)
        if buckets is None:
            buckets = self.buckets[labels] = [0] * (len(BOUNDS_S) + 1)
        buckets[bisect_left(BOUNDS_S, value)] += 1
        self.values[labels] = self.values.get(labels, 0) + value

    def lines(self) -> str:
        if not self.values:
            return ""
        if not self.buckets:
            return self.head + "".join(f"{self.name}{self._of(labels)} {value:.12g}\n" for labels, value in self._all())
        return self.head + "".join(self._histogram(labels, total) for labels, total in self._all())

    def _histogram(self, labels: Labels, total: float) -> str:
        count, said = 0, []
        for bound, number in zip((*map(str, BOUNDS_S), "+Inf"), self.buckets[labels], strict=True):
            count += number
            said.append(f"{self.name}_bucket{self._of(labels, le=bound)} {count}\n")
        said.append(f"{self.name}_sum{self._of(labels)} {total:.12g}\n{self.name}_count{self._of(labels)} {count}\n")
        return "".join(said)

    def _all(self) -> list[tuple[Labels, float]]:
        return sorted(self.values.items())

    def _of(self, labels: Labels, **more: str) -> str:
        pairs = [*zip(self.labels, labels, strict=True), *more.items()]
        return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}" if pairs else ""


_FAMILIES = (
    ("requests_total", "counter", "Requests that have ended.", "tenant method route status"),
    ("request_seconds", "histogram", "How long requests took, streams included.", "route"),
    ("model_calls_total", "counter", "Model calls that have ended.", "tenant backend model outcome"),
    ("tokens_total", "counter", "Tokens of model calls.", "tenant backend model direction"),
    ("cost_usd_total", "counter", "Cost of model calls that have a price.", "tenant backend model"),
    ("first_token_seconds", "histogram", "Time to the first token of model calls.", "backend model"),
)


class Metrics:
    """Counts requests and model calls. `gauges` are asked when somebody looks, and so are `counts`, by outcome."""

    def __init__(
        self,
        gauges: Mapping[str, tuple[str, Callable[[], float]]] | None = None,
        *,
        counts: Mapping[str, tuple[str, Callable[[], Mapping[str, float]]]] | None = None,
    ) -> None:
        self._gauges = gauges or {}
        self._counts = counts or {}
        made = [_Family(*row) for row in _FAMILIES]
        self._families = made
        self._requests, self._seconds, self._calls, self._tokens, self._usd, self._first = made
        self._tenants: set[str] = set()

    def ended(self, request: Asked) -> None:
        tenant = self._tenant(request.tenant)
        self._requests.add(tenant, request.method, request.route, str(request.status or 499))
        self._seconds.observe(request.route, value=request.took_s)

    def called(self, call: Call) -> None:
        tenant, usage = self._tenant(call.scope.tenant), call.usage
        self._calls.add(tenant, call.backend, call.model, call.outcome)
        self._tokens.add(tenant, call.backend, call.model, "input", by=usage.input_tokens)
        self._tokens.add(tenant, call.backend, call.model, "output", by=usage.output_tokens)
        if usage.cost_usd:
            self._usd.add(tenant, call.backend, call.model, by=usage.cost_usd)
        if call.first_token_s is not None:
            self._first.observe(call.backend, call.model, value=call.first_token_s)

    def text(self) -> str:
        """All of it, as Prometheus reads it."""
        gauges = (
            f"# HELP {name} {about}\n# TYPE {name} gauge\n{name} {value():.12g}\n"
            for name, (about, value) in self._gauges.items()
        )
        return "".join([*(family.lines() for family in self._families), *map(self._counted, self._counts), *gauges])

    def _counted(self, name: str) -> str:
        about, counts = self._counts[name]
        rows = (f'{name}{{outcome="{outcome}"}} {value:.12g}\n' for outcome, value in sorted(counts().items()))
        return f"# HELP {name} {about}\n# TYPE {name} counter\n" + "".join(rows)

    def _tenant(self, name: str) -> str:
        if name not in self._tenants:
            if len(self._tenants) >= TENANTS:
                return "other"
            self._tenants.add(name)
        return name


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
