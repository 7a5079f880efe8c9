"""The sandbox that settings and policy describe."""

from __future__ import annotations

from collections.abc import Mapping

from aibox.execution import Limits
from aibox.protocols import Driver, Recorder
from aibox.sandbox.auto import Auto
from aibox.sandbox.bubblewrap import Bubblewrap
from aibox.sandbox.docker import Docker
from aibox.sandbox.escapes import UnsafeRuntime
from aibox.sandbox.sandbox import Sandbox
from aibox.settings_parts import SandboxSettings


def make_sandbox(
    settings: SandboxSettings,
    *,
    limits: Limits,
    gpus: Mapping[str, int],
    audit: Recorder | None,
    replica: str | None = None,
) -> Sandbox:
    """Sessions of the driver that the settings name, within the policy's limits."""
    return Sandbox(
        make_driver(settings),
        limits=limits,
        gpus=gpus,
        audit=audit,
        pool=settings.pool,
        idle_s=settings.idle_s,
        sessions=settings.sessions,
        per_tenant=settings.per_tenant,
        replica=replica,
    )


def make_driver(settings: SandboxSettings) -> Driver:
    if settings.driver == "bubblewrap":
        return Bubblewrap()
    docker = Docker(
        image=settings.image,
        host=settings.engine,
        gvisor=settings.gvisor,
        accept=UnsafeRuntime(settings.accept) if settings.accept else None,
    )
    return docker if settings.driver == "docker" else Auto(docker, Bubblewrap())
