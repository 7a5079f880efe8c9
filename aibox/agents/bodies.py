"""Where the texts stand in the bodies of OpenAI's APIs: what is checked, and where what came of it goes.

A field that is not known may be read by a model's server, so each text in it is checked like those beside it. Whatever
a check cannot read is refused, not passed by: token ids, files, and items that are not known.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from itertools import groupby
from typing import Any

from aibox.agents.known import ARGUMENTS, RESPONSE, SAID, known
from aibox.chat import json_text, plain
from aibox.errors import ConfigError
from aibox.fields import each_text, is_name, names
from aibox.inference.capabilities import Api
from aibox.types import Where

Change = Callable[[str, Where], Awaitable[str]]
"""What becomes of a text of that place; raises what the policy wants raised."""

Tools = Collection[str] | None
"""Names that may stand in a call of an answer as they are; None for a request, whose calls its caller keeps."""

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
_NUMBERS = ("prompt_embeds", "input_embeds", "prompt_token_ids", "input_ids")
"""A prompt as vLLM and SGLang take it too, beside the text or in its place: numbers, which no check reads."""
_SAYS = ("text", "refusal", "thinking")


async def asked(api: Api, body: Mapping[str, Any], change: Change, *, checked: bool) -> dict[str, Any]:
    """The request with its texts changed.

    `checked` False: nothing looks at the texts, and what could not be read may pass. Raises ConfigError.
    """
    key = "messages" if api == "chat" else "prompt" if api == "completions" else "input"
    value = body.get(key)
    if isinstance(value, str):
        made: Any = await change(value, "input")
    elif not isinstance(value, list) or not value:
        raise ConfigError(f"the body needs `{key}`")
    elif api in ("chat", "responses"):
        made = [await _item(item, change, checked=checked) for item in value]
    elif all(isinstance(text, str) for text in value):
        made = [await change(text, "input") for text in value]
    elif checked:
        raise ConfigError("token ids cannot be checked, as the policy asks", hint="send the text itself")
    else:
        made = value
    if checked and (unread := [name for name in _NUMBERS if body.get(name)]):
        raise ConfigError(f"`{unread[0]}` cannot be checked, as the policy asks", hint="send the text itself")
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
        items = body.get(key)
        yield from (item for item in (items if isinstance(items, list) else ()) if isinstance(item, Mapping))


def _text(content: Any) -> str:
    parts = [{"text": content}] if isinstance(content, str) else content if isinstance(content, list) else ()
    return "\n".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))


_CALLED = ("tool_calls", "function_call")
_ITEM = frozenset({"id", "type", "role", "status", "phase", "name", "call_id", "encrypted_content"})
_PART = frozenset({"type", "text", "refusal", "logprobs"})


def offered(body: Mapping[str, Any]) -> frozenset[str]:
    """The names of the tools that a request offers. A call by another name is a text of the model's own."""
    listed = [one for key in ("tools", "functions") if isinstance(body.get(key), list) for one in body[key]]
    told = [
        each for one in listed if isinstance(one, Mapping) for each in (one, one.get("function"), one.get("custom"))
    ]
    return frozenset(each["name"] for each in told if isinstance(each, Mapping) and isinstance(each.get("name"), str))


async def answered(api: Api, body: dict[str, Any], change: Change, tools: Collection[str]) -> dict[str, Any]:
    """The whole answer with its texts changed, and the names of calls that are not of these tools."""
    if api == "responses":
        return await output(body, change, tools)
    if api not in SAID or not body.get("choices"):
        return body
    return {**body, "choices": [await _choice(api, choice, change, tools) for choice in body["choices"]]}


async def output(response: dict[str, Any], change: Change, tools: Collection[str]) -> dict[str, Any]:
    """An answer of the Responses API, likewise, without items that are not known."""
    made = {key: value for key, value in known(response, RESPONSE).items() if key != "output_text"}
    if items := response.get("output"):
        made["output"] = [shown for item in items if (shown := await output_item(item, change, tools)) is not None]
    return made


async def output_item(item: dict[str, Any], change: Change, tools: Collection[str]) -> dict[str, Any] | None:
    """None for one of a kind that no check can read."""
    kind = str(item.get("type"))
    if kind not in ("message", "reasoning", *CALLS):
        return None
    says = (CALLS[kind],) if kind in CALLS else ("content", "summary")
    made = {name: value for name, value in item.items() if not value or name in _ITEM or name in says}
    if item.get("name"):
        made |= await beside({"name": item["name"]}, (), change, tools)
    for name in says:
        if not (told := item.get(name)):
            continue
        if kind in CALLS:
            made[name] = await _arguments(told, "tool_arguments", change)
        else:
            parts = told if isinstance(told, list) else [{"type": "output_text", "text": plain(told)}]
            made[name] = [await output_part(part, change) for part in parts]
    return made


