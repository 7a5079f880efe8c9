"""What a probe asks, without a key and without learning a secret."""

from __future__ import annotations

from starlette.responses import JSONResponse

from aibox import __version__
from aibox.box import Box
from aibox.server.route import route
from aibox.server.shapes.inference import Health


class HealthAPI:
    """Whether a model can answer."""

    def __init__(self, box: Box) -> None:
        self._box = box

    @route("GET", "/healthz", roles=(), answer=Health)
    async def healthz(self) -> JSONResponse:
        """Whether a model can answer, and the version. 503 where none can."""
        health = await self._box.router.health()
        body = Health(ok=health.ok, version=__version__).model_dump()
        return JSONResponse(body, status_code=200 if health.ok else 503)
