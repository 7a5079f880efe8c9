"""The pytest plugin as its users meet it: pytest runs inside pytest, in a folder of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from aibox.evals.report import Report


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """pytester forgets what an inner session imported: what is cached by our own modules must outlive it."""
    import aibox.evals.gathered
    import aibox.evals.repeats
    from aibox.testing import ScriptedBackend

    aibox.Agent("x", router=ScriptedBackend("ok")).run_sync("x")


QUIET = (
    "-q",
    "-p",
    "no:randomly",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "--disable-socket",
    "--allow-unix-socket",
)

COUNTED = """
import json, pathlib, pytest
COUNT = pathlib.Path("count.json")

def number():
    n = json.loads(COUNT.read_text()) + 1 if COUNT.exists() else 1
    COUNT.write_text(json.dumps(n))
    return n
"""


def run(pytester: pytest.Pytester, code: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(code)
    return pytester.runpytest_inprocess(*QUIET, *options)


def output(result: pytest.RunResult) -> str:
    return "\n".join(result.outlines)


def test_an_unrelated_session_loads_nothing_of_aibox(tmp_path: Path) -> None:
    """Loading the plugin imports the lazy top module and the plugin's file, opens no socket, and takes under 10 ms."""
    (tmp_path / "test_other.py").write_text("def test_other():\n    assert 1 + 1 == 2\n")
    code = """
import sys, time, socket, pytest
opened = []
sys.addaudithook(lambda event, args: opened.append(event) if event.startswith("socket.") else None)
start = time.process_time()
import aibox.pytest_plugin
took = time.process_time() - start
assert pytest.main(["-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:xdist"]) == 0
names = sorted(name for name in sys.modules if name == "aibox" or name.startswith("aibox."))
print("RESULT", names, [e for e in opened if e != "socket.gethostname"], took < 0.010)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "RESULT ['aibox', 'aibox.pytest_plugin'] [] True" in done.stdout


def test_an_agent_is_tested_with_the_fixtures_alone(pytester: pytest.Pytester) -> None:
    """An async test needs no further plugin or marker: a scripted model, an agent with everything on, assertions."""
    result = run(
        pytester,
        """
        import aibox
        from aibox.testing import call

        @aibox.tool
        def owed(customer: str) -> float:
            "Open invoices of a customer, in EUR."
            return 1240.5

        async def test_books(agent_run, scripted, tenant, policy):
            model = scripted(call("owed", {"customer": "acme"}), "Acme owes 1240.50 EUR.")
            agent = agent_run.agent("You keep the books.", router=model, tools=[owed])
            run = await agent_run(agent, "What does Acme owe? Mail eva@example.org.")
            run.called("owed", customer="acme").times(1)
            run.guardrail("pii").decided("redact", where="input")
            run.no_egress()
            run.audit.verifies()
            run.within(model_calls=2, tool_calls=1)
            assert run.reply.receipt.tenant == tenant.tenant
            assert agent.parts.policy.digest == policy.digest
        """,
    )
    result.assert_outcomes(passed=1)
    assert "passed  test_an_agent_is_tested_with_the_fixtures_alone.py::test_books" in output(result)


def test_an_unused_script_fails_a_test_that_passed(pytester: pytest.Pytester) -> None:
    """A model asked less than its script says is a fault of the test; a test that failed anyway is not blamed twice."""
    result = run(
        pytester,
        """
        def test_unused(scripted):
            scripted("never asked for")

        def test_failed(scripted):
            scripted("never asked for")
            assert False
        """,
    )
    result.assert_outcomes(passed=1, errors=1, failed=1)
    assert "1 of 1 scripted answers were never asked for" in output(result)


def test_a_marked_test_runs_until_it_is_decided(pytester: pytest.Pytester) -> None:
    """Fourteen passes prove 0.8 and are one test; each run has fresh fixtures, those of the module live on."""
    result = run(
        pytester,
        COUNTED
        + """
