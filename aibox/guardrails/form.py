"""Whether an answer is the JSON that the policy describes. It is judged whole, so a stream waits for its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from pydantic import StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from aibox.errors import ConfigError
from aibox.guardrails.reading import read
from aibox.policy.texts import FormRules
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where

MANY = 1_000
"""An object or array of more parts than this is not of a form that says what unevaluated parts must be: the library
compares each part with every other."""


class Form:
    """Finds answers of another form: a Check. Rules `not-json` and `not-the-schema`, score 1.0.

    The only file of the guardrails that imports `jsonschema`. Raises ConfigError for a schema that is none, that refers
    to another place than itself, or to itself without an end. A `pattern` is searched for in linear time, so it has no
    look-around and no back-references; `patternProperties` and `$dynamicRef` are refused. However often a part of the
    schema is referred to, a part of an answer is held against it once. Under `unevaluatedProperties` and
    `unevaluatedItems` a part of an answer has at most `MANY` parts of its own.
    """

    whole = True

    def __init__(self, rules: FormRules | None = None) -> None:
        self._validators = _validators(rules.schemas) if rules is not None and rules.output else ()

    @property
    def name(self) -> str:
        return "form"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with one finding, or ALLOW. The text is never changed."""
        if where != "output" or not self._validators:
            return Verdict(Decision.ALLOW, text, where=where)
        fault = await read(text, self._fault)
        if fault is None:
            return Verdict(Decision.ALLOW, text, where=where)
        finding = Finding("form", fault[0], (0, len(text)), 1.0, fault[1])
        return Verdict(Decision.FLAG, text, (finding,), where=where)

    def _fault(self, text: str) -> tuple[str, str] | None:
        try:
            value = msgspec.json.decode(text.encode())
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return "not-json", "is not the JSON that was asked for"
        for validator in self._validators:
            seen = _SEEN.set(_Seen())
            try:
                error = next(iter(validator.iter_errors(value)), None)
            except (RecursionError, ArithmeticError):
                return "not-the-schema", "is nested so deeply, or holds such numbers, that it cannot be judged"
            finally:
                _SEEN.reset(seen)
            if error is not None:
                # The path only: the message would quote the text.
                path = "/".join(map(str, error.absolute_path))[:100]
                return "not-the-schema", f"is not of the form that was asked for, at /{path} ({error.validator})"
        return None

    def __repr__(self) -> str:
        return f"Form({len(self._validators)} schemas)"


def _validators(schemas: Sequence[Any]) -> tuple[Any, ...]:
    from jsonschema import exceptions, validators
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    made = []
    for schema in schemas:
        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except exceptions.SchemaError as error:
            raise ConfigError(f"form.output is no JSON Schema: {error.message[:200]}") from None
        _check_keywords(schema)
        # A registry of its own, and empty: left to itself, the library would fetch what a `$ref` names.
        ours = {"pattern": _pattern, "uniqueItems": _unique_items, "$ref": _once(kind.VALIDATORS["$ref"])}
        for keyword in {"unevaluatedProperties", "unevaluatedItems"} & set(kind.VALIDATORS):
            ours[keyword] = _of_few(kind.VALIDATORS[keyword])
        validator = validators.extend(kind, ours)(schema, registry=Registry())
        simplest: tuple[Any, ...] = (None, 0, "", [], {})
        try:
            for value in simplest:
                validator.is_valid(value)
        except Unresolvable:
            raise ConfigError(
                "form.output refers to a part that it does not have", hint="look at each `$ref`"
            ) from None
        except RecursionError:
            raise ConfigError("form.output refers to itself without an end", hint="break the cycle of `$ref`") from None
        made.append(validator)
    return tuple(made)


def _pattern(_: Any, pattern: str, value: Any, __: Any) -> Iterator[Any]:
    from jsonschema import exceptions

    if isinstance(value, str) and not _matches(pattern)(value):
        yield exceptions.ValidationError("does not match its pattern")


