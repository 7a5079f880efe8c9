"""What an operator configures of what other systems hear: a collector of traces, and webhooks. Read by `Settings`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, SecretStr, model_validator

from aibox.settings_server import Section

EventType = Literal[
    "approval.asked", "approval.given", "approval.rejected", "turn.blocked", "budget.exhausted", "egress.denied"
]


EVENTS: tuple[EventType, ...] = get_args(EventType)


class WebhookSettings(Section):
    """An address of a tenant's that hears of its events. The policy's `egress.hosts` must name its host."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")
    """Among the tenant's. What waits for it goes by this name."""
    url: str
    """Where events are sent by POST. A redirect is not followed."""
    key: SecretStr | None = None
    key_file: Path | None = None
    """A file with the secret that signs, `whsec_` and 24 to 64 bytes in base64, and nothing else."""
    retiring_key_file: Path | None = None
    """The secret before it: both sign until the receiver has changed over."""
    events: frozenset[EventType] = frozenset(EVENTS)
    """Which events it hears of."""
    private: bool = False
    """Its host is one of your own network. False: it must be a public address."""

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if (self.key is None) == (self.key_file is None):
            raise ValueError("a webhook needs a key_file, or a key")
        return self


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