made = []

@pytest.fixture
def fresh():
    made.append("f")
    yield len(made)

@pytest.fixture(scope="module")
def kept():
    yield object()

seen = set()

@pytest.mark.agent_eval(repeats=14, min_pass=0.8)
def test_eval(fresh, kept, tenant):
    seen.add((id(kept), ))
    assert number() == fresh
    assert tenant.session == f"run-{fresh - 1}"

def test_after():
    assert len(made) == 14
    assert len(seen) == 1
""",
    )
    result.assert_outcomes(passed=2)


def test_a_failing_gate_shows_the_first_failure_and_saves_runs(pytester: pytest.Pytester) -> None:
    """With fourteen of fourteen needed, the third run decides: eleven are saved, and the assertion is shown."""
    result = run(
        pytester,
        COUNTED
        + """
@pytest.mark.agent_eval(repeats=14, min_pass=0.8)
def test_eval():
    n = number()
    assert n != 3, f"run {n} said no"
""",
    )
    result.assert_outcomes(failed=1)
    said = output(result)
    assert (
        "2 of 3 runs passed; 14 of 14 must pass: 0.8 at least, at 95% confidence; stopped early, 11 runs saved" in said
    )
    assert "flaky" in said
    assert "run 3 said no" in said


def test_without_early_stop_all_runs_are_made(pytester: pytest.Pytester) -> None:
    """The outcome is the same, and the figures are of all runs."""
    result = run(
        pytester,
        COUNTED
        + """
@pytest.mark.agent_eval(repeats=20, min_pass=0.6, stop_early=False)
def test_eval():
    assert number() != 3
""",
    )
    result.assert_outcomes(passed=1)
    assert "19/20" in output(result)


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        ("repeats=10, min_pass=0.8, confidence=0.95", "repeats=14 is the fewest that can"),
        ("10", "by name"),
        ("repeat=3", "by name"),
        ("repeats=10, min_pass=1.5", "min_pass lies between"),
    ],
)
def test_a_gate_that_means_nothing_is_an_error_and_nothing_runs(
    pytester: pytest.Pytester, marker: str, says: str
) -> None:
    """The test is not run at all, and the message says what to write."""
    result = run(
        pytester, f"import pytest\n@pytest.mark.agent_eval({marker})\ndef test_eval():\n    open('ran', 'w')\n"
    )
    result.assert_outcomes(errors=1)
    assert says in output(result)
    assert not (pytester.path / "ran").exists()


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("raise aibox.ConfigError('wired wrongly')", "failed"),
        ("raise aibox.IntegrityError('does not hold')", "failed"),
        ("pytest.skip('not here')", "skipped"),
    ],
)
def test_what_is_no_outcome_of_a_run_ends_the_test_at_once(pytester: pytest.Pytester, body: str, outcome: str) -> None:
    """A mistake in the wiring, broken evidence and a skip are not counted and not repeated."""
    code = f"{COUNTED}\nimport aibox\n@pytest.mark.agent_eval(repeats=14)\ndef test_eval():\n    number()\n    {body}\n"
    result = run(pytester, code)
    result.assert_outcomes(**{outcome: 1})
    assert (pytester.path / "count.json").read_text() == "1"


def test_a_fixture_that_fails_is_an_error(pytester: pytest.Pytester) -> None:
    """Neither in set-up nor in tear-down is it taken for what the agent did."""
    result = run(
        pytester,
        COUNTED
        + """
@pytest.fixture
def broken():
    raise OSError("no disk")

@pytest.fixture
def leaving():
    yield
    raise OSError("no disk")

@pytest.mark.agent_eval
def test_a(broken):
    number()

@pytest.mark.agent_eval
def test_b(leaving):
    number()
""",
    )
    result.assert_outcomes(errors=2, passed=1)
    assert (pytester.path / "count.json").read_text() == "1"


CASSETTE = """
import aibox, pytest
from aibox.testing import ScriptedBackend

