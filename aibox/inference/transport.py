"""How a backend is reached in a corporate network: its own authorities, a client certificate, an outbound proxy.

And which addresses its name may turn out to be: decided after it was resolved, for the very connection that is made.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aibox.errors import ConfigError
from aibox.inference.addresses import Address, in_networks, is_inside_address, is_public_address

Rule = Callable[[Address], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """`ca_bundle` replaces the system's authorities; `client_certificate` and `client_key` are PEM files.

    `proxy` is the URL of an HTTP proxy, through which everything goes. `networks` are those that the host's name may
    resolve into; None leaves it to where the backend is: inside the operator's network, or on the public internet.
    """

    ca_bundle: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    proxy: str | None = None
    networks: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.client_key is not None and self.client_certificate is None:
            raise ConfigError("a client key needs its certificate", hint="client_certificate=")
        if self.proxy is not None:
            parts = urlsplit(self.proxy)
            if parts.scheme != "http" or not parts.hostname:
                raise ConfigError("a proxy is the URL of an HTTP proxy", hint="such as http://proxy.corp.internal:3128")

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may show, the longest first: a proxy's URL comes back in what the client raises."""
        parts = urlsplit(self.proxy or "")
        password = parts.password or ""
        return (parts.netloc.rpartition("@")[0], password, unquote(password))

    def tls(self) -> ssl.SSLContext:
        """A context that verifies names and certificates. Raises ConfigError for a file that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=str(self.ca_bundle) if self.ca_bundle else None)
            if self.client_certificate is not None:
                context.load_cert_chain(self.client_certificate, self.client_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"the certificates cannot be used: {error}", hint="PEM files?") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def rule(self, *, external: bool, declared: bool) -> Rule | None:
        """Which addresses the host's name may resolve to; None is any. `declared`: the operator said where it is."""
        if self.networks is not None:
            return in_networks(self.networks)
        if external:
            return is_public_address
        return None if declared else is_inside_address

    def __repr__(self) -> str:
        # A proxy's URL may hold a password.
        proxy = urlsplit(self.proxy).hostname if self.proxy else None
        return f"Transport(ca_bundle={self.ca_bundle}, client_certificate={self.client_certificate}, proxy={proxy})"
