"""What an operator configures of memory, agents, evidence, the sandbox, workflows and the seal. Read by `Settings`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from aibox.settings_server import Section


class MemorySettings(Section):
    url: str | None = None
    """A folder, `qdrant://host:6333` or `postgresql://...`. Default: `database`, else `memory` in the data folder."""
    api_key: SecretStr | None = None
    """The server's."""
    api_key_file: Path | None = None
    enabled: bool = True
    model: str | None = None
    """The model that says what of a message is worth keeping, such as `default`. None: rules say it, in English."""
    reranker: str | None = None
    """The model that puts what was recalled in order, such as `local/bge-reranker`. None: vectors and words do."""
    buffer_url: SecretStr | None = None
    """A Redis or Valkey server for the last messages of each conversation. None: they are kept in this process."""

    @property
    def where(self) -> str:
        """What keeps memories, for people."""
        server = urlsplit(self.url or "").netloc
        return "off" if not self.enabled else f"Qdrant at {server}" if server else "SQLite and qdrant-edge, here"


class AgentSettings(Section):
    url: SecretStr | None = None
    """A file, or `postgresql://...`, for conversations and runs that wait. Default: `database`, else `agents.db`."""


class AuditSettings(Section):
    url: str | None = None
    """A file, or `postgresql://...`. Default: `database`, else `audit.db` in the data folder."""
    high_water: Path | None = None
    """Where the high-water mark lies, best on another disk. Default: beside the keys."""
    signer: Path | None = None
    """The socket of `aibox audit signer`. None: the signing key lies in the data folder."""


class SandboxSettings(Section):
    driver: Literal["auto", "bubblewrap", "docker"] = "auto"
    """`auto` is docker where an engine answers, has the image and no known way out; else bubblewrap."""
    engine: str | None = None
    """docker: the engine's address, such as `unix:///run/docker.sock`. None: the client's own default."""
    image: str = "aibox-sandbox:latest"
    """docker: the image that `aibox sandbox build` makes; it is used by its digest."""
    gvisor: Literal["auto", "require", "off"] = "auto"
    """docker: whether gVisor (`runsc`) stands between guests and the kernel."""
    accept: tuple[str, ...] = ()
    """docker: known ways out of the engine's runtime (`"CVE-..."`) that you accept; recorded with every session."""
    pool: int = Field(default=0, ge=0, le=64)
    """Guests to keep ready, so that a session starts at once; each holds some 10 MiB."""
    idle_s: float = Field(default=600.0, gt=0)
    """Seconds after which a session that nobody uses ends."""
    sessions: int = Field(default=64, gt=0)
    """How many may be open at once."""
    per_tenant: int = Field(default=16, gt=0)
    """How many of them for one tenant."""


class WorkflowSettings(Section):
    """One app of a Dify server, for the tool `run_workflow`. The policy's `egress.hosts` must name its host."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")
    """What the model calls it."""
    url: str
    """The base URL of the service API, such as `https://dify.example.org/v1`."""
    key_file: Path
    """A file that holds the app's key and nothing else."""
    kind: Literal["workflow", "chat"] = "workflow"
    """`chat` for chatbots, agents and chatflows."""
    description: str = ""
    """For the model: what it is for."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """The app's variables, and what each means. None named: whatever the model gives."""
    files: dict[str, str] = Field(default_factory=dict)
    """Those of the app's variables that take a file out of the agent's sandbox, and what each means."""
    attach: bool = False
    """chat: files may go along with a message."""
    streaming: bool = True
    """False waits for the whole answer, and cannot be stopped."""
    approve: bool = False
    """A person agrees to each run."""
    label: str | None = None
    """How secret its answers are, such as `confidential/PHI`."""
    timeout_s: float = Field(default=300.0, gt=0)


class SealSettings(Section):
    allow: tuple[str, ...] = ()
    """Hosts, `host:port` or networks that a sealed process may reach besides loopback and the configured backends."""