def model():
    assert {allowed}, "there is no model here"
    return ScriptedBackend(*["Paris."] * 40)

@pytest.mark.agent_eval(repeats=14)
async def test_capital(agent_run, cassette):
    agent = agent_run.agent("{prompt}", router=cassette(model))
    run = await agent_run(agent, "Capital of France? I am eva@example.org.")
    assert run.text == "Paris."
"""


def test_a_cassette_is_recorded_once_and_played_where_no_model_is(pytester: pytest.Pytester) -> None:
    """Fourteen runs are recorded and played back; a changed prompt fails with a diff; nothing personal is kept."""
    run(pytester, CASSETTE.format(allowed=True, prompt="Answer.")).assert_outcomes(passed=1)
    files = list((pytester.path / "cassettes").rglob("*.jsonl"))
    assert len(files) == 1
    text = files[0].read_text("utf-8")
    assert len(text.splitlines()) == 15
    assert "eva@example" not in text
    run(pytester, CASSETTE.format(allowed=False, prompt="Answer."), "--aibox-record=none").assert_outcomes(passed=1)
    missed = run(pytester, CASSETTE.format(allowed=False, prompt="Answer well."), "--aibox-record=none")
    missed.assert_outcomes(failed=1)
    assert "+  Answer well." in output(missed)
    run(pytester, CASSETTE.format(allowed=True, prompt="Answer well."), "--aibox-record=all").assert_outcomes(passed=1)
    assert "Answer well." in files[0].read_text("utf-8")


def test_in_continuous_integration_nothing_is_recorded(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where CI is set a request that is not on the cassette fails; saying otherwise is possible."""
    monkeypatch.setenv("CI", "true")
    run(pytester, CASSETTE.format(allowed=True, prompt="x")).assert_outcomes(failed=1)
    assert not (pytester.path / "cassettes").exists()
    run(pytester, CASSETTE.format(allowed=True, prompt="x"), "--aibox-record=once").assert_outcomes(passed=1)


BUDGET = """
import pytest
async def test_{name}(agent_run, scripted, budget):
    {limit}
    agent = agent_run.agent("x", router=scripted(*["one two three four five"] * {turns}))
    for _ in range({turns}):
        await agent_run(agent, "hello there")
"""


def test_a_budget_stops_a_test_and_a_session(pytester: pytest.Pytester) -> None:
    """A test's own limit and the one of the session each stop before the next turn; what is unlimited goes on."""
    own = BUDGET.format(name="own", limit="budget.limit(tokens=12)", turns=5)
    result = run(pytester, own)
    result.assert_outcomes(failed=1)
    assert "the budget is 12" in output(result)
    free = BUDGET.format(name="free", limit="pass", turns=5)
    run(pytester, free).assert_outcomes(passed=1)
    run(pytester, free, "--aibox-max-tokens=12").assert_outcomes(failed=1)
    unknown = run(pytester, free, "--aibox-max-usd=1")
    unknown.assert_outcomes(failed=1)
    assert "limit tokens" in output(unknown)


JUDGE = """
import aibox
from aibox.testing import ScriptedBackend
from aibox.evals.case import Case

def make():
    return ScriptedBackend('{"reason": "it is polite", "verdict": "pass"}')

async def test_judged(agent_run, scripted, judge):
    run = await agent_run(agent_run.agent("x", router=scripted("Good day.")), "Hi")
    score = await judge("The answer is polite.").score(run, Case(id="c", input="Hi"))
    assert score.passed, score.reason
"""


def test_a_judge_comes_from_an_option(pytester: pytest.Pytester) -> None:
    """`--aibox-judge` names what makes the backend; without it a judge without a backend says what to give."""
    missing = run(pytester, JUDGE)
    missing.assert_outcomes(failed=1)
    assert "--aibox-judge=module:attr" in output(missing)
    name = next(pytester.path.glob("test_*.py")).stem
    run(pytester, JUDGE, f"--aibox-judge={name}:make").assert_outcomes(passed=1)


