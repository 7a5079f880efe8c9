"""What a server is told beside a call, and what a model gets of its result: words, and the names of what is none."""

from __future__ import annotations

import json
from typing import Any

MAX_TEXT_CHARS = 64_000


def text_of(result: Any) -> str:
    """The words of a result. What is not text is named, and left out."""
    said = []
    for block in result.content:
        kind = getattr(block, "type", "")
        resource = getattr(block, "resource", None)
        if kind == "text":
            said.append(block.text)
        elif resource is not None and hasattr(resource, "text"):
            said.append(resource.text)
        else:
            said.append(f"[{kind or 'something'} left out]")
    if not said and result.structured_content is not None:
        said.append(json.dumps(result.structured_content))
    return "\n".join(said)[:MAX_TEXT_CHARS]


def meta_of(passed: str) -> dict[str, Any] | None:
    """The id of a passage as MCP has it: a W3C trace context in the `_meta` of a request (SEP-414)."""
    return {"traceparent": f"00-{passed}-{passed[:16]}-00"} if passed else None
