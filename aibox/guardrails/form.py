"""Whether an answer is the JSON that the policy describes. It is judged whole, so a stream waits for its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Annotated, Any

import msgspec
from anyio import to_thread
from pydantic import StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from aibox.errors import ConfigError
from aibox.guardrails.normalise import LONG_CHARS
from aibox.policy.texts import FormRules
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where


class Form:
    """Finds answers of another form: a Check. Rules `not-json` and `not-the-schema`, score 1.0.

    The only file of the guardrails that imports `jsonschema`. Raises ConfigError for a schema that is none, that refers
    to another place than itself, or to itself without an end. A `pattern` is searched for in linear time, so it has no
    look-around and no back-references; `patternProperties` are refused.
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
        look = partial(self._fault, text)
        fault = look() if len(text) < LONG_CHARS else await to_thread.run_sync(look, abandon_on_cancel=True)
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
            error = next(iter(validator.iter_errors(value)), None)
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
        validator = validators.extend(kind, {"pattern": _pattern})(schema, registry=Registry())
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


def _check_keywords(value: Any) -> None:
    """Nothing that would be fetched, and no pattern that an answer could make take for ever."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        if key in ("$ref", "$dynamicRef") and isinstance(item, str) and not item.startswith("#"):
            raise ConfigError(f"form.output refers to {item[:100]!r}", hint="put it into the schema, under $defs")
        if key == "patternProperties" and isinstance(item, dict):
            raise ConfigError(
                "form.output names properties by patterns, which take for ever on some answers",
                hint="`properties` by their names, or `propertyNames` with a pattern",
            )
        if key == "pattern" and isinstance(item, str):
            _matches(item)
        _check_keywords(item)
