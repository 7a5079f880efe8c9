"""A vLLM server: OpenAI-compatible, with health and metrics of its own and a model list that says more."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path
from typing import Any

from aibox.chat import ChatRequest, Health, Weights
from aibox.errors import AIBoxError
from aibox.inference.capabilities import Api
from aibox.inference.openai_compatible import OpenAICompatible
from aibox.types import Scope

_SALTED: tuple[Api, ...] = ("chat", "completions", "responses")
_SAMPLE = re.compile(r"^(vllm:[a-z_]+)(?:\{([^}]*)\})?\s+([0-9.eE+-]+)\s*$", re.MULTILINE)


class VLLM(OpenAICompatible):
    """A vLLM server at `base_url`, such as `http://10.0.0.7:8000/v1`. Options are those of OpenAICompatible.

    A tool is enforced by constrained decoding when `tool_choice` is `"required"` or names one; for `"auto"` the server
    must have been started with `--enable-auto-tool-choice` and a parser. vLLM's key guards `/v1` only: nobody but the
    router should reach the port.

    Every request carries a `cache_salt` for its tenant, so that nobody can tell by the time of an answer what another
    tenant has asked. It is an HMAC under `salt_secret`; None draws one, and then a restart begins with a cold cache.
    """

    def __init__(self, base_url: str, *, salt_secret: bytes | None = None, **options: Any) -> None:
        super().__init__(base_url, **options)
        self._salt_secret = salt_secret or secrets.token_bytes(32)
        self._salts: dict[str, str] = {}

    @staticmethod
    async def launch(model_path: str | Path, **options: Any) -> VLLM:
        """Start a server for a model folder on this machine, and return when it answers; closing stops it.

        Options and errors are those of `aibox.inference.launch.launch`.
        """
        from aibox.inference.launch import launch

        return await launch(model_path, **options)

    def outgoing(self, api: Api, request: ChatRequest, *, scope: Scope) -> ChatRequest:
        """With the tenant's salt, whatever the request asked for."""
        if api not in _SALTED:
            return request
        return request.with_fields(cache_salt=self._salt(scope.tenant))

    async def health(self) -> Health:
        """Whether the engine lives and is awake, how many requests wait, how full its cache is. Never raises."""
        try:
            await self._wire.ask(self._health_url())
        except AIBoxError as error:
            return Health(ok=False, detail=str(error))
        try:
            metrics = await self._wire.ask(self._root() + "/metrics")
        except AIBoxError as error:
            # It answers, and only does not say how busy it is.
            return Health(ok=True, detail=f"{self.base_url} answers, without metrics: {error.message}")
        waiting, cache_used, asleep = 0.0, 0.0, False
        for name, labels, value in _SAMPLE.findall(metrics):
            number = _number(value)
            if name == "vllm:num_requests_waiting":
                waiting += number
            elif name == "vllm:kv_cache_usage_perc":
                cache_used = max(cache_used, min(number, 1.0))
            elif name == "vllm:engine_sleep_state":
                asleep = asleep or (number > 0 and 'sleep_state="awake"' not in labels)
        if asleep:
            return Health(ok=False, detail=f"{self.base_url} is asleep")
        return Health(ok=True, detail=f"{self.base_url} answers", waiting=int(waiting), cache_used=cache_used)

    def _health_url(self) -> str:
        # /health lies at the root, and says 503 when the engine is dead though the process answers.
        return self._root() + "/health"

    def _root(self) -> str:
        return self.base_url.removesuffix("/v1")

    def _weights(self) -> Weights:
        return Weights(known="declared")

    def _salt(self, tenant: str) -> str:
        if (salt := self._salts.get(tenant)) is None:
            if len(self._salts) >= _SALTS_KEPT:
                self._salts.clear()
            salt = hmac.digest(self._salt_secret, b"cache_salt\0" + tenant.encode(), hashlib.sha256).hex()
            self._salts[tenant] = salt
        return salt


_SALTS_KEPT = 10_000


def _number(text: str) -> float:
    """A server's word, within what such a number can be; what is none is 0."""
    try:
        return min(max(float(text), 0.0), 1e9)
    except ValueError:
        return 0.0
