"""AI on infrastructure that you own: models, agents, guardrails, memory, sandbox, and evidence.

The names below are the whole public surface; each is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "AIBoxError": "errors",
    "AccessError": "errors",
    "Agent": "agents.agent",
    "AuditChain": "audit.chain",
    "AuthError": "errors",
    "BackendError": "errors",
    "Box": "box",
    "Client": "server.client",
    "ConfigError": "errors",
    "Decision": "types",
    "EgressError": "errors",
    "Embedded": "inference.embedded",
    "Guardrail": "guardrails.guardrail",
    "GuardrailError": "errors",
    "IntegrityError": "errors",
    "Label": "types",
    "LimitError": "errors",
    "Limits": "execution",
    "Memory": "memory.memory",
    "MissingExtraError": "errors",
    "OpenAICompatible": "inference.openai_compatible",
    "Policy": "policy.policy",
    "PolicyError": "errors",
    "Receipt": "audit.receipt",
    "Reply": "agents.events",
    "Router": "inference.router",
    "Sandbox": "sandbox.sandbox",
    "SandboxError": "errors",
    "Scope": "types",
    "Settings": "settings",
    "StoreError": "errors",
    "UpstreamError": "errors",
    "VLLM": "inference.vllm",
    "Verdict": "types",
    "open": "box",
    "run_sync": "sync",
    "seal": "sealing",
    "tool": "agents.tools",
    "verify": "audit.verify",
}

_HOOKS = {"load_ipython_extension": "notebook", "unload_ipython_extension": "notebook"}
"""What `%load_ext aibox` looks for; nobody types it."""

__all__ = sorted(_HOME)  # noqa: PLE0605 - a list of the table's names

if TYPE_CHECKING:
    from aibox.agents.agent import Agent as Agent
    from aibox.agents.events import Reply as Reply
    from aibox.agents.tools import tool as tool
    from aibox.audit.chain import AuditChain as AuditChain
    from aibox.audit.receipt import Receipt as Receipt
    from aibox.audit.verify import verify as verify
    from aibox.box import Box as Box
    from aibox.box import open as open
    from aibox.errors import AccessError as AccessError
    from aibox.errors import AIBoxError as AIBoxError
    from aibox.errors import AuthError as AuthError
    from aibox.errors import BackendError as BackendError
    from aibox.errors import ConfigError as ConfigError
    from aibox.errors import EgressError as EgressError
    from aibox.errors import GuardrailError as GuardrailError
    from aibox.errors import IntegrityError as IntegrityError
    from aibox.errors import LimitError as LimitError
    from aibox.errors import MissingExtraError as MissingExtraError
    from aibox.errors import PolicyError as PolicyError
    from aibox.errors import SandboxError as SandboxError
    from aibox.errors import StoreError as StoreError
    from aibox.errors import UpstreamError as UpstreamError
    from aibox.execution import Limits as Limits
    from aibox.guardrails.guardrail import Guardrail as Guardrail
    from aibox.inference.embedded import Embedded as Embedded
    from aibox.inference.openai_compatible import OpenAICompatible as OpenAICompatible
    from aibox.inference.router import Router as Router
    from aibox.inference.vllm import VLLM as VLLM
    from aibox.memory.memory import Memory as Memory
    from aibox.policy.policy import Policy as Policy
    from aibox.sandbox.sandbox import Sandbox as Sandbox
    from aibox.sealing import seal as seal
    from aibox.server.client import Client as Client
    from aibox.settings import Settings as Settings
    from aibox.sync import run_sync as run_sync
    from aibox.types import Decision as Decision
    from aibox.types import Label as Label
    from aibox.types import Scope as Scope
    from aibox.types import Verdict as Verdict


def __getattr__(name: str) -> Any:
    if (home := _HOME.get(name) or _HOOKS.get(name)) is None:
        raise AttributeError(f"module 'aibox' has no attribute {name!r}")
    value = getattr(import_module(f"aibox.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
