"""What a server for others refuses to start with. Each refusal says what to set.

A server is for others when it listens beyond loopback, or when it tells callers apart. `--dev` is for one's own
machine: it listens on loopback only, and says at each start that these guards are down.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr

from aibox.errors import ConfigError
from aibox.policy.policy import Policy
from aibox.settings import Settings, read_secret
from aibox.settings_server import ServerSettings

SHORTEST = 12
"""Characters of a secret. Fewer can be guessed, or are what somebody typed to see it work."""
_PLACEHOLDER = re.compile(
    r"(?i)(change[-_ ]?me|replace[-_ ]?me|place[-_ ]?holder|example|dummy|your[-_ ]|to[-_ ]?do|insert[-_ ]|password"
    r"|passw0rd|s3cret|secret$|^secret|default|123456|qwerty|<.*>|\$\{.*\}|^(.)\2*$)"
)
DEV = "DEVELOPMENT: the guards of a server for others are down; loopback only"


def refuse_unguarded(server: ServerSettings, *, dev: bool = False) -> None:
    """Raises ConfigError for an address that may not be listened on."""
    if is_loopback(server.host):
        return
    if dev:
        raise ConfigError(f"--dev listens on loopback only, not on {server.host}", hint="leave --dev or --host out")
    if not server.issuers and not server.api_keys:
        raise ConfigError(
            f"aibox serve listens on loopback only, not on {server.host}, while one local key is all that guards it",
            hint="configure [[server.issuers]], or server.api_keys and `aibox keys create`",
        )


def refuse_unfit(settings: Settings, server: ServerSettings, policies: Mapping[str, Policy]) -> None:
    """Raises ConfigError for settings that are not fit for others. `policies` are those in force, by whose they are."""
    if is_loopback(server.host) and not server.issuers and not server.api_keys:
        return
    for name, secret in secrets(settings):
        if _PLACEHOLDER.search(secret):
            raise ConfigError(f"{name} holds a placeholder", hint=f"set {name} to a secret of its own, or use --dev")
        if len(secret) < SHORTEST:
            raise ConfigError(
                f"{name} has {len(secret)} characters, and a secret has at least {SHORTEST}",
                hint=f"set {name} to a longer one, or use --dev",
            )
    for whose, policy in policies.items():
        if policy.egress.open and not policy.budgets.bounded:
            raise ConfigError(
                f"the policy of {whose} opens the door and bounds no spending",
                hint="set budgets.tenant.usd_per_month in it (or tokens_per_day), or shut the door, or use --dev",
            )


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def secrets(settings: Settings) -> Iterator[tuple[str, str]]:
    """Every secret of the settings with the name of its setting; of a URL its password, of a file what is in it."""
    yield from _of(settings, "")


def _of(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, BaseModel):
        for field in type(value).model_fields:
            yield from _of(getattr(value, field), f"{name}.{field}" if name else field)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _of(one, f"{name}.{key}")
    elif isinstance(value, tuple):
        for number, one in enumerate(value):
            yield from _of(one, f"{name}[{getattr(one, 'name', None) or number}]")
    elif isinstance(value, SecretStr):
        text = value.get_secret_value()
        if "://" not in text:
            yield name, text
        elif password := urlsplit(text).password:
            yield f"the password in {name}", password
    elif isinstance(value, Path) and name.endswith("key_file"):
        yield f"the file of {name}", read_secret(None, value) or ""
