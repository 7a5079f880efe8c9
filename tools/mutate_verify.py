#!/usr/bin/env python3
"""Take out the checks of the verifier one at a time: each time a test must fail, or the check is not known to work.

    python tools/mutate_verify.py [part of a module's name or of a check]

A check is an `if` that ends in a `raise` or in a reported problem, or a call that exists to raise. Mutants are made
in a copy of the package, two run at a time, and the tree is left alone. Exit code 1 and a list when one survives.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
AT_ONCE = 2
TIMEOUT_S = 300
# What is verified, by whom: the tests that hold each module, the likely one first.
MODULES = {
    "walk": ["walk", "attacks", "history", "people"],
    "verify": ["attacks", "people", "history"],
    "receipt": ["receipt", "people", "tools"],
    "rotation": ["walk", "history", "tools"],
    "checkpoint": ["checkpoint", "attacks"],
    "merkle": ["merkle"],
    "sealed": ["record", "people"],
    "record": ["record"],
    "canonical": ["canonical"],
    "epochs": ["history"],
    "spot": ["history"],
}
CALLS = {
    "verify_inclusion", "hold_rotation", "_hold_lengths", "_tag", "_lead_to", "_derived", "_people", "_checkpoints",
    "_key_act", "_act", "_check", "_check_text", "verify_signature", "read_private", "read_open", "rotate",
}  # fmt: skip
WRITER_ONLY = {"make_parts", "hold_size", "keep", "first", "known", "_locked", "as_dict", "load", "save", "__repr__"}
"""Functions that write or read files; their refusals have tests of their own and are no part of a verdict."""


class Mutator(ast.NodeTransformer):
    """Finds the checks in order; takes out the one whose number it is given."""

    def __init__(self, number: int = -1) -> None:
        self.number = number
        self.found: list[str] = []
        self._function = ""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        outer, self._function = self._function, node.name
        if node.name not in WRITER_ONLY:
            self.generic_visit(node)
        self._function = outer
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if _refuses(node.body):
            if len(self.found) == self.number:
                node.test = ast.Constant(value=False)
            self.found.append(f"{self._function}: if {ast.unparse(node.test)[:90]}")
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        call = node.value
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in CALLS:
                taken = len(self.found) == self.number
                self.found.append(f"{self._function}: {ast.unparse(call)[:90]}")
                if taken:
                    return ast.Pass()
        return node


def _refuses(body: list[ast.stmt]) -> bool:
    last = body[-1]
    if isinstance(last, ast.Raise):
        return True
    return any("_problem(" in ast.unparse(statement) for statement in body if isinstance(statement, ast.Expr))


def mutants() -> Iterator[tuple[str, int, str]]:
    for module in MODULES:
        finder = Mutator()
        finder.visit(ast.parse((ROOT / "aibox" / "audit" / f"{module}.py").read_text("utf-8")))
        for number, what in enumerate(finder.found):
            yield module, number, what


def survives(module: str, number: int) -> bool:
    """Whether all tests pass without this check."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(ROOT / "aibox", Path(name) / "aibox", ignore=shutil.ignore_patterns("__pycache__"))
        path = Path(name) / "aibox" / "audit" / f"{module}.py"
        tree = Mutator(number).visit(ast.parse(path.read_text("utf-8")))
        path.write_text(ast.unparse(ast.fix_missing_locations(tree)), "utf-8")
        tests = [f"tests/audit/test_audit_{test}.py" for test in MODULES[module]]
        tests = [test for test in tests if (ROOT / test).exists()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:xdist", *tests]
        # Without PYTHONSAFEPATH, `python -m` would find the tree's own package first.
        env = {**os.environ, "PYTHONPATH": name, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


def main(wanted: str = "") -> int:
    todo = [mutant for mutant in mutants() if wanted in f"{mutant[0]} {mutant[2]}"]
    started, survivors = time.monotonic(), []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = pool.map(lambda mutant: survives(mutant[0], mutant[1]), todo)
        for (module, number, what), alive in zip(todo, results, strict=True):
            print(f"{'SURVIVES' if alive else 'found   '} {module} {number}: {what}", flush=True)
            if alive:
                survivors.append((module, what))
    print(
        f"{len(todo) - len(survivors)} of {len(todo)} checks are known to work, in {time.monotonic() - started:.0f} s"
    )
    return 1 if survivors or not todo else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
