"""Where the texts stand in the bodies of OpenAI's APIs: what is checked, and where what came of it goes.

Whatever a check cannot read is refused, not passed by: token ids, and items that are not known.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Literal

from aibox.chat import json_text, plain
from aibox.errors import ConfigError
from aibox.inference.capabilities import Api
from aibox.types import Where

Change = Callable[[str, Where], Awaitable[str]]
"""What becomes of a text of that place; raises what the policy wants raised."""

SAID: Mapping[str, tuple[str, ...]] = {
    "chat": ("reasoning_content", "reasoning", "content", "refusal"),
    "completions": ("text",),
}
"""What a model writes in a choice of these APIs, in the order in which it writes it."""

_EARLIER: Where = "retrieved"
"""Earlier answers and calls: what the caller kept, with everything in it that was restored for the caller."""
_PLACES: Mapping[str, Where] = {"tool": "tool_result", "function": "tool_result", "assistant": _EARLIER}
_TRUSTED = ("system", "developer")
CALLS: Mapping[str, str] = {"function_call": "arguments", "custom_tool_call": "input"}
"""Items of the Responses API that call a tool, and the field of what it is called with."""
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


async def asked(api: Api, body: Mapping[str, Any], change: Change, *, checked: bool) -> dict[str, Any]:
    """The request with its texts changed; what did not change is the same object.

    `checked` False: nothing looks at the texts, and what could not be read may pass. Raises ConfigError.
    """
    key = "messages" if api == "chat" else "prompt" if api == "completions" else "input"
    value = body.get(key)
    if isinstance(value, str):
        made: Any = await change(value, "input")
    elif not isinstance(value, list) or not value:
        raise ConfigError(f"the body needs `{key}`")
    elif api in ("chat", "responses"):
        made = _same(value, [await _item(item, change, checked=checked) for item in value])
    elif all(isinstance(text, str) for text in value):
        made = _same(value, [await change(text, "input") for text in value])
    elif checked:
        raise ConfigError("token ids cannot be checked, as the policy asks", hint="send the text itself")
    else:
        made = value
    changed = {key: made}
    if isinstance(suffix := body.get("suffix"), str):
        changed["suffix"] = await change(suffix, "input")
    return {**body, **changed}


def instructions(body: Mapping[str, Any]) -> str:
    """What the caller tells the model to be: system and developer messages, and the Responses API's instructions."""
    told = [body["instructions"]] if isinstance(body.get("instructions"), str) else []
    told += [_text(item.get("content")) for item in _messages(body) if item.get("role") in _TRUSTED]
    return "\n".join(told)


def users(body: Mapping[str, Any]) -> list[str]:
    """What a conversation's user wrote, message by message."""
    return [_text(item.get("content")) for item in _messages(body) if item.get("role") == "user"]


def _messages(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for key in ("messages", "input"):
        yield from (item for item in body.get(key) or () if isinstance(item, Mapping))


def _text(content: Any) -> str:
    parts = [{"text": content}] if isinstance(content, str) else content if isinstance(content, list) else ()
    return "\n".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))


def readable(api: Api, body: dict[str, Any], key: Literal["message", "delta"]) -> dict[str, Any]:
    """A chat's answer, or a piece of one, without what no check can read; the same object when that is all of it.

    A content in parts becomes the text of them, arguments that are an object become its text; any other field that says
    something (`reasoning_details`, `audio`, `annotations`) is left out.
    """
    choices = body.get("choices")
    if api != "chat" or not choices:
        return body
    made = [_readable_choice(choice, key) for choice in choices]
    return body if all(map(_unchanged, choices, made)) else {**body, "choices": made}


def _readable_choice(choice: dict[str, Any], key: str) -> dict[str, Any]:
    told = choice.get(key) or {}
    made = {name: text for name, value in told.items() if (text := _readable(name, value)) is not _UNREAD}
    return (
        choice if len(made) == len(told) and all(made[name] is told[name] for name in told) else {**choice, key: made}
    )


def _readable(name: str, value: Any) -> Any:
    if not value or (name in SAID["chat"] and isinstance(value, str)) or (name == "role" and value in _ROLES):
        return value
    if name in SAID["chat"]:
        return plain(value)
    if name == "function_call" and isinstance(value, dict):
        return _with_text(value)
    if name == "tool_calls" and isinstance(value, list):
        made = [_readable_call(call) for call in value]
        return value if all(map(_unchanged, value, made)) else made
    return _UNREAD


def _readable_call(call: dict[str, Any]) -> dict[str, Any]:
    told = call.get("function")
    if not isinstance(told, dict) or (made := _with_text(told)) is told:
        return call
    return {**call, "function": made}


def _with_text(called: dict[str, Any]) -> dict[str, Any]:
    arguments = called.get("arguments")
    return called if isinstance(arguments, str | None) else {**called, "arguments": json_text(arguments)}


_UNREAD = object()
_ROLES = ("assistant", "tool", "function", "user", "system", "developer")


async def answered(api: Api, body: dict[str, Any], change: Change) -> dict[str, Any]:
    """The whole answer with its texts changed; the same object when nothing did."""
    if api == "responses":
        return await output(body, change)
    if api not in SAID:
        return body
    choices = [await _choice(api, choice, change) for choice in body.get("choices") or ()]
    return body if _same(body.get("choices"), choices) is body.get("choices") else {**body, "choices": choices}


