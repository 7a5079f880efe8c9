"""Judges of one run against one case, each small and pure: a score from 0 to 1, whether that passes, and why.

A scorer that cannot score raises ConfigError: a case that nobody could judge has not passed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aibox.errors import ConfigError, MissingExtraError
from aibox.evals.case import Case
from aibox.evals.run import Run
from aibox.evals.trajectory import Match, fits
from aibox.protocols import Check, Embedder
from aibox.types import Decision, Scope

MAX_TEXT_CHARS = 200_000
"""Of an answer that a pattern of somebody's is run over."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a scorer thinks of one run. `value` is 0 to 1."""

    scorer: str
    value: float
    passed: bool
    reason: str = ""


class Scorer(Protocol):
    """Scores a run. It needs no more of a case than it compares with."""

    @property
    def name(self) -> str: ...

    async def score(self, run: Run, case: Case) -> Score: ...


@dataclass(frozen=True, slots=True)
class Exact:
    """The answer is the expected text, but for white space and, unless `case`, upper and lower case."""

    case: bool = False
    name: str = "exact"

    async def score(self, run: Run, case: Case) -> Score:
        got, want = _words(run.text), _words(_text(case))
        if not self.case:
            got, want = got.casefold(), want.casefold()
        return _score(self.name, got == want, f"got {got[:200]!r}, expected {want[:200]!r}")


@dataclass(frozen=True, slots=True)
class Includes:
    """The answer holds the expected text, or each of a list of them; upper and lower case are one."""

    name: str = "includes"

    async def score(self, run: Run, case: Case) -> Score:
        want = case.expected if isinstance(case.expected, list) else [case.expected]
        if not want or not all(isinstance(item, str | int | float) for item in want):
            raise ConfigError(f"case {case.id}: `includes` wants a text or a list of texts as expected")
        text = _words(run.text).casefold()
        missing = [str(item) for item in want if _words(str(item)).casefold() not in text]
        value = 1 - len(missing) / len(want)
        return Score(self.name, value, not missing, f"missing: {', '.join(missing)}" if missing else "")


@dataclass(frozen=True, slots=True)
class Regex:
    """The pattern, or the case's expected text as a pattern, is found in the answer."""

    pattern: str | None = None
    name: str = "regex"

    async def score(self, run: Run, case: Case) -> Score:
        pattern = self.pattern or _text(case)
        try:
            found = re.search(pattern, run.text[:MAX_TEXT_CHARS])
        except re.error as error:
            raise ConfigError(f"case {case.id}: not a regular expression: {error}") from None
        return _score(self.name, found is not None, f"{pattern!r} is not in {run.text[:200]!r}")


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The answer is JSON of this schema (draft 2020-12), or of the schema that the case expects."""

    schema: Mapping[str, Any] | None = None
    name: str = "json_schema"

    async def score(self, run: Run, case: Case) -> Score:
        try:
            import jsonschema
        except ImportError:
            raise MissingExtraError("the JSON schema scorer", extra="evals") from None
        schema = self.schema if self.schema is not None else case.expected
        if not isinstance(schema, Mapping):
            raise ConfigError(f"case {case.id}: there is no schema to compare with")
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise ConfigError(f"case {case.id}: not a schema: {error.message}") from None
        try:
            value = json.loads(run.text)
        except ValueError as error:
            return Score(self.name, 0.0, passed=False, reason=f"not JSON: {error}")
        errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(value), key=lambda e: e.json_path)
        return _score(self.name, not errors, "; ".join(f"{e.json_path}: {e.message[:200]}" for e in errors[:3]))


@dataclass(frozen=True, slots=True)
class Numeric:
    """A number in the answer is the expected one, within an absolute or a relative tolerance, whichever is wider.

    The answer's last number counts, or any of them with `anywhere`. `1,240.50`, `1 240.50` and `1.2e3` are read;
    a decimal comma is not.
    """

    absolute: float = 0.0
    relative: float = 1e-9
    anywhere: bool = False
    name: str = "numeric"

    async def score(self, run: Run, case: Case) -> Score:
        try:
            want = float(case.expected)
        except (TypeError, ValueError):
            raise ConfigError(f"case {case.id}: {case.expected!r} is not a number") from None
        numbers = [float(re.sub("[, \u00a0\u202f]", "", found)) for found in _NUMBER.findall(run.text[:MAX_TEXT_CHARS])]
        looked = numbers if self.anywhere else numbers[-1:]
        good = any(math.isclose(n, want, rel_tol=self.relative, abs_tol=self.absolute) for n in looked)
        return _score(
            self.name, good, f"got {', '.join(f'{n:g}' for n in looked[:5]) or 'no number'}, expected {want:g}"
        )


_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:[, \u00a0\u202f]\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w]|\.\d)"
)


@dataclass(frozen=True, slots=True)
class Similar:
    """The answer means what is expected: the cosine of their vectors is at least `least`.

    What a cosine is worth depends on the embedder; choose `least` on answers that people have judged.
    """

    embedder: Embedder
    least: float
    name: str = "similar"

    async def score(self, run: Run, case: Case) -> Score:
        got, want = await self.embedder.embed([run.text, _text(case)], kind="passage")
        cosine = sum(a * b for a, b in zip(got, want, strict=True))
        return Score(
            self.name, max(0.0, min(1.0, cosine)), cosine >= self.least, f"cosine {cosine:.3f}, wanted {self.least}"
        )


@dataclass(frozen=True, slots=True)
class Passes:
    """A check finds nothing in the answer: `Passes(PII())`, a grounding check, one of your own."""

    check: Check

    @property
    def name(self) -> str:
        return f"passes {self.check.name}"

    async def score(self, run: Run, case: Case) -> Score:  # noqa: ARG002 - a Scorer's face
        verdict = await self.check.check(run.text, where="output", scope=Scope.local(), label=run.label)
        clean = verdict.decision == Decision.ALLOW and not verdict.findings
        return _score(self.name, clean, "; ".join(verdict.reasons()) or f"it decided {verdict.decision}")


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools that ran are those that the case names. A case that names none is not scored by this: it passes."""

    match: Match = "ordered"
    name: str = "tools"

    async def score(self, run: Run, case: Case) -> Score:
        if case.tools is None:
            return Score(self.name, 1.0, passed=True, reason="the case names no tools")
        ran = [call for call in run.calls if call.began]
        good = fits(ran, [(name, {}) for name in case.tools], self.match)
        return _score(
            self.name,
            good,
            f"called {' '.join(c.name for c in ran) or 'nothing'}, expected {' '.join(case.tools) or 'nothing'}",
        )


