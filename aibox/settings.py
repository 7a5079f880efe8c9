"""What an operator configures, read in this one file: argument > `AIBOX_*` > a TOML file > default.

Library objects never look at the environment; the box, the command line and the server pass it here. Defaults are
sovereign: the door is shut, nothing is downloaded, there is no server without a key.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from platformdirs import user_data_path
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator

from aibox.chat import Capability
from aibox.errors import ConfigError, StoreError
from aibox.postgres import is_postgres, shown
from aibox.settings_outbound import TraceSettings, WebhookSettings
from aibox.settings_parts import (
    AgentSettings,
    AuditSettings,
    MemorySettings,
    SandboxSettings,
    SealSettings,
    WorkflowSettings,
)
from aibox.settings_server import Section, ServerSettings
from aibox.types import Scope
from aibox.validation import explain_validation

PREFIX = "AIBOX_"
RESERVED = ("AIBOX_HOME", "AIBOX_SOVEREIGN")
"""Names of the environment that are not settings; so is everything that begins with `AIBOX_TEST_`."""


RELOADED = ("policy", "policy_key", "shadow_policy", "tenants", "backends", "default_model", "routing")
"""What `Box.reload` takes up while the box is open; the webhooks of tenants are not among it."""
KINDS = ("embedded", "vllm", "openai", "openrouter", "embeddings")
BACKENDS = "aibox.backends"
"""The group of the entry points by which other packages bring backends: their names are further kinds."""


class BackendSettings(Section):
    """One model server, or a model file to load in this process."""

    kind: str
    """`embedded`: a GGUF file in this process; `vllm`: a vLLM server; `openai`: any OpenAI-compatible server;
    `openrouter`: OpenRouter, behind the door; `embeddings`: the embedder of this process; or the name of an entry point
    of the group `aibox.backends`."""
    name: str | None = None
    """Unique name; the models are then `name/model`. Default: the kind."""
    path: Path | None = None
    """embedded: the GGUF file. None is the demo model."""
    url: str | None = None
    """vllm, openai: the base URL, such as `http://10.0.0.7:8000/v1`."""
    models: tuple[str, ...] | None = None
    """openai: the models to offer, where the server does not list them."""
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    """A file that holds the key and nothing else."""
    external: bool | None = None
    """Whether text that goes there leaves your infrastructure. None: decided by the address, in doubt yes."""
    tools: bool = True
    """False when the server does not enforce `tool_choice`; tools are then emulated by constrained JSON."""
    context_tokens: int = Field(default=4096, gt=0)
    """embedded: the context to allocate."""
    pooling: Literal["mean", "cls", "last", "rank"] | None = None
    """embedded: what makes one vector of a text, or ranks documents, where the file does not say. None: it chats."""
    staged: str | None = None
    """embedded: the name of a model that `aibox models stage` has put on this disk, instead of a path."""
    sha256: str | None = None
    """embedded: the digest that the file must have; the weights then count as verified."""
    tenants: frozenset[str] | None = None
    """The tenants that it is dedicated to: it comes first for them and is not there for others. None is everybody."""
    capabilities: frozenset[Capability] | None = None
    """What its models can do, where the server does not say: chat, tools, vision, audio, embeddings, ..."""
    input_usd: float | None = Field(default=None, ge=0)
    """The price of a million tokens of input; with `output_usd` every call has a cost."""
    output_usd: float | None = Field(default=None, ge=0)
    timeout_s: float = Field(default=300.0, gt=0)
    """The longest silence of the server to bear."""
    total_s: float = Field(default=3600.0, gt=0)
    """What a whole answer may take, a stream's too."""
    calls_at_once: int | None = Field(default=None, ge=1)
    """More wait, and tenants take turns. None: 4 for a model in this process, 256 for a server."""
    ca_bundle: Path | None = None
    """A PEM file of authorities, instead of the system's."""
    client_certificate: Path | None = None
    client_key: Path | None = None
    proxy: SecretStr | None = None
    """The URL of an HTTP proxy through which it is reached; it may hold a password."""
    networks: tuple[str, ...] | None = None
    """Networks that its host's name may resolve into. None: the inside, or the public internet for one outside."""
    only: tuple[str, ...] = ()
    """openrouter: the providers that may serve its models."""
    options: dict[str, Any] = Field(default_factory=dict)
    """For backends of other packages, which read it themselves."""

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        # What is installed is read only for a kind that is not built in.
        if kind not in KINDS and kind not in (brought := [entry.name for entry in entry_points(group=BACKENDS)]):
            raise ValueError(f"no backend is of the kind {kind!r}; one of {', '.join((*KINDS, *sorted(brought)))}")
        return kind

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind in ("vllm", "openai") and not self.url:
            raise ValueError(f'a backend of kind "{self.kind}" needs a url')
        if self.kind == "openrouter" and not (self.models and (self.api_key or self.api_key_file)):
            raise ValueError('a backend of kind "openrouter" needs models and an api_key_file')
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("give api_key or api_key_file, not both")
        return self

    def key(self) -> str | None:
        """The key in the clear, read from its file when there is one."""
        return read_secret(self.api_key, self.api_key_file)


