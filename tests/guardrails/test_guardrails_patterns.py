"""Every regular expression of the guardrails against texts made of itself: none takes more than linear time."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from re import _constants as op  # type: ignore[attr-defined]  # how `re` reads a pattern: there is no public way
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest
from growth import cpu_s

import aibox.guardrails
from aibox.guardrails.jailbreak import _patterns

CATEGORIES = {op.CATEGORY_DIGIT: "7", op.CATEGORY_SPACE: " ", op.CATEGORY_WORD: "a"}
OTHERS = {op.CATEGORY_NOT_DIGIT: "a", op.CATEGORY_NOT_SPACE: "a", op.CATEGORY_NOT_WORD: " "}


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """All that a module of the guardrails holds, by name, and the rules for jailbreaks."""
    for module in pkgutil.iter_modules(aibox.guardrails.__path__):
        for name, value in vars(importlib.import_module(f"aibox.guardrails.{module.name}")).items():
            for number, pattern in enumerate(_in(value)):
                # What is anchored at the end is asked about a window of bounded length only.
                if isinstance(pattern.pattern, str) and not pattern.pattern.endswith("\\Z"):
                    yield f"{module.name}.{name}.{number}", pattern
    for number, rule in enumerate(_patterns()):
        yield f"jailbreak.{rule.rule}.{number}", rule.match


def _in(value: Any) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, (tuple, list, frozenset)):
        for item in value:
            yield from _in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _in(item)


def sample(tree: Any, *, most: bool) -> str:
    """A text that a pattern's tree stands for, about; `most` repeats what may be repeated up to twelve times."""
    parts = []
    for kind, value in tree:
        if kind in (op.LITERAL, op.NOT_LITERAL):
            parts.append(chr(value) if kind is op.LITERAL else "a" if value != ord("a") else "b")
        elif kind is op.ANY:
            parts.append("a")
        elif kind is op.IN:
            parts.append(_of_set(value))
        elif kind is op.BRANCH:
            parts.append(sample(value[1][-1 if most else 0], most=most))
        elif kind is op.SUBPATTERN:
            parts.append(sample(value[-1], most=most))
        elif kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            low, high, inner = value
            parts.append(sample(inner, most=most) * min(int(high) if most else int(low), max(12, int(low))))
        elif kind is op.ATOMIC_GROUP:
            parts.append(sample(value, most=most))
    return "".join(parts)


def _of_set(items: Any) -> str:
    if items[0][0] is op.NEGATE:
        return "a"
    kind, value = items[0]
    if kind is op.RANGE:
        return chr(value[0])
    return chr(value) if kind is op.LITERAL else CATEGORIES.get(value) or OTHERS.get(value, "a")


def hostile(pattern: re.Pattern[str]) -> set[str]:
    """What matches, what nearly does, and what begins to: each to be repeated."""
    tree = parser.parse(pattern.pattern, pattern.flags)
    units = set()
    for most in (False, True):
        text = sample(tree, most=most) or "a"
        units |= {text, text[:-1] or "a", text[: len(text) // 2] or "a", text[:1], text[:-1] + " ", text[-1:]}
    return units


@pytest.mark.parametrize(("name", "pattern"), [pytest.param(*pair, id=pair[0]) for pair in patterns()])
def test_no_pattern_takes_more_than_linear_time_on_texts_made_of_itself(name: str, pattern: re.Pattern[str]) -> None:
    """Eight times of what nearly matches takes far less than the 64 times of a quadratic search, in CPU time."""

    def seconds(unit: str, chars: int) -> float:
        text = (unit * (chars // len(unit) + 1))[:chars]
        return cpu_s(lambda: list(pattern.finditer(text)), times=2)

    for unit in sorted(hostile(pattern)):
        assert seconds(unit, 24_000) < 24 * max(seconds(unit, 3_000), 0.002), repr(unit)


def test_the_patterns_are_all_there() -> None:
    """The walk over the modules finds them: it would be easy to look at none."""
    assert len(list(patterns())) > 120
