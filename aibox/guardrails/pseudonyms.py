"""Reversible pseudonyms such as `<PERSON_482139>`: one value has one token in a case of a tenant, and others elsewhere.

A token is restored only for a user whose own text, or a text shown to whom, held the value: nobody reads with somebody
else's token. Restoring what `replace` made gives back the text as it was, character by character.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio.to_thread

from aibox.errors import AccessError, ConfigError
from aibox.guardrails.vault import FOR_GOOD, KEY_BYTES, STEM_DIGITS, Vault
from aibox.policy.pseudonyms import PseudonymRules
from aibox.postgres import shown
from aibox.protocols import Recorder
from aibox.types import Finding, Scope

T = TypeVar("T")
_REVERSIBLE = PseudonymRules()
Unknown = Callable[[str], str]
"""What to put in place of a token, given in its brackets, that stands for nothing here."""

LITERAL = "LITERAL"
"""The type of a token that stands for text which looked like a token when it came in."""

# Six digits from an HMAC (more in a tenant that has used those up), then up to two letters for further writings of the
# same value. Of sixteen forms that were measured a small model repeats this one most faithfully (docs/guardrails.md).
_ID = rf"[0-9]{{{min(STEM_DIGITS)},{max(STEM_DIGITS)}}}[a-z]{{0,2}}"
_KNOWN = "PERSON|EMAIL|PHONE|CARD|IBAN|SSN|IP|URL|BIRTHDATE|ADDRESS|PLACE|LITERAL"
_WORD = "[A-Za-z0-9_]"
# As written; or, for the types that aibox makes itself, with the harm that small models do: another case, square
# brackets, a bracket missing. A type and an id name one value whatever stands around them: none of it is ambiguous.
_TOKEN = re.compile(
    rf"<([A-Z]{{2,16}}_{_ID})>"
    rf"|(?i:\[((?:{_KNOWN})_{_ID})\])"
    rf"|(?i:(?<!{_WORD})<?((?:{_KNOWN})_{_ID})(?!{_WORD})>?)",
    re.ASCII,
)
TOKEN_CHARS = 2 + 16 + 1 + max(STEM_DIGITS) + 2
"""The longest token, brackets included: what a stream holds back at most."""
_MAYBE = re.compile(rf"_[0-9]{{{min(STEM_DIGITS)}}}", re.ASCII)
"""In every token: most texts hold none, and this says so some fifty times faster."""
_MAYBE_JSON = re.compile(rb"(?:_|\\u005[fF])(?:[0-9]|\\u003[0-9]){%d}" % min(STEM_DIGITS))
_TAIL = re.compile(rf"[<\[]?{_WORD}{{0,{TOKEN_CHARS - 2}}}\Z", re.ASCII)
_NOT_LETTERS = re.compile("[^A-Z]")

_WORDS = {
    "PERSON": "name",
    "EMAIL": "e-mail address",
    "PHONE": "phone number",
    "CARD": "card number",
    "IBAN": "account number",
    "SSN": "social security number",
    "IP": "IP address",
    "URL": "web address",
    "BIRTHDATE": "date of birth",
    "ADDRESS": "address",
    "PLACE": "place",
}


def placeholder(token: str) -> str:
    """What a reader is shown for a token that stands for nothing here: it is kept from all, or a model made it up."""
    how = "withheld" if token.strip("<>").endswith(FOR_GOOD) else "unknown"
    return f"[{how} {_WORDS.get(token.strip('<>').partition('_')[0], 'value')}]"


class Pseudonyms:
    """Swaps values for tokens and back, and can forget: an Erasable.

    In memory without a `path`; with one, an SQLite file (0600, WAL) that several processes may share, or the database
    at `postgresql://...` that servers share, its values under AES-256-GCM. `key` is 32 bytes and is needed with a path.
    Raises ConfigError for a wrong key, StoreError when the database cannot be used, IntegrityError for a value that was
    tampered with.
    """

    def __init__(self, path: str | Path | None = None, *, key: bytes | None = None) -> None:
        if key is None:
            if path is not None:
                raise ConfigError("pseudonyms in a file need a key", hint=f"key= {KEY_BYTES} random bytes")
            key = os.urandom(KEY_BYTES)
        if len(key) != KEY_BYTES:
            raise ConfigError(f"the key of the pseudonyms has {len(key)} bytes and needs {KEY_BYTES}")
        self._place = None if path is None else shown(path)
        self._vault = Vault(path, key=key)

    async def tokens(
        self, values: Sequence[tuple[str, str]], *, scope: Scope, rules: PseudonymRules = _REVERSIBLE
    ) -> list[str]:
        """The token, in its brackets, of each (entity type, value). The user of the scope becomes an owner of each.

        A value has one token in a tenant's case (`scope.case`), whichever the turn, session, agent or tool.
        Of a type that the rules call irreversible nothing is kept, and its tokens are never turned back.
        """
        if not values:
            return []
        typed = [(_type(type_), value) for type_, value in values]
        kept = [pair for pair in typed if _kept(pair[0], rules)]
        made = iter(await self._run(self._vault.tokens, scope.tenant, scope.case, scope.user, kept) if kept else ())
        tenant, case = scope.tenant, scope.case
        return [
            f"<{next(made) if _kept(type_, rules) else self._vault.for_good(tenant, case, type_, value)}>"
            for type_, value in typed
        ]

    async def unmask(self, text: str, *, scope: Scope, reason: str, rules: PseudonymRules, audit: Recorder) -> str:
        """The text with what its pseudonyms stand for in the scope's tenant, whoever gave the values.

        The scope's user must be named in the policy (`pseudonyms.unmask`) and say why. The entry is durable before
        anything is read; a refusal leaves one too. Raises AccessError, StoreError.
        """
        tokens = list(dict.fromkeys(token.strip("<>") for token in find_tokens(text)))
        types = sorted({token.partition("_")[0] for token in tokens})
        detail = {"count": len(tokens), "types": types, "tokens": tokens[:256], "reason": reason}
        if not rules.may_unmask(scope.user) or not reason.strip():
            await audit.append("pseudonym.refused", scope=scope, detail=detail)
            raise AccessError(
                f"{scope.user} may not look behind pseudonyms" if reason.strip() else "unmasking needs a reason",
                hint="pseudonyms.unmask in the policy names who may",
            )
        await audit.append("pseudonym.unmasked", scope=scope, detail=detail)
        values = await self._run(self._vault.everyones, scope.tenant, tokens)
        edits = [
            (*match.span(), values.get(_canonical(match)) or placeholder(f"<{_canonical(match)}>"))
            for match in _TOKEN.finditer(text)
        ]
        return splice(text, edits)

    async def replace(
        self, text: str, findings: Iterable[Finding], *, scope: Scope, rules: PseudonymRules = _REVERSIBLE
    ) -> str:
        """The text with a token for each finding's span, by its rule, and for whatever looks like a token already.

        Of findings that overlap the first counts. Spans are of `text`.
        """
        spans: list[tuple[int, int, str]] = []
        for finding in sorted(findings, key=lambda f: f.span):
            if finding.span[0] < finding.span[1] and (not spans or finding.span[0] >= spans[-1][1]):
                spans.append((*finding.span, finding.rule))
        spans = with_look_alikes(text, spans)
        made = await self.tokens([(type_, text[start:end]) for start, end, type_ in spans], scope=scope, rules=rules)
        return splice(text, [(start, end, token) for (start, end, _), token in zip(spans, made, strict=True)])

    async def restore(self, text: str, *, scope: Scope, unknown: Unknown | None = None) -> str:
        """The text with the values of the tokens that the scope's user owns.

        Others become what `unknown` makes of them; without it they stay as they are.
        """
        return await self.restore_from(0, text, scope=scope, unknown=unknown)

    async def restore_from(self, start: int, text: str, *, scope: Scope, unknown: Unknown | None = None) -> str:
        """`text[start:]` restored; what stands before `start` tells only whether a word goes on there."""
        matches = list(_TOKEN.finditer(text, start)) if _MAYBE.search(text, start) else []
        if not matches:
            return text[start:]
        names = [_canonical(match) for match in matches]
        values = await self._run(self._vault.values, scope.tenant, scope.user, names)
        edits = [
            (*match.span(), values[name] if name in values else unknown(f"<{name}>") if unknown else match[0])
            for match, name in zip(matches, names, strict=True)
        ]
        return splice(text, edits)[start:]

    async def restore_stream(self, chunks: AsyncIterator[str], *, scope: Scope) -> AsyncIterator[str]:
        """As `restore` for a text that arrives in pieces; at most `TOKEN_CHARS` characters are held back."""
        restorer = Restorer(self, scope=scope)
        async for chunk in chunks:
            if piece := await restorer.push(chunk):
                yield piece
        if piece := await restorer.finish():
            yield piece

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        """Forget what came from user `subject` alone (None: from anybody) in the scope's tenant; the number of values.

        A value that another user gave too is kept for that user. Tokens of what is gone stay as they are from then on.
        """
        return await self._run(self._vault.erase, scope.tenant, subject)

    async def close(self) -> None:
        """Give back the file. Closing twice is allowed."""
        await self._run(self._vault.close)

    async def _run(self, call: Callable[..., T], *args: object) -> T:
        return await anyio.to_thread.run_sync(partial(call, *args))

    def __repr__(self) -> str:
        return f"Pseudonyms({self._place!r})" if self._place else "Pseudonyms() in memory"


class Restorer:
    """Restores a text that arrives in pieces: what `push` and `finish` return, joined, is the whole text restored."""

    def __init__(self, pseudonyms: Pseudonyms, *, scope: Scope, unknown: Unknown | None = None) -> None:
        self._pseudonyms = pseudonyms
        self._scope = scope
        self._unknown = unknown
        self._held = ""
        self._before = ""  # the character before what is held: a token does not begin in the middle of a word

    async def push(self, text: str) -> str:
        whole = self._held + text
        tail = _TAIL.search(whole, max(0, len(whole) - TOKEN_CHARS))
        at = tail.start() if tail else len(whole)
        if (
            at
            and whole[at - 1 : at].isascii()
            and re.match(_WORD, whole[at - 1])
            and whole[at : at + 1] not in ("<", "[")
        ):
            at = len(whole)  # the end of a word too long for a token
        return await self._release(whole, at)

    async def finish(self) -> str:
        return await self._release(self._held, len(self._held))

    async def _release(self, whole: str, at: int) -> str:
        ready, self._held = whole[:at], whole[at:]
        if not ready:
            return ""
        context, self._before = self._before, ready[-1]
        text = context + ready
        return await self._pseudonyms.restore_from(len(context), text, scope=self._scope, unknown=self._unknown)


def with_look_alikes(text: str, spans: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """The spans, sorted and disjoint as given, and between them those of everything that could be taken for a token."""
    if not _MAYBE.search(text):
        return list(spans)
    result: list[tuple[int, int, str]] = []
    at = 0
    for start, end, type_ in (*spans, (len(text), len(text), "")):
        # Each stretch by itself: what stands beside a token later is not what stands there now.
        result += [(at + m.start(), at + m.end(), LITERAL) for m in _TOKEN.finditer(text[at:start])]
        if type_:
            result.append((start, end, type_))
        at = end
    return result


def splice(text: str, edits: Iterable[tuple[int, int, str]]) -> str:
    """The text with each (start, end, replacement) put in; edits are sorted and disjoint."""
    parts: list[str] = []
    at = 0
    for start, end, replacement in edits:
        parts += (text[at:start], replacement)
        at = end
    return "".join((*parts, text[at:]))


def _kept(type_: str, rules: PseudonymRules) -> bool:
    # What only looks like a token is no secret, and must come back as it was typed.
    return type_ == LITERAL or rules.reversible(type_)


def _canonical(match: re.Match[str]) -> str:
    type_, _, id_ = (match[1] or match[2] or match[3]).partition("_")
    return f"{type_.upper()}_{id_.lower()}"


def _type(rule: str) -> str:
    """An entity type fit for a token, from whatever a check calls its rule."""
    return _NOT_LETTERS.sub("", rule.upper())[:16].ljust(2, "X")


def might_hold_tokens(text: str) -> bool:
    """False of a text in which `find_tokens` finds nothing, and of nearly all of them."""
    return _MAYBE.search(text) is not None


def json_might_hold_tokens(data: bytes) -> bool:
    """As `might_hold_tokens` of all texts of a JSON text, however their characters are written in it."""
    return _MAYBE_JSON.search(data) is not None


def find_tokens(text: str) -> list[str]:
    """The pseudonyms in a text, in brackets and as they are made, in order; also those that a model has damaged."""
    return [f"<{_canonical(match)}>" for match in _TOKEN.finditer(text)] if _MAYBE.search(text) else []