async def output(response: dict[str, Any], change: Change) -> dict[str, Any]:
    """An answer of the Responses API, likewise."""
    items = response.get("output") or []
    made = _same(items, [await output_item(item, change) for item in items])
    return response if made is items else {**response, "output": made}


async def output_item(item: dict[str, Any], change: Change) -> dict[str, Any]:
    made = dict(item)
    field = CALLS.get(str(item.get("type")), "")
    if isinstance(text := item.get(field), str) and text:
        shown = await change(text, "tool_arguments")
        made[field] = text if shown == text else shown
    for key in ("content", "summary"):
        if isinstance(item.get(key), list):
            made[key] = _same(item[key], [await output_part(part, change) for part in item[key]])
    return item if all(made[key] is item[key] for key in made) else made


async def output_part(part: dict[str, Any], change: Change) -> dict[str, Any]:
    made = dict(part)
    for key in ("text", "refusal"):
        if isinstance(part.get(key), str) and part[key]:
            made[key] = await change(part[key], "output")
    return part if made == part else without_tokens(made)


async def _choice(api: Api, choice: dict[str, Any], change: Change) -> dict[str, Any]:
    told = choice.get("message") or {} if api == "chat" else choice
    made = {key: await change(told[key], "output") for key in SAID[api] if isinstance(told.get(key), str) and told[key]}
    for key in ("tool_calls", "function_call") if api == "chat" else ():
        if (old := told.get(key)) and (new := await _calls(old, "tool_arguments", change)) is not old:
            made[key] = new
    if all(told[key] == text for key, text in made.items()):
        return choice
    return without_tokens({**choice, "message": {**told, **made}} if api == "chat" else {**choice, **made})


async def _field(told: Mapping[str, Any], key: str, where: Where, change: Change) -> Mapping[str, Any]:
    """With the text of one field changed; the same object when there is none, or it stays as it is."""
    text = told.get(key)
    shown = await change(text, where) if isinstance(text, str) and text else text
    return told if shown == text else {**told, key: shown}


async def _calls(calls: Any, where: Where, change: Change) -> Any:
    """The calls of a message, or the one of the old form; the same object when no arguments changed."""
    if isinstance(calls, Mapping):
        return await _field(calls, "arguments", where, change)
    if not isinstance(calls, list):
        return calls
    made: list[Any] = []
    for call in calls:
        if not isinstance(call, Mapping):
            raise ConfigError("each call of a tool is an object")
        key = "custom" if call.get("type") == "custom" else "function"
        told = call.get(key)
        field = "input" if key == "custom" else "arguments"
        shown = await _field(told, field, where, change) if isinstance(told, Mapping) else told
        made.append(call if shown is told else {**call, key: shown})
    return _same(calls, made)


def without_tokens(choice: dict[str, Any]) -> dict[str, Any]:
    """Without the log probabilities, which hold the text token by token, as it was before it was changed."""
    if not choice.get("logprobs"):
        return choice
    return {**choice, "logprobs": [] if isinstance(choice["logprobs"], list) else None}


async def _item(item: Any, change: Change, *, checked: bool) -> Any:
    """A message of a chat, or an item of a Responses request."""
    if not isinstance(item, Mapping):
        raise ConfigError("each message is an object with a `role`")
    kind, role = item.get("type"), item.get("role")
    if kind in _OUTPUTS:
        made = await _content(item.get("output"), "tool_result", change)
        return item if made is item.get("output") else {**item, "output": made}
    if isinstance(kind, str) and (field := CALLS.get(kind)):
        return await _field(item, field, _EARLIER, change)
    if kind == "reasoning":
        parts = {
            key: await _content(item.get(key), _EARLIER, change) for key in ("summary", "content") if item.get(key)
        }
        return item if all(part is item[key] for key, part in parts.items()) else {**item, **parts}
    if not isinstance(role, str):
        if checked:
            raise ConfigError(f"the item {str(kind)[:40]!r} cannot be checked, as the policy asks")
        return item
    if role in _TRUSTED:
        return item
    made = await _content(item.get("content"), _PLACES.get(role, "input"), change)
    fields = {"content": made} if made is not item.get("content") else {}
    for key in ("tool_calls", "function_call"):
        if (old := item.get(key)) and (new := await _calls(old, _EARLIER, change)) is not old:
            fields[key] = new
    for key in ("reasoning_content", "reasoning", "refusal"):
        if isinstance(text := item.get(key), str) and text and (shown := await change(text, _EARLIER)) != text:
            fields[key] = shown
    return {**item, **fields} if fields else item


async def _content(content: Any, where: Where, change: Change) -> Any:
    if isinstance(content, str):
        made = await change(content, where) if content else content
        return content if made == content else made
    if not isinstance(content, list):
        return content
    parts: list[Any] = []
    for part in content:
        if not isinstance(part, Mapping):
            raise ConfigError("each part of a message is an object with a `type`")
        parts.append(await _field(part, "text", where, change))
    return _same(content, parts)


def _same(old: Any, new: list[Any]) -> Any:
    """The old list while its members are what they were: then it goes on in the bytes in which it came."""
    return old if old is not None and len(old) == len(new) and all(map(_unchanged, old, new)) else new


def _unchanged(old: Any, new: Any) -> bool:
    return old is new or (isinstance(old, str) and old == new)
