"""What a request asks of a model, found before it is sent: a server's own refusal comes late and says little."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from aibox.chat import Capability, ModelInfo
from aibox.errors import ConfigError, EgressError

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
    for parts in _contents(api, body):
        found.update(_of_parts(parts))
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


_TOOLS = (None, "function", "custom")


def hold_tools(body: Mapping[str, Any]) -> None:
    """Raises EgressError for a tool of the server's own: what it runs by itself carries text past the door."""
    tools = body.get("tools") or ()
    if not isinstance(tools, list | tuple):
        raise ConfigError("`tools` is a list")
    for tool in tools:
        kind = tool.get("type") if type(tool) is dict or isinstance(tool, Mapping) else ""
        if kind not in _TOOLS:
            raise EgressError(
                f"the tool {str(kind)[:40]!r} would be run by the model's server, past the door",
                hint="give functions, and run them yourself",
            )


OUTPUT_BOUNDS: Mapping[Api, tuple[str, ...]] = {
    "chat": ("max_tokens", "max_completion_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
}
"""The names by which a request says how many tokens may be written."""
_BOUNDS = frozenset(
    {
        *(name for names in OUTPUT_BOUNDS.values() for name in names),
        # llama.cpp (where it outdoes `max_tokens`), Ollama, Text Generation Inference, Transformers, Anthropic.
        *("n_predict", "num_predict", "max_new_tokens", "max_length", "max_tokens_to_sample"),
    }
)


def output_bounds(api: Api, body: Mapping[str, Any]) -> dict[str, int]:
    """What is said by those names. Raises ConfigError for what is no number of tokens."""
    return {name: _tokens(name, body[name]) for name in OUTPUT_BOUNDS[api] if body.get(name) is not None}


_TURNS = frozenset({"priority", "id_slot"})
"""With these a caller would overtake others in the engine, or take the place where another's prompt is kept."""
_ENGINE = frozenset(
    {
        *("kv_transfer_params", "ec_transfer_params", "vllm_xargs"),  # vLLM; the last one can hold the first
        *("bootstrap_host", "bootstrap_port", "bootstrap_room", "session_params", "custom_logit_processor"),  # SGLang
        *("data_parallel_rank", "routed_dp_rank", "disagg_prefill_dp_rank"),
    }
)
_SEARCH = frozenset({"web_search_options", "search_parameters", "data_sources"})
"""OpenAI's, xAI's and Azure's ways to have the server look something up; an empty object asks for it too."""
_KEPT = frozenset({"previous_response_id", "conversation", "background", "prompt"})
_WRITES = _TURNS | _ENGINE | _SEARCH | _KEPT | {"store", "min_tokens"}
_HELD: Mapping[Api, frozenset[str]] = {
    **dict.fromkeys(get_args(Api), _TURNS | _ENGINE),
    **{api: _WRITES | _BOUNDS.difference(own) for api, own in OUTPUT_BOUNDS.items()},
    "completions": (_WRITES - {"prompt"}) | _BOUNDS.difference(OUTPUT_BOUNDS["completions"]),
}
"""Fields that are not sent as they came. One look tells that a request has none of them."""


def hold_fields(api: Api, body: dict[str, Any]) -> None:
    """Take out of the body what is an engine's own affair, and call what bounds the answer by the API's own name.

    Raises EgressError for what would make the engine connect elsewhere, search, run a caller's code, or read what it
    keeps of others; ConfigError for what would need an answer that was kept, which belongs to whoever knows its id, of
    whatever tenant, and for a bound that is no number of tokens.
    """
    held = _HELD[api]
    if body.keys().isdisjoint(held):
        return
    for key in held.intersection(body):
        if key in _KEPT and body[key]:
            raise ConfigError(
                f"`{key}` cannot be used: nothing is kept between calls", hint="send the items themselves"
            )
        if key in _SEARCH and body[key] is not None:
            raise EgressError(
                f"with `{key}` the model's server would look something up, past the door",
                hint="give functions, and look it up yourself",
            )
        if key in _ENGINE and body[key] is not None:
            raise EgressError(
                f"with `{key}` the model's server would reach elsewhere, or for what it keeps of others, past the door",
                hint="leave it out: it is for whoever runs the server",
            )
    for key in _TURNS:
        body.pop(key, None)
    if body.get("store") is not None:
        body["store"] = False
    if api in OUTPUT_BOUNDS:
        _rename_bounds(api, body)


def _rename_bounds(api: Api, body: dict[str, Any]) -> None:
    least, own = body.get("min_tokens"), OUTPUT_BOUNDS[api]
    if least is not None and (type(least) is not int or least < 0):
        raise ConfigError("`min_tokens` is a whole number")
    others = [name for name in body if name in _BOUNDS and name not in own]
    bounds = [_tokens(name, bound) for name in others if (bound := body.pop(name)) is not None]
    if bounds and all(body.get(name) is None for name in own):
        body[own[0]] = min(bounds)


def _tokens(name: str, bound: Any) -> int:
    if type(bound) is not int or bound < 1:
        raise ConfigError(f"`{name}` is a whole number above 0")
    return bound


_ADDRESSES = ("image_url", "video_url", "audio_url", "file_url")


def hold_addresses(body: Mapping[str, Any]) -> None:
    """Raises EgressError for what the model's server would have to fetch: an address carries text out too."""
    for key, place in _places([body.get("messages"), body.get("input")]):
        url = place.get("url") if isinstance(place, Mapping) else place
        if url and not (isinstance(url, str) and url[:5].lower() == "data:"):
            raise EgressError(
                f"the model's server would fetch what `{key}` names, past the door",
                hint="send it inline, as a data: URL",
            )


def _places(waiting: list[Any]) -> Iterator[tuple[str, Any]]:
    """What holds an address, wherever it stands: in a part, in an item, in what a tool has brought."""
    while waiting:
        one = waiting.pop()
        # Almost all of a long conversation is a dict with a text, and to ask what is a Mapping costs ten times as much.
        if type(one) is dict or isinstance(one, Mapping):
            for name, value in one.items():
                if name in _ADDRESSES:
                    yield name, value
                elif type(value) is not str:
                    waiting.append(value)
        elif isinstance(one, list | tuple):
            waiting += [value for value in one if type(value) is not str]


def _contents(api: Api, body: Mapping[str, Any]) -> Iterable[Sequence[Any]]:
    items = body.get("input" if api == "responses" else "messages")
    for item in items if isinstance(items, list) else ():
        if type(item) is not dict and not isinstance(item, Mapping):
            continue
        if type(content := item.get("content")) is not str and isinstance(content, list):
            yield content
        if "output" in item and isinstance(item["output"], list):
            yield item["output"]


def _of_parts(parts: Iterable[Any]) -> Iterable[Capability]:
    for part in parts:
        if isinstance(part, Mapping) and (capability := _PARTS.get(str(part.get("type")))):
            yield capability
