"""Requests made comparable and fit for git: ids, times, pseudonyms, personal data and secrets become numbered names.

The same value gets the same name within one request, so that two runs of one conversation look alike. `Names` turns the
names in an answer back into the values of the request at hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from aibox.guardrails.marks import token_spans
from aibox.guardrails.pii import scan

# A name that was played back comes back in the next request: a value like any other, and named by its place.
_NAME = re.compile(r"⟪([a-z]+) \d+⟫")
_SECRET = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # JSON Web Token (RFC 7519): base64url of `{"`
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # an AWS access key id
    r"|\b(?:sk|pk|rk)[-_](?:[a-z]{2,10}[-_])*[A-Za-z0-9_-]{16,}"
    r"|\b(?:ghp|gho|ghu|ghs|ghr|glpat|xox[abeprs]|hf|npm|pypi)[-_][A-Za-z0-9_-]{16,}"
    r"|\bgithub_pat_\w{22,}|\bAIza[\w-]{35}"
    r"|\b[Bb]earer (?P<bearer>[\w.~+/-]{12,}=*)"
    r"|(?i:\b(?:password|passwd|secret|api[-_ ]?key|access[-_ ]?key|token)\b\\?[\"']?\s*[:=]\s*\\?[\"']?)"
    r"(?P<value>[^\s\"'\\,;}]{6,})",
    re.DOTALL,
)
_ID = re.compile(
    r"(?i:\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b)|\b(?:call|chatcmpl|toolu|msg)[_-](?:tool-)?[0-9A-Za-z]{8,}\b"
)
# RFC 3339 with a time of day: the moment of a run. A date alone is what a question may be about, and stays.
_TIME = re.compile(r"\b\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}:?\d{2})?")

Span = tuple[int, int, str]
"""Start, end, and the kind of value that stands there."""


class Names:
    """The names that the values of one request have got."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def name(self, kind: str, value: str) -> str:
        key = (kind, value)
        if key not in self._names:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._names[key] = f"⟪{kind} {self._counts[kind]}⟫"
            self._values[self._names[key]] = value
        return self._names[key]

    def hide(self, value: Any) -> Any:
        """A JSON value with every text of it scrubbed; the keys of objects stay."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {key: self._field(key, item, of=value) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        return value

    def show(self, value: Any) -> Any:
        """The inverse, for names that this request has values for. Other names stay as they are."""
        if isinstance(value, str):
            return _NAME.sub(lambda match: self._values.get(match[0], match[0]), value)
        if isinstance(value, Mapping):
            return {key: self.show(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.show(item) for item in value]
        return value

    def _field(self, key: str, value: Any, *, of: Mapping[str, Any]) -> Any:
        # The id of a tool call is one whatever it looks like: each kind of server has a form of its own.
        if isinstance(value, str) and (key == "tool_call_id" or (key == "id" and "function" in of)):
            return self.name("id", value)
        return self.hide(value)

    def _text(self, text: str) -> str:
        parts: list[str] = []
        at = 0
        for start, end, kind in spans_of(text):
            parts += (text[at:start], self.name(kind, text[start:end]))
            at = end
        return "".join((*parts, text[at:]))


def spans_of(text: str) -> list[Span]:
    """What is to be hidden in a text, in order and disjoint. Where two overlap, the more telling kind has the place."""
    kept: list[Span] = []
    for span in _found(text):
        if not any(span[0] < end and start < span[1] for start, end, _ in kept):
            kept.append(span)
    return sorted(kept)


def _found(text: str) -> Iterator[Span]:
    """In the order of their rights to a place."""
    yield from ((*match.span(), match[1]) for match in _NAME.finditer(text))
    for match in _SECRET.finditer(text):
        group: str | int = match.lastgroup or 0
        yield (*match.span(group), "secret")
    yield from ((start, end, "pseudonym") for start, end, _ in token_spans(text))
    yield from ((*match.span(), "id") for match in _ID.finditer(text))
    yield from ((*match.span(), "time") for match in _TIME.finditer(text))
    yield from ((*finding.span, finding.rule.lower()) for finding in scan(text))
