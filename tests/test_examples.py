"""Every example runs as it stands: in this process, in a folder of its own, with no network."""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path

import anyio
import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
SAYS = {
    "air_gapped": ["small: 1 files", "answered under the seal: True", "one bit changed on the way: does not hold"],
    "approval_in_a_terminal": ["sent: ['bob: The report is ready.']"],
    "books": ["Acme owes 1240.50 EUR.", "called: ['owed']", "holds:"],
    "clinic_intake": ["inside/inside: Patient 17", "outside/outside: refused"],
    "contract_search": ["90 days", "hosting.md", "41 million"],
    "custom_backend": ["MORNING"],
    "custom_check": ["-> block", "-> redact", "-> allow"],
    "data_analyst": ["mean 153", "and out to the network: OSError"],
    "many_tenants": ["acme remembers", "initech evidence"],
    "mcp_server": ["20 degrees, and could tell nobody", "the agent said: It is 20 degrees."],
    "two_subagents": ["reader called files", "The letter: Dear Acme"],
}
OWN = {"embedded_in_fastapi", "test_an_agent"}


def test_every_example_is_run() -> None:
    """None is left out, and each is one idea in at most 60 lines."""
    assert {path.stem for path in EXAMPLES} == set(SAYS) | OWN
    for path in EXAMPLES:
        assert path.read_text("utf-8").count("\n") <= 60, path.name


@pytest.mark.parametrize("name", SAYS)
def test_an_example_says_what_it_promises(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a reader would see on the screen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    runpy.run_path(str(EXAMPLES[0].parent / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    for line in SAYS[name]:
        assert line in said


def test_a_private_contract_is_found_by_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The merger stands in what Eva is shown and not in what Bob is."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES[0].parent / "contract_search.py"), run_name="__main__")
    eva, _, bob = capsys.readouterr().out.partition("-- bob")
    assert "41 million" in eva
    assert "41 million" not in bob


def test_the_application_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole and streamed, through the application itself and without a port."""
    import httpx2

    monkeypatch.chdir(tmp_path)
    app = runpy.run_path(str(EXAMPLES[0].parent / "embedded_in_fastapi.py"))["app"]

    async def ask() -> tuple[dict[str, str], str]:
        transport = httpx2.ASGITransport(app=app)
        headers = {"x-user": "eva"}
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://app.invalid", headers=headers) as client,
        ):
            whole = await client.post("/ask", json={"question": "Hello"})
            streamed = await client.post("/stream", json={"question": "Hello again"})
            return whole.json(), streamed.text

    whole, streamed = anyio.run(ask)
    assert whole["answer"] == "You said: Hello"
    assert streamed == "You said: Hello again"


def test_the_tests_of_the_example_pass(pytester: pytest.Pytester) -> None:
    """pytest runs it with the fixtures alone."""
    pytester.makepyfile(test_an_agent=(EXAMPLES[0].parent / "test_an_agent.py").read_text("utf-8"))
    pytester.runpytest_inprocess("-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:xdist").assert_outcomes(
        passed=4
    )