async def output_part(part: dict[str, Any], change: Change) -> dict[str, Any]:
    made = {name: value for name, value in part.items() if not value or name in _PART}
    made |= {"annotations": []} if "annotations" in part else {}
    for key in ("text", "refusal"):
        if part.get(key):
            made[key] = await change(plain(part[key]), "output")
    said = made.get("text") or made.get("refusal")
    return made if made == part and said else without_tokens(made)


async def _choice(api: Api, choice: dict[str, Any], change: Change, tools: Collection[str]) -> dict[str, Any]:
    told = choice.get("message") or {} if api == "chat" else choice
    made = {key: await change(told[key], "output") for key in SAID[api] if isinstance(told.get(key), str) and told[key]}
    for key in _CALLED if api == "chat" else ():
        if calls := told.get(key):
            made[key] = await _calls(calls, "tool_arguments", change, tools)
    if made and all(told[key] == text for key, text in made.items()):
        return choice
    return without_tokens({**choice, "message": {**told, **made}} if api == "chat" else {**choice, **made})


async def _calls(calls: Any, where: Where, change: Change, tools: Tools = None) -> Any:
    """The calls of a message, or the one of the old form."""
    if isinstance(calls, Mapping):
        return await _called(calls, "arguments", where, change, tools)
    if not isinstance(calls, list):
        return await _every(calls, where, change, tools)
    made: list[Any] = []
    for call in calls:
        if not isinstance(call, Mapping):
            raise ConfigError("each call of a tool is an object")
        key = "custom" if call.get("type") == "custom" else "function"
        fields: dict[str, Any] = {}
        if isinstance(told := call.get(key), Mapping):
            fields[key] = await _called(told, ARGUMENTS[key], where, change, tools)
        made.append({**call, **fields, **await _rest(call, fields, where, change, tools)})
    return made


async def beside(
    told: Mapping[str, Any], seen: Collection[str], change: Change, tools: Collection[str]
) -> dict[str, Any]:
    """A call's fields but `seen`, changed: a model writes the name, and may write more."""
    return await _rest(told, seen, "tool_arguments", change, tools)


async def _called(
    told: Mapping[str, Any], field: str, where: Where, change: Change, tools: Tools = None
) -> Mapping[str, Any]:
    """A call with what it is called with, and all else that it says."""
    given = {field: await _arguments(told[field], where, change)} if field in told else {}
    return {**told, **given, **await _rest(told, (field,), where, change, tools)}


async def _arguments(given: Any, where: Where, change: Change) -> Any:
    """What a tool is called with: an object instead of its text stays one while nothing in it changes."""
    text = json_text(given)
    shown = await change(text, where) if text else text
    return given if shown == text else shown


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
    if isinstance(role, str):
        # Whoever has a role speaks, whatever a `type` says beside it.
        if role in _TRUSTED:
            return item
        return await _holding(item, "content", _PLACES.get(role, "input"), change, checked=checked)
    if kind in _OUTPUTS:
        return await _holding(item, "output", "tool_result", change, checked=checked)
    if isinstance(kind, str) and (field := CALLS.get(kind)):
        return await _called(item, field, _EARLIER, change)
    if kind == "reasoning":
        return await _every(item, _EARLIER, change)
    if checked:
        raise ConfigError(f"the item {str(kind)[:40]!r} cannot be checked, as the policy asks")
    return item


async def _holding(
    item: Mapping[str, Any], key: str, where: Where, change: Change, *, checked: bool
) -> Mapping[str, Any]:
    """An item with a content of that place in one field, calls in others, and what else it says."""
    made = {**item}
    if key in item:
        made[key] = await _content(item[key], where, change, checked=checked)
    for calls in _CALLED:
        if calls in item:
            made[calls] = await _calls(item[calls], _EARLIER, change)
    made |= await _rest(item, (key, *_CALLED), where, change)
    return made


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
    return parts


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
    return {**part, **await _rest(part, (said, _SEEN.get(kind, "")), where, change)}


async def _rest(
    told: Mapping[str, Any], seen: Collection[str], where: Where, change: Change, tools: Tools = None
) -> dict[str, Any]:
    """The fields that nobody has looked at, changed; without those that hold a name."""
    named = _named(tools)
    return {
        name: await _every(value, where, change, tools)
        for name, value in told.items()
        if name not in seen and not named(name, value)
    }


def _named(tools: Tools) -> Callable[[str, object], bool]:
    """Which fields hold a name: in an answer, as deep as it stands, only that of a tool is one."""
    if tools is None:
        return names
    return lambda field, value: isinstance(value, str) and value in tools if field == "name" else names(field, value)


def _every(value: Any, where: Where, change: Change, tools: Tools = None) -> Awaitable[Any]:
    return each_text(value, lambda text: change(text, where), _unread, named=_named(tools))


def _unread(what: str) -> ConfigError:
    return ConfigError(f"{what} cannot be checked")