class RoutingSettings(Section):
    """Names for models, and who takes over for whom."""

    aliases: dict[str, str] = Field(default_factory=dict)
    """A name, or a role (default, title, classifier, memory, guardrail, embedding, vision), to `backend/model`."""
    tenants: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Aliases of one tenant, which come before those of everybody."""
    fallbacks: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """What may answer instead of a model that fails, in order. What is outside passes the door each time."""


class TenantSettings(Section):
    """What is a tenant's own."""

    policy: str | None = None
    """A profile or the path of a TOML file. It is joined with the box's, and so can only narrow it."""
    groups: dict[str, frozenset[str]] = Field(default_factory=dict)
    """Groups by name, each with its users: who may see documents that are restricted to some."""
    webhooks: tuple[WebhookSettings, ...] = ()
    """Addresses that hear of the tenant's events, such as a question to people."""

    @field_validator("webhooks")
    @classmethod
    def _names(cls, webhooks: tuple[WebhookSettings, ...]) -> tuple[WebhookSettings, ...]:
        if len({webhook.name for webhook in webhooks}) < len(webhooks):
            raise ValueError("two webhooks of a tenant have one name")
        return webhooks


class Settings(Section):
    """All settings. `Settings.load()` reads them; a mistyped key is refused with the likely one."""

    home: Path
    """The data folder: evidence, keys, memory."""
    policy: str = "balanced"
    """A shipped one (permissive, balanced, strict, clinic, bank, defence) or the path of a TOML or YAML file."""
    policy_key: Path | None = None
    """A file with the verifier key (`aibox policy sign` names it) that must have signed the policy file."""
    shadow_policy: str | None = None
    """A second policy, named as `policy` is, that decides nothing: what it would have decided is recorded."""
    backends: tuple[BackendSettings, ...] = ()
    """Model servers, in order of preference. Empty is the embedded demo model."""
    default_model: str | None = None
    """What `model="default"` means. None: the first model of the first local backend."""
    routing: RoutingSettings = RoutingSettings()
    tenants: dict[str, TenantSettings] = Field(default_factory=dict)
    """By the tenant's name, as tokens and keys have it."""
    memory: MemorySettings = MemorySettings()
    database: SecretStr | None = None
    """`postgresql://...` for what several servers share; see `aibox db`. None: files in the data folder."""
    keys: Path | None = None
    """The folder of the keys, which servers that share a database share too. Default: `keys` in the data folder."""
    agents: AgentSettings = AgentSettings()
    audit: AuditSettings = AuditSettings()
    sandbox: SandboxSettings = SandboxSettings()
    server: ServerSettings = ServerSettings()
    workflows: tuple[WorkflowSettings, ...] = ()
    """Apps of Dify servers. With at least one, agents of the box have the tool `run_workflow`."""
    traces: TraceSettings | None = None
    """Where traces go. None: nowhere."""
    seal: SealSettings = SealSettings()
    source: Path | None = Field(default=None, exclude=True)
    """The file that was read, for people."""

    @property
    def key_folder(self) -> Path:
        """Where everything secret lies."""
        return self.keys or self.home / "keys"

    def make_home(self) -> None:
        """See that the data folder is there and can be used. Raises StoreError."""
        hint = "set AIBOX_HOME to a folder of yours"
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the data folder {self.home} cannot be made: {error.strerror}", hint=hint) from None
        if not self.home.is_dir() or not os.access(self.home, os.W_OK | os.X_OK):
            raise StoreError(f"the data folder {self.home} cannot be written", hint=hint)

    def place(self, url: str | SecretStr | None, file: str) -> str | Path:
        """Where a part keeps its rows: at the url or in the file that is named for it, else in the shared database.

        Without either, in `file`. Paths are relative to the data folder.
        """
        named = url.get_secret_value() if isinstance(url, SecretStr) else url
        named = named or (self.database.get_secret_value() if self.database else file)
        return named if "://" in named else self.home / named

    @property
    def evidence(self) -> str:
        """Where the log is: a path or a url."""
        return str(self.place(self.audit.url, "audit.db"))

    @property
    def api_keys(self) -> str | Path | None:
        """Where API keys are; None where there are none. Raises ConfigError where the database is named and none is."""
        named = self.server.api_keys
        if named != "database":
            return None if named is None else self.place(named, "")
        if self.database is None:
            raise ConfigError('api_keys = "database", and there is none', hint='set database = "postgresql://..."')
        return self.database.get_secret_value()

    @property
    def remembers(self) -> str:
        """What keeps memories, for people."""
        place = self.place(self.memory.url, "memory")
        return shown(place) if self.memory.enabled and is_postgres(place) else self.memory.where

    @property
    def databases(self) -> list[str]:
        """Every PostgreSQL server that is configured, each once."""
        urls = (None, self.audit.url, self.agents.url, self.memory.url)
        places = (self.place(url, "") for url in urls)
        return [*dict.fromkeys(place for place in places if isinstance(place, str) and is_postgres(place))]

    @property
    def services(self) -> list[str]:
        """Where the configured services are, which a sealed process may connect to: urls, or host and port."""
        found = [backend.url for backend in self.backends if backend.url] + [app.url for app in self.workflows]
        found += [self.traces.url] if self.traces is not None else []
        found += [webhook.url for table in self.tenants.values() for webhook in table.webhooks]
        places = [(self.memory.url, 6333)]
        places += [
            (url.get_secret_value() if url else None, 6379) for url in (self.memory.buffer_url, self.server.rates_url)
        ]
        places += [(url, 5432) for url in self.databases]
        for url, port in places:
            if url and (host := urlsplit(url)).hostname:
                found.append(f"{host.hostname}:{host.port or port}")
        return found

    def groups_of(self, scope: Scope) -> set[str]:
        """The groups of the tenant that the user is in."""
        table = self.tenants.get(scope.tenant)
        return {name for name, users in table.groups.items() if scope.user in users} if table is not None else set()

    @classmethod
    def load(
        cls,
        *,
        config: str | Path | None = None,
        home: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        **arguments: Any,
    ) -> Settings:
        """Read `config`, else `./aibox.toml`, else `<home>/aibox.toml`; then the environment; then the arguments.

        `env` None reads nothing from the environment. Raises ConfigError that names the file or variable and the key.
        """
        env = env or {}
        place = Path(home or env.get("AIBOX_HOME") or user_data_path("aibox", appauthor=False)).expanduser()
        source = _find(config, place)
        values = _read_toml(source) if source else {}
        from_env = _read_env(env)
        values = _merge(_merge(values, from_env), arguments)
        if home is not None or "home" not in values:
            values["home"] = place.absolute()
        try:
            return cls(**{**values, "source": source})
        except ValidationError as error:
            raise ConfigError(f"{source or 'settings'}: {explain_validation(error, cls)}") from None


