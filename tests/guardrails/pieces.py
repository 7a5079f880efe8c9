"""A text that arrives in pieces of any lengths."""

from __future__ import annotations

from hypothesis import strategies as st

from aibox.guardrails.marks import TOKEN_CHARS
from aibox.guardrails.pseudonyms import Restorer


async def restored(restorer: Restorer, text: str, data: st.DataObject, *, most: int) -> str:
    """What a restorer makes of a text in pieces of up to `most` characters; it never holds back more than a token."""
    pieces, pushed = [], 0
    while pushed < len(text):
        step = data.draw(st.integers(1, most))
        pieces.append(await restorer.push(text[pushed : pushed + step]))
        pushed = min(len(text), pushed + step)
        assert len(restorer._held) <= TOKEN_CHARS
    pieces.append(await restorer.finish())
    return "".join(pieces)
