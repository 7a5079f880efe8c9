"""Which tools ran, in which order, with which arguments: assertions that chain."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aibox.errors import ConfigError

Match = Literal["exact", "ordered", "unordered", "superset"]
"""How tool calls compare with what was expected: the same in the same order; the expected ones in that order, others
between them; the same in any order; at least the expected ones, in any order."""


def hold(condition: bool, message: str) -> None:
    """An assertion that also holds under `python -O`, which leaves out the statement."""
    if not condition:
        raise AssertionError(message)


class Matcher:
    """Matches an argument when `test` is true of it. Compare with `==`, so that it may stand inside a structure."""

    __hash__ = None  # type: ignore[assignment]  # equal to many things, so it has no hash

    def __init__(self, test: Callable[[Any], bool], words: str) -> None:
        self._test = test
        self._words = words

    def __eq__(self, value: object) -> bool:
        try:
            return bool(self._test(value))
        except (TypeError, ValueError, AttributeError):
            return False

    def __repr__(self) -> str:
        return self._words


def anything() -> Matcher:
    """Any value."""
    return Matcher(lambda _: True, "anything()")


def contains(part: Any) -> Matcher:
    """A text or list that holds `part`; in texts, upper and lower case are one."""

    def test(value: Any) -> bool:
        return (
            part.casefold() in value.casefold() if isinstance(value, str) and isinstance(part, str) else part in value
        )

    return Matcher(test, f"contains({part!r})")


def matches(pattern: str) -> Matcher:
    """A text in which the regular expression is found."""
    return Matcher(lambda value: re.search(pattern, value) is not None, f"matches({pattern!r})")


def near(number: float, *, within: float) -> Matcher:
    """A number at most `within` away; never true of a bool."""
    return Matcher(
        lambda value: not isinstance(value, bool) and math.isfinite(value) and abs(value - number) <= within,
        f"near({number:g}, within={within:g})",
    )


@dataclass(frozen=True, slots=True)
class Called:
    """One tool call. `began` is False where it was refused before it could run; its arguments are not known then."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    began: bool = True
    ok: bool = True
    result: str = ""

    def fits(self, name: str, arguments: Mapping[str, Any]) -> bool:
        missing = object()
        return self.name == name and all(value == self.arguments.get(key, missing) for key, value in arguments.items())


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The tool calls of one turn, and of them those that an assertion is about (`chosen`, places in the whole)."""

    calls: tuple[Called, ...]
    shown: str = ""
    chosen: tuple[int, ...] = ()
    words: str = ""

    def called(self, name: str, **arguments: Any) -> Trajectory:
        """The tool ran with these arguments. Raises AssertionError; what follows is about these calls."""
        words = f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"
        chosen = tuple(i for i, call in enumerate(self.calls) if call.began and call.fits(name, arguments))
        if not chosen:
            refused = any(call.name == name and not call.began for call in self.calls)
            raise AssertionError(f"{words} was {'refused' if refused else 'not called'}{self.shown}")
        return replace(self, chosen=chosen, words=words)

    def never_called(self, *names: str) -> None:
        ran = sorted({call.name for call in self.calls if call.began} & set(names))
        hold(not ran, f"{', '.join(ran)} was called{self.shown}")

    def times(self, least: int, most: int | None = None) -> Trajectory:
        """It ran so many times: exactly `least`, or from `least` to `most`."""
        most = least if most is None else most
        count = len(self._about())
        hold(
            least <= count <= most,
            f"{self.words} was called {count} times, not {least}{f' to {most}' if most != least else ''}{self.shown}",
        )
        return self

    def before(self, name: str, **arguments: Any) -> Trajectory:
        """Its first call came before the first of the other, which must have run too."""
        mine, other = self._about()[0], self.called(name, **arguments)
        hold(mine < other.chosen[0], f"{self.words} came after {other.words}{self.shown}")
        return self

    def after(self, name: str, **arguments: Any) -> Trajectory:
        """Its first call came after the first of the other, which must have run too."""
        mine, other = self._about()[0], self.called(name, **arguments)
        hold(mine > other.chosen[0], f"{self.words} came before {other.words}{self.shown}")
        return self

    def succeeded(self) -> Trajectory:
        """None of these calls failed."""
        failed = [self.calls[i] for i in self._about() if not self.calls[i].ok]
        hold(not failed, f"{self.words} failed: {'; '.join(call.result for call in failed)}{self.shown}")
        return self

    def returned(self, value: Any) -> Trajectory:
        """One of these calls gave the model this text, or one that a matcher fits."""
        hold(
            any(value == self.calls[i].result for i in self._about()),
            f"{self.words} did not return {value!r}{self.shown}",
        )
        return self

    def is_(self, *expected: str | tuple[str, Mapping[str, Any]], match: Match = "exact") -> None:
        """The calls that ran are the expected ones: names, or names with arguments."""
        wanted = [(item, {}) if isinstance(item, str) else item for item in expected]
        ran = [call for call in self.calls if call.began]
        if not fits(ran, wanted, match):
            names = " ".join(call.name for call in ran) or "nothing"
            raise AssertionError(
                f"called {names}, not ({match}) {' '.join(name for name, _ in wanted) or 'nothing'}{self.shown}"
            )

    def _about(self) -> tuple[int, ...]:
        if not self.chosen:
            raise ConfigError("which call is this about?", hint='begin with called("name")')
        return self.chosen

    def __len__(self) -> int:
        return len(self.calls)

    def __iter__(self) -> Iterator[Called]:
        return iter(self.calls)


def fits(ran: Sequence[Called], wanted: Sequence[tuple[str, Mapping[str, Any]]], match: Match) -> bool:
    """Whether the calls are the wanted ones, in one of the four senses of `Match`."""
    if match == "exact":
        return len(ran) == len(wanted) and all(c.fits(*w) for c, w in zip(ran, wanted, strict=True))
    if match == "ordered":
        left = iter(ran)
        return all(any(call.fits(*want) for call in left) for want in wanted)
    if match in ("unordered", "superset"):
        if match == "unordered" and len(ran) != len(wanted):
            return False
        if match == "superset" and Counter(n for n, _ in wanted) - Counter(c.name for c in ran):
            return False
        return _assignable(ran, wanted)
    raise ConfigError(f"calls match exact, ordered, unordered or superset, not {match!r}")


def _assignable(ran: Sequence[Called], wanted: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
    """Whether each wanted call has a call of its own (Kuhn's augmenting paths: greed would miss some)."""
    taken: dict[int, int] = {}

    def place(want: int, seen: set[int]) -> bool:
        for i, call in enumerate(ran):
            if i in seen or not call.fits(*wanted[want]):
                continue
            seen.add(i)
            if i not in taken or place(taken[i], seen):
                taken[i] = want
                return True
        return False

    return all(place(want, set()) for want in range(len(wanted)))