def read_secret(value: SecretStr | None, file: Path | None) -> str | None:
    """A secret from its setting or its `*_file` twin, without the line end. Raises ConfigError when unreadable."""
    if value is not None:
        return value.get_secret_value()
    if file is None:
        return None
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the secret in {file}", hint=str(error)) from None


def _find(config: str | Path | None, home: Path) -> Path | None:
    if config is not None:
        path = Path(config)
        if not path.is_file():
            raise ConfigError(f"there is no settings file {path}")
        return path
    return next((path for path in (Path("aibox.toml"), home / "aibox.toml") if path.is_file()), None)


_FILES = ("path", "api_key_file", "ca_bundle", "client_certificate", "client_key", "key_file", "retiring_key_file")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or a number of a thousand digits
        raise ConfigError(f"{path} is not TOML: {error}") from None
    # Relative paths in a file mean: relative to that file, wherever the program was started.
    base = path.parent
    tenants = values.get("tenants")
    owned = _tables([*tenants.values()] if isinstance(tenants, dict) else ())
    hooks = [hook for table in owned for hook in _tables(table.get("webhooks"))]
    server = values.get("server")
    issuers = server.get("issuers") if isinstance(server, dict) else None
    lists = (values.get("backends"), values.get("workflows"), [values.get("traces")], hooks, issuers)
    for table in (table for some in lists for table in _tables(some)):
        for key in _FILES:
            if isinstance(table.get(key), str):
                table[key] = base / table[key]
    if isinstance(values.get("home"), str):
        values["home"] = (base / Path(values["home"]).expanduser()).absolute()
    for table in (values, *owned):
        for key in ("policy", "shadow_policy"):
            if isinstance(policy := table.get(key), str) and policy.endswith((".toml", ".yaml", ".yml")):
                table[key] = str(base / policy)
    for key in ("policy_key", "keys"):
        if isinstance(values.get(key), str):
            values[key] = base / values[key]
    return values


def _tables(value: Any) -> list[dict[str, Any]]:
    """What can be looked into of a list; that it is no list, or holds something else, is said of the settings."""
    return [table for table in value if isinstance(table, dict)] if isinstance(value, list | tuple) else []


def _read_env(env: Mapping[str, str]) -> dict[str, Any]:
    """`AIBOX_SERVER__PORT=8421` becomes `{"server": {"port": "8421"}}`; lists and tables are written as JSON."""
    values: dict[str, Any] = {}
    for variable, text in env.items():
        if not variable.startswith(PREFIX) or variable in RESERVED or variable.startswith("AIBOX_TEST_"):
            continue
        path = variable.removeprefix(PREFIX).lower().split("__")
        if path[0] not in Settings.model_fields or path[0] == "source":
            known = [PREFIX + name.upper() for name in Settings.model_fields] + list(RESERVED)
            close = get_close_matches(variable, known, n=1)
            raise ConfigError(
                f"the environment variable {variable} is not a setting",
                hint=f"did you mean {close[0]}?" if close else "`aibox doctor` lists the settings",
            )
        target = values
        for part in path[:-1]:
            target = target.setdefault(part, {})
        target[path[-1]] = _parse(variable, text)
    return values


def _parse(variable: str, text: str) -> Any:
    if not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(f"{variable} looks like JSON and is not", hint="check quotes and brackets") from None


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
