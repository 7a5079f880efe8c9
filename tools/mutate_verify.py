#!/usr/bin/env python3
"""Take out the checks of the verifiers one at a time: each time a test must fail, or the check is not known to work.

    python tools/mutate_verify.py [part of a module's name or of a check]

A check is an `if` that ends in a `raise` or in a reported problem, or a call that exists to raise. The tests are
collected once and run once, watched: that tells how long each takes and which lines it reaches. Then each mutant has a
process of its own, forked with everything imported, where one function is exchanged and the tests that reach the check
run, the quickest first, until one fails. The tree is left alone. Exit code 1 and a list when a mutant survives.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

ROOT = Path(__file__).resolve().parent.parent
AT_ONCE = 2
TIMEOUT_S = 10
AUDIT = (
    "walk", "verify", "receipt", "rotation", "checkpoint", "merkle", "sealed", "record", "canonical", "epochs", "spot",
    "bundle", "offline/verify_receipt", "offline/verify_bundle",
)  # fmt: skip
"""What a verdict is made of, in aibox and in the verifier that needs no aibox."""
FILES = [ROOT / "aibox" / "audit" / f"{name}.py" for name in AUDIT]
TESTS = (
    "walk", "attacks", "people", "history", "receipt", "tools", "bundle", "retention", "checkpoint", "merkle", "record",
    "canonical",
)  # fmt: skip
CALLS = {
    "verify_inclusion", "hold_rotation", "_hold_lengths", "_tag", "_lead_to", "_derived", "_people", "_checkpoints",
    "_key_act", "_act", "_check", "_check_text", "verify_signature", "read_private", "read_open", "rotate",
    "hold", "check_rotation", "_step", "signed_by", "hold_inclusion", "follow_rotations", "read_key",
}  # fmt: skip
WRITER_ONLY = {"make_parts", "keep", "first", "known", "_locked", "as_dict", "load", "save", "__repr__", "main"}
"""Functions that write or read files; their refusals have tests of their own and are no part of a verdict."""


@dataclass(frozen=True)
class Mutant:
    """A check: its place, the function that holds it, its text."""

    file: Path
    number: int
    function: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file.stem}:{self.line} {self.function}: {self.what}"


Try = tuple[Mutant, list[pytest.Item], int]
"""A mutant, the tests that reach it, the seconds after which they count as failed."""


class Mutator(ast.NodeTransformer):
    """Finds the checks of a file in order; takes out the one whose number it is given."""

    def __init__(self, file: Path, number: int = -1) -> None:
        self.file = file
        self.number = number
        self.found: list[Mutant] = []
        self._names: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self._names.append(node.name)
        self.generic_visit(node)
        self._names.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self._names.append(node.name)
        if node.name not in WRITER_ONLY:
            self.generic_visit(node)
        self._names.pop()
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if _refuses(node.body) and self._take(node, f"if {ast.unparse(node.test)[:90]}"):
            node.test = ast.copy_location(ast.Constant(value=False), node.test)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        call = node.value
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in CALLS and self._take(node, ast.unparse(call)[:90]):
                return ast.copy_location(ast.Pass(), node)
        return node

    def _take(self, node: ast.stmt, what: str) -> bool:
        self.found.append(Mutant(self.file, len(self.found), ".".join(self._names), node.lineno, what))
        return len(self.found) - 1 == self.number

    def run(self) -> ast.Module:
        tree = ast.parse(self.file.read_text("utf-8"))
        self.visit(tree)
        return tree


def _refuses(body: list[ast.stmt]) -> bool:
    if isinstance(body[-1], ast.Raise):
        return True
    texts = [ast.unparse(statement) for statement in body if isinstance(statement, ast.Expr)]
    return any(text.startswith(("self._problem(", "report.problems.append(")) for text in texts)


def exchange(mutant: Mutant) -> None:
    """In this process the function does without its check from now on, wherever it is held."""
    # A function inside another is a constant of it: the outermost one is exchanged.
    code = compile(Mutator(mutant.file, mutant.number).run(), str(mutant.file), "exec", dont_inherit=True)
    fresh = {found.co_qualname: found for found in _codes(code)}
    places = [
        thing
        for thing in gc.get_objects()
        if isinstance(thing, FunctionType)
        and mutant.function.startswith(thing.__code__.co_qualname)
        and Path(thing.__code__.co_filename).resolve() == mutant.file
    ]
    assert places, mutant
    for place in places:
        place.__code__ = fresh[place.__code__.co_qualname]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


class Watch:
    """Which lines of the files are reached, on whatever thread."""

    def __init__(self) -> None:
        self._files = {str(file) for file in FILES}
        self.lines: set[tuple[str, int]] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        if event == "line":
            self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self

    def __enter__(self) -> Watch:
        threading.settrace(self)
        sys.settrace(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        threading.settrace(None)


class Run:
    """A pytest plugin that runs mutants where tests would be run."""

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.survivors: list[Mutant] = []
        self.count = 0
        self.failed: list[str] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        started = time.monotonic()
        items = {item.nodeid: item for item in session.items}
        seen: dict[str, Any] = json.loads(_in_a_child(lambda: _watched(session.items))[1])
        self.failed = [f"{name}\n{complaint}" for name, (_, complaint, _) in seen.items() if complaint]
        if self.failed:
            return True
        print(f"{len(seen)} tests pass, in {time.monotonic() - started:.0f} s", flush=True)
        todo: list[Try] = []
        for file in FILES:
            finder = Mutator(file)
            finder.run()
            for mutant in finder.found:
                if self.wanted in str(mutant):
                    reach = [name for name, (_, _, lines) in seen.items() if [str(file), mutant.line] in lines]
                    reach.sort(key=lambda name: seen[name][0])
                    patience_s = TIMEOUT_S + 3 * round(sum(seen[name][0] for name in reach))
                    todo.append((mutant, [items[name] for name in reach], patience_s))
        self.count = len(todo)
        self._try(todo)
        print(f"{self.count - len(self.survivors)} of {self.count} checks are known to work, "
              f"in {time.monotonic() - started:.0f} s")  # fmt: skip
        return True

    def _try(self, todo: list[Try]) -> None:
        running: dict[int, Mutant] = {}
        while todo or running:
            while todo and len(running) < AT_ONCE:
                mutant, tests, patience_s = todo.pop(0)
                if (child := os.fork()) == 0:
                    os._exit(_passes_without(mutant, tests, patience_s))
                running[child] = mutant
            child, status = os.wait()
            mutant = running.pop(child)
            # A signal is the alarm, or a crash: without the check a test did not come to its end.
            if alive := os.waitstatus_to_exitcode(status) == 0:
                self.survivors.append(mutant)
            print("SURVIVES" if alive else "found   ", mutant, flush=True)


def _passes_without(mutant: Mutant, tests: list[pytest.Item], patience_s: int) -> int:
    _quiet()
    signal.alarm(patience_s)
    exchange(mutant)
    for test, following in zip(tests, [*tests[1:], None], strict=True):
        if _complaint(test, following):
            return 1
    return 0


def _complaint(test: pytest.Item, following: pytest.Item | None) -> str:
    """What pytest says of a test that fails; nothing of one that passes."""
    random.seed(0)
    reports = runtestprotocol(test, log=False, nextitem=following)
    return "\n".join(report.longreprtext or "failed" for report in reports if report.failed)


def _watched(items: list[pytest.Item]) -> str:
    found = {}
    for item, following in zip(items, [*items[1:], None], strict=True):
        started = time.monotonic()
        with Watch() as watch:
            complaint = _complaint(item, following)
        found[item.nodeid] = time.monotonic() - started, complaint, sorted(watch.lines)
    return json.dumps(found)


def _in_a_child(act: Any) -> tuple[int, str]:
    """What `act` returns there: this process stays as it is, with nothing set up."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _quiet()
        with os.fdopen(writing, "w") as file:
            file.write(act())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def _quiet() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def main(wanted: str = "") -> int:
    os.chdir(ROOT)
    os.environ["AIBOX_TEST_HYPOTHESIS"] = "same"
    run = Run(wanted)
    tests = [str(ROOT / "tests" / "audit" / f"test_audit_{name}.py") for name in TESTS]
    options = ["-qq", "-s", "-p", "no:randomly", "-p", "no:xdist", *tests]
    code = pytest.main(options, plugins=[run])
    for name in run.failed:
        print(f"fails with all checks in place: {name}")
    for mutant in run.survivors:
        print(f"survives: {mutant}")
    return 2 if run.failed or (code and not run.count) else int(bool(run.survivors) or not run.count)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
