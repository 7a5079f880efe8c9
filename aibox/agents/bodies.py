"""Where the texts stand in the bodies of OpenAI's APIs: what is checked, and where what came of it goes.

A field that is not known may be read by a model's server, so each text in it is checked like those beside it. Whatever
a check cannot read is refused, not passed by: token ids, files, and items that are not known.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from itertools import groupby
from typing import Any, Literal

from aibox.chat import DEEP, is_name, json_text, names, plain
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
_PROGRAM = frozenset(
    {
        *("model", "stream", "stream_options", "instructions", "tools", "tool_choice", "functions", "function_call"),
        *("response_format", "text", "stop", "user", "metadata", "safety_identifier", "prompt_cache_key", "cache_salt"),
        *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "provider", "models"),
        *("reasoning", "thinking", "include", "modalities", "audio", "logit_bias"),
    }
)
"""Fields of a request in which the program that asks says how to answer. It is believed, as its instructions are."""
_SEEN: Mapping[str, str] = {"image_url": "image_url", "input_image": "image_url", "input_audio": "input_audio"}
"""Parts of a message that are for eyes and ears, and the field of what no check reads."""
_FILES = ("file", "input_file")
_SAYS = ("text", "refusal", "thinking")


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
    others = {name: value for name, value in body.items() if name != key and name not in _PROGRAM}
    told = {name: value for name, value in others.items() if isinstance(value, str | list | dict)}
    where: Where
    for name, value in told.items():
        if not (isinstance(value, str) and is_name(value)):
            where = "retrieved" if name == "documents" else "input"
            told[name] = await _every(value, where, change)
    return {**body, **told, key: made}


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
    """An answer of `SAID`'s APIs, or a piece of one, without what no check can read; the same object when that is all.

    A content in parts becomes the text of them, arguments that are an object become its text; any other field that says
    something (`reasoning_details`, `audio`, `annotations`) is left out.
    """
    choices = body.get("choices")
    if api not in SAID or not choices:
        return body
    made = [_readable_choice(api, choice, key) for choice in choices]
    return body if all(map(_unchanged, choices, made)) else {**body, "choices": made}


def _readable_choice(api: Api, choice: dict[str, Any], key: str) -> dict[str, Any]:
    made = {name: value for name, value in choice.items() if not value or name in _CHOICE}
    if api == "chat":
        told = choice.get(key) or {}
        said = {name: text for name, value in told.items() if (text := _readable(name, value)) is not _UNREAD}
        made |= {key: told if _alike(said, told) else said} if key in choice else {}
    elif "text" in choice:
        made["text"] = plain(choice["text"])
    return choice if _alike(made, choice) else made


def _alike(made: dict[str, Any], told: dict[str, Any]) -> bool:
    return made.keys() == told.keys() and all(made[name] is told[name] for name in told)


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
_CHOICE = frozenset({"index", "finish_reason", "stop_reason", "logprobs", "token_ids"})
_ITEM = frozenset({"id", "type", "role", "status", "phase", "name", "call_id", "encrypted_content"})
_PART = frozenset({"type", "text", "refusal", "logprobs"})
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
    """An answer of the Responses API, likewise, without items that are not known."""
    items = response.get("output") or []
    shown = [made for item in items if (made := await output_item(item, change)) is not None]
    made = _same(items, shown)
    if made is items and "output_text" not in response:
        return response
    return {key: value for key, value in response.items() if key != "output_text"} | {"output": made}


async def output_item(item: dict[str, Any], change: Change) -> dict[str, Any] | None:
    """None for one of a kind that no check can read."""
    kind = str(item.get("type"))
    if kind not in ("message", "reasoning", *CALLS):
        return None
    made = {name: value for name, value in item.items() if not value or name in _ITEM}
    if (field := CALLS.get(kind)) and item.get(field):
        text = json_text(item[field])
        shown = await change(text, "tool_arguments")
        made[field] = item[field] if shown == text else shown
    for key in ("content", "summary"):
        if item.get(key) and not field:
            parts = item[key] if isinstance(item[key], list) else [{"type": "output_text", "text": plain(item[key])}]
            made[key] = _same(item[key], [await output_part(part, change) for part in parts])
    return item if _alike(made, item) else made


async def output_part(part: dict[str, Any], change: Change) -> dict[str, Any]:
    made = {name: value for name, value in part.items() if not value or name in _PART}
    made |= {"annotations": []} if "annotations" in part else {}
    for key in ("text", "refusal"):
        if part.get(key):
            made[key] = await change(plain(part[key]), "output")
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


async def _calls(calls: Any, where: Where, change: Change) -> Any:
    """The calls of a message, or the one of the old form; the same object when no arguments changed."""
    if isinstance(calls, Mapping):
        return await _called(calls, "arguments", where, change)
    if not isinstance(calls, list):
        return calls
    made: list[Any] = []
    for call in calls:
        if not isinstance(call, Mapping):
            raise ConfigError("each call of a tool is an object")
        key = "custom" if call.get("type") == "custom" else "function"
        told = call.get(key)
        field = "input" if key == "custom" else "arguments"
        shown = await _called(told, field, where, change) if isinstance(told, Mapping) else told
        rest = await _rest(call, (key,), where, change)
        made.append(call if shown is told and not rest else {**call, **rest, key: shown})
    return _same(calls, made)


async def _called(told: Mapping[str, Any], field: str, where: Where, change: Change) -> Mapping[str, Any]:
    """A call with what it is called with, which may be an object instead of its text, and all else that it says."""
    given = told.get(field)
    text = given if isinstance(given, str | None) else json_text(given)
    shown = await change(text, where) if text else text
    rest = await _rest(told, (field,), where, change)
    return told if shown == text and not rest else {**told, **rest, field: given if shown == text else shown}


def without_tokens(choice: dict[str, Any]) -> dict[str, Any]:
    """Without log probabilities and ids, which hold the text token by token, as it was before it was changed."""
    choice = {**choice, "token_ids": None} if choice.get("token_ids") else choice
    if not choice.get("logprobs"):
        return choice
    return {**choice, "logprobs": [] if isinstance(choice["logprobs"], list) else None}


async def _item(item: Any, change: Change, *, checked: bool) -> Any:
    """A message of a chat, or an item of a Responses request."""
    if not isinstance(item, Mapping):
        raise ConfigError("each message is an object with a `role`")
    kind, role = item.get("type"), item.get("role")
    if kind in _OUTPUTS:
        return await _holding(item, "output", "tool_result", change, checked=checked)
    if isinstance(kind, str) and (field := CALLS.get(kind)):
        return await _called(item, field, _EARLIER, change)
    if kind == "reasoning":
        return await _every(item, _EARLIER, change)
    if not isinstance(role, str):
        if checked:
            raise ConfigError(f"the item {str(kind)[:40]!r} cannot be checked, as the policy asks")
        return item
    return (
        item
        if role in _TRUSTED
        else await _holding(item, "content", _PLACES.get(role, "input"), change, checked=checked)
    )


async def _holding(
    item: Mapping[str, Any], key: str, where: Where, change: Change, *, checked: bool
) -> Mapping[str, Any]:
    """An item with a content of that place in one field, calls in others, and what else it says."""
    made = await _content(item.get(key), where, change, checked=checked)
    fields = {key: made} if made is not item.get(key) else {}
    for calls in ("tool_calls", "function_call"):
        if (old := item.get(calls)) and (new := await _calls(old, _EARLIER, change)) is not old:
            fields[calls] = new
    fields |= await _rest(item, (key, "tool_calls", "function_call"), where, change)
    return {**item, **fields} if fields else item


async def _content(content: Any, where: Where, change: Change, *, checked: bool) -> Any:
    """Texts beside each other are one text to a model: an attack may begin in one of them and end in the next."""
    if not isinstance(content, list):
        return await _every(content, where, change)
    parts: list[Any] = []
    texts: list[str] = []
    for said, group in groupby(content, _said_in):
        beside = [await _part(part, said, where, change, checked=checked) for part in group]
        text = "\n".join(part[said] for part in beside) if said else ""
        shown = await change(text, where) if text else text
        parts += beside if shown == text else [{**beside[0], said: shown}]
        texts += [text] if text else []
    if len(texts) > 1:
        await change("\n".join(texts), where)  # with an image between them: only a refusal counts
    return _same(content, parts)


def _said_in(part: Any) -> str:
    """The field of the text of a part that is one."""
    if not isinstance(part, Mapping):
        raise ConfigError("each part of a message is an object with a `type`")
    said = [key for key in _SAYS if isinstance(part.get(key), str)]
    return said[0] if len(said) == 1 and str(part.get("type")) not in _SEEN else ""


async def _part(
    part: Mapping[str, Any], said: str, where: Where, change: Change, *, checked: bool
) -> Mapping[str, Any]:
    """A part of a message, but for its text."""
    kind = str(part.get("type"))
    if checked and (kind in _FILES or "file" in part):
        raise ConfigError("a file cannot be checked, as the policy asks", hint="send its text")
    fields = await _rest(part, (said, _SEEN.get(kind, "")), where, change)
    return {**part, **fields} if fields else part


async def _rest(
    told: Mapping[str, Any], seen: Collection[str], where: Where, change: Change, depth: int = 0
) -> dict[str, Any]:
    """Of the fields that nobody has looked at, those that change."""
    made: dict[str, Any] = {}
    for name, value in told.items():
        if name in seen or names(name, value):
            continue
        if (shown := await _every(value, where, change, depth)) is not value:
            made[name] = shown
    return made


async def _every(value: Any, where: Where, change: Change, depth: int = 0) -> Any:
    """A value with each text in it changed; the same object when none is. Raises ConfigError for one beyond `DEEP`."""
    if isinstance(value, str):
        shown = await change(value, where) if value else value
        return value if shown == value else shown
    if not value or not isinstance(value, list | dict):
        return value
    if depth == DEEP:
        raise ConfigError(f"a field is nested more than {DEEP} deep, and cannot be checked")
    if isinstance(value, list):
        return _same(value, [await _every(one, where, change, depth + 1) for one in value])
    fields = await _rest(value, (), where, change, depth + 1)
    named = {name: name if is_name(name) else await change(name, where) for name in value}
    if not fields and all(name == shown for name, shown in named.items()):
        return value
    return {named[name]: fields.get(name, one) for name, one in value.items()}


def _same(old: Any, new: list[Any]) -> Any:
    """The old list while its members are what they were."""
    return old if old is not None and len(old) == len(new) and all(map(_unchanged, old, new)) else new


def _unchanged(old: Any, new: Any) -> bool:
    return old is new or (isinstance(old, str) and old == new)
