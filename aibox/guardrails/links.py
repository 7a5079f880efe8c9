"""Links that carry data out or hide where they lead. A picture in Markdown is fetched without a click.

Nothing is looked up: what is said about a link is read from the link.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from functools import partial
from urllib.parse import SplitResult, unquote, urlsplit

from aibox.guardrails.normalise import normalise
from aibox.guardrails.reading import flagged
from aibox.types import Finding, Label, Scope, Verdict, Where

_URL = re.compile(
    r"(?i)\b(?:https?|ftp|wss?)://[^\s<>\"'`|\\^\[\]]{1,2048}|\b(?:javascript|vbscript|data):[^\s<>\"]{1,2048}"
)
_PICTURE = re.compile(
    r"!\[[^\]\n]{0,300}\]\(\s{0,4}<?([^)\s>]{1,2048})|(?i:<img\b[^>]{0,300}?\bsrc\s{0,2}=\s{0,2}[\"']?)([^\s\"'>]{1,2048})"
)
_REFERENCE = re.compile(r"(?m)^\s{0,3}\[[^\]\n]{1,100}\]:\s{0,4}<?(https?://[^\s>]{1,2048})")
_NAMED_LINK = re.compile(r"\[([^\]\n]{1,300})\]\(\s{0,4}<?(https?://[^)\s>]{1,2048})")
_HOST = re.compile(r"(?i)\b((?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,24})\b")
_DATA_CHARS = 40
"""A value of this length carries data when it is mixed as base64 is, hexadecimal, or several words."""
_LONG_CHARS = 200
"""One of this length does, whatever is in it."""
_MIXED = re.compile(r"(?=.{0,200}?[a-z])(?=.{0,200}?[A-Z])(?=.{0,200}?\d)|[0-9a-fA-F]{40}")


class Links:
    """Finds links that leak or deceive: a Check.

    Rules: `picture-with-data` 0.95, `carries-data` 0.8, `script` 0.9, `hidden-target` 0.9, `password-in-link` 0.8,
    `bare-address` 0.6, `look-alike-host` 0.8, `picture` 0.6. Hosts in `trusted` (and below them) are not looked at.
    """

    def __init__(self, *, trusted: frozenset[str] = frozenset()) -> None:
        self._trusted = frozenset(host.lower() for host in trusted)

    @property
    def name(self) -> str:
        return "links"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with findings in order, or ALLOW. The text is never changed."""
        return await flagged(text, partial(scan, trusted=self._trusted), where=where)

    def __repr__(self) -> str:
        return f"Links(trusted={sorted(self._trusted)})"


def scan(text: str, *, trusted: frozenset[str] = frozenset()) -> tuple[Finding, ...]:
    """All findings in order, the strongest of each link."""
    if ":" not in text:
        return ()
    normal = normalise(text, fold=False)
    strongest: dict[tuple[int, int], tuple[float, str, str]] = {}
    for start, end, rule, score, reason in _found(normal.text, trusted):
        if (score, rule, reason) > strongest.get((start, end), (0.0, "", "")):
            strongest[start, end] = score, rule, reason
    return tuple(
        Finding("links", rule, normal.span(*span), score, reason)
        for span, (score, rule, reason) in sorted(strongest.items())
    )


def _found(text: str, trusted: frozenset[str]) -> Iterator[tuple[int, int, str, float, str]]:
    # Findings span the address alone: the words before it may have left already, while a text streams.
    pictures = {match.start(match.lastindex or 0) for match in (*_PICTURE.finditer(text), *_REFERENCE.finditer(text))}
    for match in _URL.finditer(text):
        url = match[0].rstrip(".,;:!?)")
        start, end = match.start(), match.start() + len(url)
        parts = _split(url)
        if parts is None:
            yield start, end, "hidden-target", 0.9, "a link that no browser reads as one would expect"
            continue
        if _is_trusted(parts.hostname or "", trusted):
            continue
        if start in pictures:
            rule = ("picture-with-data", 0.95, "a picture whose address carries data out") if _carries(parts) else (
                "picture", 0.6, "a picture from elsewhere, fetched without a click")  # fmt: skip
            yield start, end, *rule
        elif _carries(parts):
            yield start, end, "carries-data", 0.8, "a link that carries data out"
        yield from ((start, end, *rule) for rule in _odd(parts))
    for match in _NAMED_LINK.finditer(text):
        shown, parts = _HOST.search(match[1]), _split(match[2])
        if shown and parts and parts.hostname and not _below(parts.hostname, shown[1].lower().removeprefix("www.")):
            yield *match.span(2), "hidden-target", 0.9, "a link that shows one host and leads to another"


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port, parts.hostname
    except ValueError:
        return None
    return parts


def _odd(parts: SplitResult) -> Iterator[tuple[str, float, str]]:
    if parts.scheme.lower() in ("javascript", "vbscript", "data"):
        yield "script", 0.9, "a link that runs or holds code"
        return
    host = parts.hostname or ""
    if parts.username is not None:
        yield "password-in-link", 0.8, "a link with a name or password before its host"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if "xn--" in host or not host.isascii():
            yield "look-alike-host", 0.8, "a link whose host is written in look-alike letters"
    else:
        yield "bare-address", 0.6, "a link to a bare network address"


def _carries(parts: SplitResult) -> bool:
    """True where the query, the fragment, the last part of the path or a label of the host reads like smuggled data."""
    values = [
        pair.partition("=")[2] or pair for text in (parts.query, parts.fragment) for pair in text.split("&") if text
    ]
    values += [parts.path.rsplit("/", 1)[-1], *(parts.hostname or "").split(".")]
    for raw in values:
        value = unquote(raw)
        words = sum(char in " +\n" for char in value) >= 4
        long = len(value) >= _DATA_CHARS and (words or _MIXED.match(value) is not None)
        if long or "{" in value or len(value) >= _LONG_CHARS:
            return True
    return False


def _is_trusted(host: str, trusted: frozenset[str]) -> bool:
    return any(_below(host, known) for known in trusted)


def _below(host: str, known: str) -> bool:
    host = host.lower().removeprefix("www.")
    return host == known or host.endswith(f".{known}")
