"""pytest for agents: fixtures, options, one marker. Until a test uses them nothing of aibox is imported but this file.

What they do is in `aibox.evals`; see docs/evals.md.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from aibox.evals.budget import Budget
    from aibox.evals.fixtures import AgentRun, Cassettes, Judges, Scripts
    from aibox.policy.policy import Policy
    from aibox.types import Scope

MARKER = "agent_eval"
_ASYNC = ("anyio", "asyncio", "trio")
RUNS = pytest.StashKey["list[Any]"]()
"""What `agent_run` observed in the present run of a test."""
RAISED = pytest.StashKey["BaseException | None"]()
"""What the present run of a test raised."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("aibox", "agents under test (aibox)")
    modes = ("none", "once", "new", "all")
    for name, options in {
        "record": {
            "choices": modes,
            "help": "cassettes: none (the default where CI is set), once (the default), new, all",
        },
        "cassettes": {"metavar": "DIR", "help": "folder of the cassettes; by default `cassettes` beside the test"},
        "policy": {"metavar": "NAME", "help": "policy of the fixture `policy`: a profile or a TOML file; balanced"},
        "judge": {"metavar": "MODULE:ATTR", "help": "what makes the backend of the fixture `judge`"},
        "max-tokens": {"type": int, "metavar": "N", "help": "tokens that all agents of this process may use"},
        "max-usd": {"type": float, "metavar": "USD", "help": "money that all agents of this process may spend"},
        "max-s": {"type": float, "metavar": "S", "help": "seconds that all turns of this process may take"},
        "report": {"metavar": "DIR", "help": "write signed reports there: JSON, Markdown, HTML, JUnit"},
        "audit": {"metavar": "FILE", "help": "chain that the agents record in; DIR/audit.db, else a temporary one"},
        "baseline": {"metavar": "FILE", "help": "compare with this baseline, test by test; fail when it is worse"},
        "margin": {"type": float, "metavar": "X", "help": "fail unless shown to be no worse by more than this share"},
    }.items():
        group.addoption(f"--aibox-{name}", default=None, **options)  # type: ignore[arg-type]  # options of argparse
    group.addoption("--aibox-update-baseline", action="store_true", help="write the baseline from this session")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(repeats=14, min_pass=0.8, confidence=0.95, stop_early=True): run the test up to `repeats` times; it "
        "passes when that proves, with this confidence, that a run passes with at least `min_pass`",
    )
    config.pluginmanager.register(_Gathered(config), "aibox-gathered")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """A marked test is run until its gate is decided, and reported once."""
    marker = item.get_closest_marker(MARKER)
    if marker is None:
        return None
    from aibox.evals.repeats import Keys, repeat

    repeat(item, nextitem, marker, Keys(RUNS, RAISED))
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """An asynchronous test of an agent that no other plugin was asked to run."""
    import inspect

    ours = "agent_run" in pyfuncitem.fixturenames or pyfuncitem.get_closest_marker(MARKER)
    if not ours or not inspect.iscoroutinefunction(pyfuncitem.obj) or any(map(pyfuncitem.get_closest_marker, _ASYNC)):
        return None
    import asyncio

    # The names that the function takes, and no others: autouse fixtures are in funcargs too.
    wanted = pyfuncitem._fixtureinfo.argnames  # noqa: SLF001 - as pytest's own hook does
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call":
        item.stash[RAISED] = call.excinfo.value if call.excinfo else None
        if item.stash.get(RUNS, None) and item.get_closest_marker(MARKER) is None:
            from aibox.evals.repeats import once

            once(item, report, item.stash[RUNS])
    return report


class _Gathered:
    """Where the results of one session arrive, also those of its workers."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._results: list[dict[str, Any]] = []
        self._lines: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if found := getattr(report, "aibox", None):
            self._results.append(found)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Reports and baseline: once, by the process that hears of all."""
        if not self._results or hasattr(self._config, "workerinput"):
            return
        from aibox.evals.gathered import finish

        good, self._lines = finish(self._results, self._config)
        if not good and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._lines:
            terminalreporter.section("agents")
            for line in self._lines:
                terminalreporter.write_line(line)


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> Scope:
    """The scope of this run of this test: a tenant of its own for the test, a session of its own for the run."""
    from aibox.evals.fixtures import tenant_of

    return tenant_of(request.node)


@pytest.fixture
def policy(request: pytest.FixtureRequest) -> Policy:
    """The policy under test: `--aibox-policy`, by default the profile `balanced`."""
    from aibox.evals.fixtures import policy_of

    return policy_of(request.config)


@pytest.fixture
def scripted(request: pytest.FixtureRequest) -> Iterator[Scripts]:
    """`scripted("answer", call("tool", {...}))` is a model; a test that passes must have used up what it scripted."""
    from aibox.evals.fixtures import Scripts

    scripts = Scripts()
    yield scripts
    if request.node.stash.get(RAISED, None) is None:
        scripts.assert_done()


@pytest.fixture
def cassette(request: pytest.FixtureRequest) -> Iterator[Cassettes]:
    """`cassette(backend)` is that backend, recorded or played back; written when the test ends."""
    from aibox.evals.fixtures import cassettes_of

    cassettes = cassettes_of(request.node)
    yield cassettes
    cassettes.save()


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Judges:
    """`judge("rubric", backend)` is a scorer; without a backend `--aibox-judge` makes one."""
    from aibox.evals.fixtures import Judges

    return Judges(request.config.getoption("--aibox-judge"))


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> Budget:
    """What the agents of this test may use, under what all may: `budget.limit(tokens=5000)`."""
    from aibox.evals.fixtures import budget_of

    return budget_of(request.config).child()


@pytest.fixture
def agent_run(request: pytest.FixtureRequest, tenant: Scope, policy: Policy, budget: Budget) -> AgentRun:
    """`await agent_run(agent, "question")` is a `Run`; `agent_run.agent(...)` makes an agent with everything on."""
    from aibox.evals.fixtures import AgentRun, chain_of

    runs = request.node.stash.setdefault(RUNS, [])
    return AgentRun(scope=tenant, policy=policy, budget=budget, chain=chain_of(request), runs=runs)
