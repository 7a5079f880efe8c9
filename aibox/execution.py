"""What a run of code may use, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from aibox.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one sandbox session may use. All are upper bounds; joining two takes the smaller of each.

    `memory_mib` is resident memory of all processes together; `pids` counts processes and threads; `wall_s` is the time
    of one run; `output_kib` is what is kept of stdout and of stderr each; `workspace_mib` bounds one file and the whole
    workspace.
    """

    memory_mib: int = 512
    pids: int = 64
    wall_s: float = 30.0
    output_kib: int = 256
    workspace_mib: int = 128

    def __post_init__(self) -> None:
        for limit in fields(self):
            if getattr(self, limit.name) <= 0:
                raise ConfigError(f"a sandbox limit must be above 0: {limit.name}")

    def __and__(self, other: Limits) -> Limits:
        return Limits(**{f.name: min(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one run. A command that fails is a result; only an isolation that fails is an exception.

    `exit_code` is None when the run was stopped; `limits_hit` then names the limits in words a model can act on.
    """

    stdout: str
    stderr: str
    exit_code: int | None
    duration_s: float
    peak_memory_mib: float | None = None
    truncated: bool = False
    limits_hit: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.exit_code == 0
