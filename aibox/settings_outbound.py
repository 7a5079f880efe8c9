"""What an operator configures of what other systems hear: a collector of traces, and webhooks. Read by `Settings`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from aibox.settings_server import Section

EventType = Literal[
    "approval.asked", "approval.given", "approval.refused", "turn.blocked", "budget.exhausted", "egress.denied"
]


class TraceSettings(Section):
    """A collector that takes OTLP over HTTP, such as an OpenTelemetry Collector, Jaeger or Langfuse."""

    url: str
    """The whole address, such as `http://127.0.0.1:4318/v1/traces`, or Langfuse's `.../api/public/otel/v1/traces`."""
    user: str | None = None
    """With it the key is sent as the password of HTTP Basic (Langfuse: the public key); else as a bearer token."""
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    """A file that holds the key and nothing else."""
    external: bool | None = None
    """Whether what goes there leaves your infrastructure. None: decided by the host's name, in doubt yes."""
    ratio: float = Field(default=1.0, ge=0, le=1)
    """The share of traces to keep; a caller's own decision (W3C traceparent) comes first."""

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("give api_key or api_key_file, not both")
        if self.user is not None and self.api_key is None and self.api_key_file is None:
            raise ValueError("a user needs an api_key_file")
        return self
