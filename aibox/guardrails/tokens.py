"""How long a text is in tokens, estimated without a tokenizer, and whether that is more than the policy allows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from aibox.guardrails.reading import read
from aibox.policy.texts import TokenLimits
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where

# What byte-pair tokenizers do with a text, roughly: a short word with the space before it is one token, a longer one a
# token for each five letters, each digit and sign one. Beyond ASCII none makes more tokens than UTF-8 has bytes.
_PIECE = re.compile(r"[A-Za-z]{1,5}|[0-9]|\n|[^\w\s]|\s{2,16}|\w")


class Tokens:
    """Finds what stands beyond a policy's number of tokens: a Check. Rule `too-long`, score 1.0.

    The finding spans what is too much, so that `redact` cuts a text off.
    """

    def __init__(self, limits: TokenLimits | None = None) -> None:
        self._limits = limits or TokenLimits()

    @property
    def name(self) -> str:
        return "tokens"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with one finding, or ALLOW. The text is never changed."""
        limit = self._limits.of(where)
        # No character counts more than three: most texts need no counting.
        if limit is None or _most(text) <= limit:
            return Verdict(Decision.ALLOW, text, where=where)
        at = await read(text, partial(_beyond, limit=limit))
        if at is None:
            return Verdict(Decision.ALLOW, text, where=where)
        finding = Finding("tokens", "too-long", (at, len(text)), 1.0, f"has more than {limit} tokens")
        return Verdict(Decision.FLAG, text, (finding,), where=where)

    def __repr__(self) -> str:
        limits = {name: value for name, value in self._limits.model_dump().items() if value is not None}
        return f"Tokens({limits or 'no limit'})"


def estimate(text: str) -> int:
    """How many tokens a text is, of English rather too many than too few; docs/guardrails.md says how far off."""
    return sum(weight for _, weight in _pieces(text))


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """(where it ends, tokens) of each piece."""
    for match in _PIECE.finditer(text):
        piece = match[0]
        yield match.end(), 1 if piece.isascii() or piece.isspace() else 2 if piece < "\u0800" else 3


def _most(text: str) -> int:
    return len(text) if text.isascii() else 3 * len(text)


def _beyond(text: str, limit: int) -> int | None:
    """Where the text goes beyond the limit; None where it does not."""
    count, last = 0, 0
    for end, weight in _pieces(text):
        count += weight
        if count > limit:
            return last
        last = end
    return None
