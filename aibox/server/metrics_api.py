"""`/metrics`, for whoever operates the platform: it names the tenants, and so is nobody else's to read.

Prometheus sends a key by itself (`authorization` in its scrape configuration); a second port without one would be
open to every process of the machine.
"""

from __future__ import annotations

from aibox.server.metrics import MEDIA, Metrics
from aibox.server.principal import Principal
from aibox.server.route import OPERATES, route


class MetricsAPI:
    """What the server has counted since it started."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @route("GET", "/metrics", roles=OPERATES, media=MEDIA)
    async def metrics(self, who: Principal) -> str:  # noqa: ARG002 - all of it is for whoever may ask
        """Counters of requests, model calls, tokens and cost, in Prometheus' text format."""
        return self._metrics.text()