@dataclass(frozen=True, slots=True)
class FinalState:
    """The world is as the case wants it, however the agent got there: `run.state` against `case.final`.

    Every difference is named by its path. Keys that the case does not mention may be anything, unless `exact`.
    """

    exact: bool = False
    name: str = "final_state"

    async def score(self, run: Run, case: Case) -> Score:
        if case.final is None:
            raise ConfigError(f"case {case.id} says nothing about the final state")
        wrong = list(_differences(case.final, run.state, "$", exact=self.exact))
        return _score(self.name, not wrong, "; ".join(wrong[:5]))


@dataclass(frozen=True, slots=True)
class Says:
    """A function of the reply's text (or object) says whether it is good: the way out for everything else."""

    test: Callable[[Any], bool]
    name: str = "says"

    async def score(self, run: Run, case: Case) -> Score:  # noqa: ARG002 - a Scorer's face
        return _score(self.name, bool(self.test(run.output)), f"not so for {str(run.output)[:200]!r}")


async def score_all(run: Run, case: Case, scorers: Sequence[Scorer]) -> tuple[Score, ...]:
    """What every scorer says; a turn that failed scores 0 with each. Raises ConfigError without a scorer."""
    if not scorers:
        raise ConfigError("nothing is scored without a scorer", hint="scorers=[Includes()]")
    if run.error is not None:
        reason = f"the turn failed: {run.error}"
        return tuple(Score(scorer.name, 0.0, passed=False, reason=reason) for scorer in scorers)
    return tuple([await scorer.score(run, case) for scorer in scorers])


def _differences(want: Any, got: Any, path: str, *, exact: bool) -> list[str]:
    if isinstance(want, Mapping) and isinstance(got, Mapping):
        wrong = [f"{path}.{key} is missing" for key in want if key not in got]
        if exact:
            wrong += [f"{path}.{key} is too much" for key in got if key not in want]
        shared = [key for key in want if key in got]
        return wrong + [
            line for key in shared for line in _differences(want[key], got[key], f"{path}.{key}", exact=exact)
        ]
    if isinstance(want, list | tuple) and isinstance(got, list | tuple):
        if len(want) != len(got):
            return [f"{path} has {len(got)} items, not {len(want)}"]
        pairs = enumerate(zip(want, got, strict=True))
        return [line for i, (w, g) in pairs for line in _differences(w, g, f"{path}[{i}]", exact=exact)]
    return [] if want == got else [f"{path} is {got!r}, not {want!r}"]


def _score(name: str, good: bool, reason: str) -> Score:
    return Score(name, float(good), good, "" if good else reason)


def _text(case: Case) -> str:
    if not isinstance(case.expected, str | int | float) or isinstance(case.expected, bool):
        raise ConfigError(f"case {case.id} expects no text to compare with")
    return str(case.expected)


def _words(text: str) -> str:
    return " ".join(text.split())
