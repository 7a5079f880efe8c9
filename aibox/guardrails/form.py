"""Whether an answer is the JSON that the policy describes. It is judged whole, so a stream waits for its end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from anyio import to_thread

from aibox.errors import ConfigError
from aibox.guardrails.normalise import LONG_CHARS
from aibox.policy.texts import FormRules
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where


class Form:
    """Finds answers of another form: a Check. Rules `not-json` and `not-the-schema`, score 1.0.

    The only file of the guardrails that imports `jsonschema`. Raises ConfigError for a schema that is none, or that
    refers to another place than itself.
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

    made = []
    for schema in schemas:
        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except exceptions.SchemaError as error:
            raise ConfigError(f"form.output is no JSON Schema: {error.message[:200]}") from None
        _check_references(schema)
        # A registry of its own, and empty: left to itself, the library would fetch what a `$ref` names.
        made.append(kind(schema, registry=Registry()))
    return tuple(made)


def _check_references(value: Any) -> None:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        if key in ("$ref", "$dynamicRef") and isinstance(item, str) and not item.startswith("#"):
            raise ConfigError(f"form.output refers to {item[:100]!r}", hint="put it into the schema, under $defs")
        _check_references(item)
