"""Reversible pseudonyms such as `<PERSON_482139>`: one value has one token in a case of a tenant, and others elsewhere.

Where the policy asks for it a token is written as `shapes` has it, and passes for a value where a form is checked.

A token is restored only for a user whose own text, or a text shown to whom, held the value: nobody reads with somebody
else's token. Restoring what `replace` made gives back the text as it was, character by character.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio.to_thread

from aibox.errors import AccessError, ConfigError
from aibox.guardrails import shapes
from aibox.guardrails.marks import (
    LITERAL,
    TOKEN,
    TOKEN_CHARS,
    all_names,
    find_tokens,
    held_from,
    might_hold_tokens,
    names,
)
from aibox.guardrails.vault import FOR_GOOD, KEY_BYTES, Vault
from aibox.policy.pseudonyms import PseudonymRules
from aibox.postgres import shown
from aibox.protocols import Recorder
from aibox.types import Finding, Scope

T = TypeVar("T")
_REVERSIBLE = PseudonymRules()
Unknown = Callable[[str], str]
"""What to put in place of a token, given in its brackets, that stands for nothing here."""

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
        matches = list(TOKEN.finditer(text))
        values = await self._run(self._vault.everyones, scope.tenant, all_names(matches))
        return splice(text, [_edit(match, values, unknown=placeholder) for match in matches])

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
        return await self.put(text, spans, scope=scope, rules=rules)

    async def put(
        self,
        text: str,
        spans: Sequence[tuple[int, int, str]],
        *,
        scope: Scope,
        rules: PseudonymRules = _REVERSIBLE,
        fixed: Mapping[int, str] | None = None,
    ) -> str:
        """The text with a pseudonym for each (start, end, entity type), or what `fixed` has for this start.

        Spans are sorted and disjoint. Where the rules ask for shapes, one is used only where it will be read back.
        """
        fixed = fixed or {}
        values = [(type_, text[start:end]) for start, end, type_ in spans if start not in fixed]
        tokens = iter(await self.tokens(values, scope=scope, rules=rules))
        plain = [(start, end, fixed[start] if start in fixed else next(tokens)) for start, end, _ in spans]
        shaped = [
            (start, end, (None if start in fixed else _shaped(token, type_, text[start:end], rules)) or token)
            for (start, end, type_), (_, _, token) in zip(spans, plain, strict=True)
        ]
        return splice(text, shaped) if shaped == plain or _read_back(text, shaped, plain) else splice(text, plain)

    async def restore(self, text: str, *, scope: Scope, unknown: Unknown | None = None) -> str:
        """The text with the values of the tokens that the scope's user owns.

        Others become what `unknown` makes of them; without it they stay as they are.
        """
        return await self.restore_from(0, text, scope=scope, unknown=unknown)

    async def restore_from(
        self, start: int, text: str, *, scope: Scope, unknown: Unknown | None = None, end: int | None = None
    ) -> str:
        """`text[start:end]` restored; what stands around it tells only whether a word goes on there."""
        end = len(text) if end is None else end
        found = TOKEN.finditer(text, start) if might_hold_tokens(text[start:]) else ()
        matches = [match for match in found if match.end() <= end]
        if not matches:
            return text[start:end]
        values = await self._run(self._vault.values, scope.tenant, scope.user, all_names(matches))
        return splice(text[:end], [_edit(match, values, unknown=unknown) for match in matches])[start:]

    async def restore_stream(self, chunks: AsyncIterator[str], *, scope: Scope) -> AsyncIterator[str]:
        """As `restore` for a text that arrives in pieces; at most `marks.TOKEN_CHARS` characters are held back."""
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
    """Restores a text that arrives in pieces: what `push` and `finish` return, joined, is the whole text restored.

    At most `marks.TOKEN_CHARS` characters are held back.
    """

    def __init__(self, pseudonyms: Pseudonyms, *, scope: Scope, unknown: Unknown | None = None) -> None:
        self._pseudonyms = pseudonyms
        self._scope = scope
        self._unknown = unknown
        self._held = ""
        self._before = ""  # the character before what is held: a token does not begin in the middle of a word

    async def push(self, text: str) -> str:
        seen = self._before + self._held + text
        return await self._release(seen, held_from(seen, len(self._before)))

    async def finish(self) -> str:
        seen = self._before + self._held
        return await self._release(seen, len(seen))

    async def _release(self, seen: str, at: int) -> str:
        start = len(self._before)
        self._held = seen[at:]
        if at == start:
            return ""
        self._before = seen[at - 1]
        return await self._pseudonyms.restore_from(start, seen, scope=self._scope, unknown=self._unknown, end=at)


def with_look_alikes(text: str, spans: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """The spans, sorted and disjoint as given, and between them those of everything that could be taken for a token."""
    found = list(spans)
    # What stands beside a token later is not what stands there now, so each stretch is looked at by itself; and so is
    # what is left when something in it was found: two or three times at most, by what may stand around a token.
    while might_hold_tokens(text) and (more := list(_between(text, found))):
        found = sorted((*found, *more))
    return found


def _between(text: str, spans: Sequence[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    at = 0
    for start, end, _ in (*spans, (len(text), len(text), "")):
        while at < start:
            near = text[at : min(start, at + 2 * TOKEN_CHARS)]  # in which nothing stands before
            match, by = (found, at) if (found := TOKEN.match(near)) else (TOKEN.search(text, at, start), 0)
            if match is None:
                break
            yield by + match.start(), by + match.end(), LITERAL
            at = by + match.end()
        at = end


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


def _edit(match: re.Match[str], values: Mapping[str, str], *, unknown: Unknown | None) -> tuple[int, int, str]:
    called = names(match)
    value = next((values[name] for name in called if name in values), None)
    if value is None:
        value = unknown(f"<{called[0]}>") if unknown and shapes.sure(match) else match[0]
    return (*match.span(), value)


def _shaped(token: str, type_: str, value: str, rules: PseudonymRules) -> str | None:
    """The token as a value of its type; of what only looks like a pseudonym, as one of the type that it looks like."""
    like = shapes.type_of(value) if type_ == LITERAL else _type(type_)
    return shapes.write(like, token.strip("<>").partition("_")[2], value) if like and rules.keeps_form(like) else None


def _read_back(text: str, shaped: Sequence[tuple[int, int, str]], plain: Sequence[tuple[int, int, str]]) -> bool:
    """Whether each pseudonym is found where it was put: a letter beside it may make it part of a longer word."""
    found = {match.span(): names(match) for match in TOKEN.finditer(splice(text, shaped))}
    moved = 0
    for (start, end, shape), (_, _, token) in zip(shaped, plain, strict=True):
        place = (start + moved, start + moved + len(shape))
        moved += len(shape) - (end - start)
        if shape != token and token.strip("<>") not in found.get(place, ()):
            return False
    return True


def _type(rule: str) -> str:
    """An entity type fit for a token, from whatever a check calls its rule."""
    return _NOT_LETTERS.sub("", rule.upper())[:16].ljust(2, "X")