SEVERAL = """
import pytest, aibox
from aibox.evals.case import Dataset

CASES = Dataset.of([{{"id": f"c{{n}}", "input": f"{{n}}"}} for n in range({cases})])

@pytest.mark.parametrize("case", CASES.params())
async def test_case(agent_run, scripted, case):
    run = await agent_run(agent_run.agent("x", router=scripted("yes")), case.input)
    assert int(case.input) not in {wrong}
"""


def test_reports_are_written_signed_and_can_be_checked(pytester: pytest.Pytester) -> None:
    """JSON, Markdown, HTML and JUnit; each run is found in the log, and the report in its receipt."""
    result = run(pytester, SEVERAL.format(cases=3, wrong=[1]), "--aibox-report=out", "--junitxml=own.xml")
    result.assert_outcomes(passed=2, failed=1)
    folder = pytester.path / "out"
    report = Report.load(folder / "report-1.json")
    report.verify((folder / "keys" / "log.pub").read_text())
    assert [result.solved for result in report.results] == [True, False, True]

    import aibox

    async def check() -> tuple[int, bool]:
        async with aibox.AuditChain(folder / "audit.db") as chain:
            return await report.check(chain), (await chain.verify()).ok

    assert aibox.run_sync(check()) == (3, True)
    assert "c1" in (folder / "report.md").read_text()
    assert "<script" not in (folder / "report.html").read_text()
    assert ET.fromstring((folder / "junit.xml").read_text())[0].get("failures") == "1"
    assert 'name="aibox.passed" value="1/1"' in (pytester.path / "own.xml").read_text()


def test_workers_send_what_they_found_to_one_report(pytester: pytest.Pytester) -> None:
    """Under xdist there is one report over all workers, with the evidence of each in one chain."""
    pytester.makepyfile(SEVERAL.format(cases=6, wrong=[]))
    options = ["-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    done = pytester.runpytest_subprocess(*options, "-n2", "--aibox-report=out")
    done.assert_outcomes(passed=6)
    report = Report.load(pytester.path / "out" / "report-1.json")
    report.verify()
    assert len(report.results) == 6

    import aibox

    async def check() -> int:
        async with aibox.AuditChain(pytester.path / "out" / "audit.db") as chain:
            return await report.check(chain)

    assert aibox.run_sync(check()) == 6


def test_a_baseline_fails_what_is_worse_and_names_it(pytester: pytest.Pytester) -> None:
    """Six lost of eight are worse; with a margin, a session fails also where no-worse is not shown."""
    base = ("--aibox-baseline=base.jsonl",)
    missing = run(pytester, SEVERAL.format(cases=8, wrong=[]), *base)
    assert missing.ret == 1
    assert "--aibox-update-baseline" in output(missing)
    assert run(pytester, SEVERAL.format(cases=8, wrong=[]), *base, "--aibox-update-baseline").ret == 0
    assert len((pytester.path / "base.jsonl").read_text().splitlines()) == 9
    assert json.loads((pytester.path / "base.jsonl").read_text().splitlines()[1])["solved"] is True
    same = run(pytester, SEVERAL.format(cases=8, wrong=[]), *base)
    assert same.ret == 0
    worse = output(run(pytester, SEVERAL.format(cases=8, wrong=[0, 1, 2, 3, 4, 5]), *base))
    assert "against the baseline: worse (won 0, lost 6 of 8)" in worse
    assert worse.count("  lost: ") == 6
    assert run(pytester, SEVERAL.format(cases=8, wrong=[]), *base, "--aibox-margin=0.05").ret == 1
    assert run(pytester, SEVERAL.format(cases=8, wrong=[]), *base, "--aibox-margin=0.7").ret == 0
    fewer = output(run(pytester, SEVERAL.format(cases=9, wrong=[]), *base))
    assert "not in the baseline: " in fewer
