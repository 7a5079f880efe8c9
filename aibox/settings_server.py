"""What an operator configures of `aibox serve`: who may ask, how much of it, and how it ends. Read by `Settings`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class Section(BaseModel):
    """A table of the settings: frozen, and with no keys but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


class IssuerSettings(Section):
    """An OpenID provider whose access tokens are trusted."""

    issuer: str
    """Its URL, exactly as its tokens name it."""
    audience: str
    """What its tokens for this server are for (`aud`)."""
    jwks_url: str | None = None
    """Where its keys are. None: found by discovery."""
    algorithms: tuple[str, ...] = Field(default=("RS256",), min_length=1)
    """The signature algorithms to accept, of one kind: RS*, PS*, ES* or EdDSA."""
    tenant_claim: str = "tenant"
    """Which claim names the tenant; `a.b` goes into objects. A token without it is refused."""
    tenants: frozenset[str] | None = None
    """The tenants that this issuer may speak for. None: any."""
    roles_claim: str = "roles"
    """Which claim lists roles (`realm_access.roles` for Keycloak). Unknown roles give nothing."""
    rfc9068: bool = True
    """Accept only tokens marked as access tokens (`at+jwt`). False for issuers that mark none, such as Keycloak."""
    leeway_s: float = Field(default=30.0, ge=0, le=300)
    """By how many seconds clocks may differ."""
    ca_bundle: Path | None = None
    """A PEM file of authorities for its address, instead of the system's."""
    proxy: SecretStr | None = None
    """The URL of an HTTP proxy through which it is asked for its keys; it may hold a password."""


class ServerLimits(Section):
    """How much of what one caller, one tenant or all of them may send and keep open at once."""

    body_mib: int = Field(default=8, ge=1, le=1024)
    """The longest body of a request to a model."""
    upload_mib: int = Field(default=64, ge=1, le=4096)
    """The longest body of any other request."""
    head_kib: int = Field(default=64, ge=4, le=1024)
    """The request line and the headers together."""
    head_s: float = Field(default=15.0, gt=0)
    """How long a connection may take to send them; also how long a new one may say nothing."""
    body_s: float = Field(default=120.0, gt=0)
    """How long the body may take after that."""
    read_s: float = Field(default=60.0, gt=0)
    """How long a reader may take nothing of an answer that waits for them."""
    connections: int = Field(default=20_000, ge=1)
    """Open at once, busy or not."""
    requests: int = Field(default=12_000, ge=1)
    """Under way at once, streams included."""
    requests_per_tenant: int = Field(default=4_000, ge=1)
    """Of them of one tenant."""
    grace_s: float = Field(default=20.0, ge=0)
    """How long requests under way may go on when the server is told to stop."""


class ServerSettings(Section):
    """`aibox serve`."""

    host: str = "127.0.0.1"
    """Beyond loopback only with issuers or API keys to tell callers apart."""
    issuers: tuple[IssuerSettings, ...] = ()
    """OpenID providers whose access tokens are trusted."""
    api_keys: str | None = None
    """A file of API keys, made by `aibox keys create`, or "database", the one that servers share. None: no API keys but
    the local one."""
    port: int = Field(default=8420, ge=0, le=65535)
    tenant: str = "default"
    """The tenant of whoever holds the local key, which exists where there are neither issuers nor API keys."""
    user: str = "admin"
    log: Literal["json", "off"] = "json"
    """A JSON object a line on stderr for each request and each thing that goes wrong; never a text of anybody's."""
    limits: ServerLimits = ServerLimits()
    replica: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    """This server's name among several: sandbox sessions begin with it, so that a proxy knows where each lives."""
    rates_url: SecretStr | None = None
    """A Redis or Valkey server that holds the rate limits for several servers. None: this process holds its own."""
