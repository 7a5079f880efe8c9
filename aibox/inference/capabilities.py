"""What a request asks of a model, found before it is sent: a server's own refusal comes late and says little."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from aibox.chat import Capability, ModelInfo
from aibox.errors import ConfigError

Api = Literal["chat", "completions", "embeddings", "responses", "rerank"]

_PARTS: Mapping[str, Capability] = {
    "image_url": "vision",
    "input_image": "vision",
    "image": "vision",
    "video_url": "vision",
    "input_audio": "audio",
    "audio_url": "audio",
}


def needs(api: Api, body: Mapping[str, Any]) -> set[Capability]:
    """What a model must be able to do to answer this."""
    found: set[Capability] = {api}
    if body.get("tools") and body.get("tool_choice") != "none":
        found.add("tools")
    items = body.get("messages") if api == "chat" else body.get("input") if api == "responses" else None
    if isinstance(items, list):
        for item in items:
            content = item.get("content") if isinstance(item, Mapping) else None
            if isinstance(content, list):
                found.update(_of_parts(content))
    return found


def check(model: ModelInfo, api: Api, body: Mapping[str, Any]) -> None:
    """Raises ConfigError when the model is known not to be able to do what is asked."""
    if model.capabilities is None:
        return
    missing = needs(api, body) - model.capabilities
    if not model.tools:
        missing.discard("tools")  # they are emulated, or left out
    if missing:
        has = ", ".join(sorted(model.capabilities)) or "nothing"
        raise ConfigError(
            f"the model {model.id} cannot do what is asked: {', '.join(sorted(missing))}",
            hint=f"it can do: {has}; `aibox models` lists the others",
        )


def _of_parts(parts: Iterable[Any]) -> Iterable[Capability]:
    for part in parts:
        if isinstance(part, Mapping) and (capability := _PARTS.get(str(part.get("type")))):
            yield capability