@lru_cache(maxsize=256)
def _matches(pattern: str) -> Callable[[str], bool]:
    """A search in linear time, whatever the pattern and the text: pydantic's engine does not go back.

    Raises ConfigError for what such an engine cannot do.
    """
    try:
        string = TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])
    except SchemaError:
        raise ConfigError(
            f"form.output has a pattern that cannot be searched for in linear time: {pattern[:100]!r}",
            hint="no look-around and no back-references",
        ) from None

    def matches(value: str) -> bool:
        try:
            string.validate_python(value)
        except ValidationError:
            return False
        return True

    return matches


_Fault = tuple[tuple[str | int, ...], str]
"""Where in a part of an answer, and by which keyword."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was worked out about the parts of one answer. Parts are known by identity, and live as long as it does."""

    faults: dict[tuple[int, int], _Fault | None] = field(default_factory=dict)
    """What a part was held against already, and what was wrong with it."""
    numbers: dict[int, int] = field(default_factory=dict)
    """The number of a part: equal parts have the same."""
    forms: dict[Any, int] = field(default_factory=dict)


_SEEN: ContextVar[_Seen | None] = ContextVar("seen", default=None)


def _once(refer: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """`$ref`, without which nothing repeats: two branches that both go on below would else double with each level."""
    from jsonschema import exceptions

    def referred(validator: Any, to: Any, instance: Any, schema: Any) -> Iterator[Any]:
        known = (_SEEN.get() or _Seen()).faults
        key = id(schema), id(instance)
        if key not in known:
            known[key] = None  # what comes back to itself on the way has nothing new to say
            found = next(refer(validator, to, instance, schema), None)
            known[key] = None if found is None else (tuple(found.path), str(found.validator))
        if (fault := known[key]) is not None:
            path, keyword = fault
            yield exceptions.ValidationError("is of another form", path=path, validator=keyword)

    return lambda validator, to, instance, schema: (
        referred if isinstance(instance, dict | list) else refer
    )(validator, to, instance, schema)  # fmt: skip


def _unique_items(validator: Any, wanted: Any, value: Any, _: Any) -> Iterator[Any]:
    """Each compared with those that look like it, and not with all before it."""
    from jsonschema import exceptions

    if wanted and validator.is_type(value, "array"):
        seen = _SEEN.get() or _Seen()
        if len({_alike(item, seen) for item in value}) < len(value):
            yield exceptions.ValidationError("has the same item twice")


def _alike(value: Any, seen: _Seen) -> tuple[str, Any]:
    """Equal for what JSON Schema calls equal; a part within parts is gone through once.

    Numbers are compared as texts, of which nobody can choose the hashes.
    """
    if isinstance(value, list | dict):
        if id(value) not in seen.numbers:
            form: Any = (
                tuple(_alike(item, seen) for item in value)
                if isinstance(value, list)
                else frozenset((key, _alike(item, seen)) for key, item in value.items())
            )
            seen.numbers[id(value)] = seen.forms.setdefault(form, len(seen.forms))
        return "part", seen.numbers[id(value)]
    if isinstance(value, bool) or value is None:
        return "word", value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return type(value).__name__, str(value)


def _of_few(judge: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    from jsonschema import exceptions

    def few(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[Any]:
        if isinstance(value, list | dict) and len(value) > MANY:
            yield exceptions.ValidationError("has too many parts to be judged")
        else:
            yield from judge(validator, wanted, value, schema)

    return few


def _check_keywords(value: Any) -> None:
    """Nothing that would be fetched, and no pattern that an answer could make take for ever."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        if key in ("$dynamicRef", "$recursiveRef") and isinstance(item, str):
            raise ConfigError(f"form.output says {key}", hint="say `$ref`: there is only this one schema")
        if key == "$ref" and isinstance(item, str) and not item.startswith("#"):
            raise ConfigError(f"form.output refers to {item[:100]!r}", hint="put it into the schema, under $defs")
        if key == "patternProperties" and isinstance(item, dict):
            raise ConfigError(
                "form.output names properties by patterns, which take for ever on some answers",
                hint="`properties` by their names, or `propertyNames` with a pattern",
            )
        if key == "pattern" and isinstance(item, str):
            _matches(item)
        _check_keywords(item)
