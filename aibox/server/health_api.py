"""What a liveness probe asks, without a key and without learning a secret."""

from __future__ import annotations

from aibox import __version__
from aibox.server.route import route
from aibox.server.shapes.inference import Health


class HealthAPI:
    """Whether this process answers."""

    @route("GET", "/healthz", roles=(), answer=Health)
    async def healthz(self) -> Health:
        """That the server answers, and its version. What else may be away `/readyz` says; no restart would mend it."""
        return Health(ok=True, version=__version__)
