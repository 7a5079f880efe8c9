"""`web_search` through the operator's SearXNG, and `web_read`: passages through the door, and what a stranger wrote.

Off unless somebody gives them to an agent and the policy names the hosts. The only file that imports `trafilatura`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from aibox.agents.dispatch import Refused, validated
from aibox.agents.http import Http
from aibox.agents.passage import passage
from aibox.agents.turn_state import TurnState
from aibox.errors import ConfigError, MissingExtraError, UpstreamError
from aibox.types import Scope

MAX_PAGE_KIB = 2048
MAX_TEXT_CHARS = 20_000
MAX_RESULTS = 8
PAGE_TYPES = ("text/html", "application/xhtml+xml", "text/plain", "text/markdown", "application/json")


class _Web:
    """What both are: they send, and what they bring is a stranger's."""

    name = ""
    sends = True
    untrusted = True
    # A look at a page can be taken again.
    side_effects = False
    timeout_s = 60.0

    async def call(self, arguments: Mapping[str, Any], *, scope: Scope) -> str:  # noqa: ARG002 - Tool's face
        raise Refused(f"{self.name} works inside a turn only.", "invalid")


class WebSearch(_Web):
    """`web_search(query)` at a SearXNG endpoint that serves JSON (`search.formats` in its settings).

    The query leaves the box: SearXNG asks others with it. Its host must be in the policy's `egress.hosts`.
    """

    name = "web_search"
    description = "Search the web. Returns titles, addresses and a few words of each result."
    schema: Mapping[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "A few words to look for."}},
        "required": ["query"],
        "additionalProperties": False,
    }

    def __init__(self, url: str, *, http: Http | None = None) -> None:
        host = urlsplit(url).hostname
        if not host:
            raise ConfigError(f"not the address of a SearXNG endpoint: {url!r}")
        self._url = url.rstrip("/")
        # The operator's own service may well have a private address.
        self._http = http or Http(private_hosts=[host])

    async def call_in(self, arguments: Mapping[str, Any], *, call_id: str, turn: TurnState) -> str:  # noqa: ARG002
        query = validated(self, arguments, "query")
        url = f"{self._url}/search?{urlencode({'q': query, 'format': 'json'})}"

        async def passing(host: str) -> str:
            return await passage(host, what=self.name, text=url, turn=turn)

        answer = await self._http.get(url, passing=passing, types=("application/json",), max_kib=MAX_PAGE_KIB)
        if answer.status != 200:
            raise UpstreamError(f"the search answered {answer.status}", retryable=answer.status >= 500)
        try:
            results = json.loads(answer.body)["results"][:MAX_RESULTS]
            listed = [(str(r["title"]), str(r["url"]), str(r.get("content") or "")) for r in results]
        except (ValueError, KeyError, TypeError):
            raise UpstreamError("the search did not answer as SearXNG does", hint="is its JSON format on?") from None
        said = [f"{n}. {title}\n   {url}\n   {words[:300]}" for n, (title, url, words) in enumerate(listed, 1)]
        return "\n".join(said) or "Nothing was found."


class WebRead(_Web):
    """`web_read(url)`: the readable part of a page. Its host, and that of every redirect, must be in `egress.hosts`.

    Private, loopback, link-local and metadata addresses are refused after the name was resolved, on every redirect.
    """

    name = "web_read"
    description = "Read a page of the web, without its menus and advertisements."
    schema: Mapping[str, Any] = {
        "type": "object",
        "properties": {"url": {"type": "string", "description": "The whole address, with https://."}},
        "required": ["url"],
        "additionalProperties": False,
    }

    def __init__(self, *, http: Http | None = None) -> None:
        self._http = http or Http()

    async def call_in(self, arguments: Mapping[str, Any], *, call_id: str, turn: TurnState) -> str:  # noqa: ARG002
        url = validated(self, arguments, "url")

        async def passing(host: str) -> str:
            return await passage(host, what=self.name, text=url, turn=turn)

        page = await self._http.get(url, passing=passing, types=PAGE_TYPES, max_kib=MAX_PAGE_KIB)
        if page.status != 200:
            return f"The page answered {page.status}."
        text = page.body.decode("utf-8", "replace")
        if page.type in ("text/html", "application/xhtml+xml"):
            text = await asyncio.to_thread(readable, text, page.url)
        cut = "\n(the rest was cut)" if len(text) > MAX_TEXT_CHARS else ""
        return f"From {page.url}:\n\n{text[:MAX_TEXT_CHARS]}{cut}" if text.strip() else "The page has no readable text."


def readable(html: str, url: str) -> str:
    """The text of a page that a person would read. Raises MissingExtraError without the extra `web`."""
    try:
        import trafilatura
    except ImportError:
        raise MissingExtraError("reading web pages", extra="web") from None
    found = trafilatura.extract(html, url=url, include_comments=False, include_links=False, favor_precision=False)
    return str(found or "")
