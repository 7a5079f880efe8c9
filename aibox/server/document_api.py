"""`/v1/openapi.json`: what this server can be asked, for whoever writes a client."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import msgspec

from aibox.server.route import route


class DocumentAPI:
    """The document. It is made once, when it is first asked for."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self._make = make

    @route("GET", "/v1/openapi.json", roles=(), media="application/json")
    async def openapi(self) -> bytes:
        """This document. It says nothing about this installation, and so needs no token."""
        return self._document

    @cached_property
    def _document(self) -> bytes:
        return msgspec.json.encode(self._make())
