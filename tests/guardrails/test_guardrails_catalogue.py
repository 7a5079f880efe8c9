"""Checks that installed packages bring: found by entry point, loaded only when asked for, never in place of our own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aibox.errors import ConfigError
from aibox.guardrails.catalogue import brought, built_in, offered
from aibox.guardrails.guardrail import Guardrail
from aibox.policy.policy import Policy
from aibox.protocols import Check
from aibox.testing.check_contract import CheckContract
from aibox.types import Decision, Scope

MODULE = """
from aibox.types import Decision, Finding, Verdict


class CodeNames:
    name = "code_names"

    async def check(self, text, *, where="input", scope, label=None):
        at = text.find("Falcon")
        found = (Finding("code_names", "project", (at, at + 6), 0.9, "a project"),) if at >= 0 else ()
        return Verdict(Decision.FLAG if found else Decision.ALLOW, text, found, where=where)


class Misnamed(CodeNames):
    name = "something_else"


def broken():
    raise RuntimeError("no")
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "acme_checks.py").write_text(MODULE, "utf-8")
    package(tmp_path, "acme", "code_names = acme_checks:CodeNames\npii = acme_checks:CodeNames\n")
    package(tmp_path, "odd", "misnamed = acme_checks:Misnamed\nbroken = acme_checks:broken\ngone = nowhere:Check\n")
    package(tmp_path, "first", "twice = acme_checks:CodeNames\n")
    package(tmp_path, "second", "twice = acme_checks:Misnamed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("acme_checks", None)


def package(folder: Path, name: str, entries: str) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text(f"[aibox.checks]\n{entries}", "utf-8")


class TestABroughtCheckHoldsTheContract(CheckContract):
    found = "Falcon is late."
    clean = "The train is late."

    @pytest.fixture
    def check(self, installed: None) -> Check:
        return brought(["code_names"])["code_names"]


@pytest.mark.anyio
async def test_a_policy_that_names_it_gets_it(scope: Scope) -> None:
    """An installed check is asked where the policy names it, as a built-in one is."""
    guardrail = Guardrail(Policy.read({"checks": {"code_names": {"input": "block"}}}))
    assert (await guardrail.check("Falcon is late.", scope=scope)).decision == Decision.BLOCK


def test_nothing_is_loaded_that_no_policy_names() -> None:
    """A package that is merely installed runs no code: its names are listed without importing it."""
    Guardrail(Policy.profile("balanced"))
    assert "code_names" in offered()
    assert "acme_checks" not in sys.modules


def test_a_built_in_check_cannot_be_replaced_by_installing_something() -> None:
    """A package that brings a check of a built-in name is passed by."""
    Guardrail(Policy.read({"checks": {"pii": {"input": "block"}}}))
    assert "acme_checks" not in sys.modules
    assert "pii" in built_in()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("misnamed", "calls itself 'something_else'"),
        ("broken", "cannot be loaded: RuntimeError: no"),
        ("gone", "cannot be loaded: ModuleNotFoundError"),
        ("twice", r"two packages bring a check 'twice'"),
        ("absent", r"not there: absent \(known are .*code_names"),
    ],
)
def test_a_check_that_cannot_be_had_is_an_error(name: str, message: str) -> None:
    """No guardrail is built without a check that its policy asks for; the error says why, and what there is."""
    with pytest.raises(ConfigError, match=message):
        Guardrail(Policy.read({"checks": {name: {"input": "block"}}}))
