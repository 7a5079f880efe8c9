"""Tools for a model that cannot be made to call them: it is made to write JSON of a schema that says the same.

Only a demanded call (`tool_choice` "required", or one tool by name) is emulated; "auto" goes to the backend as it is.
One call an answer: parallel calls are not emulated.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from aibox.chat import ChatRequest, Completion
from aibox.errors import BackendError, ConfigError

MAX_STRING_CHARS = 600
MAX_ITEMS = 16
MAX_TOKENS = 512
"""A small model repeats itself until something stops it: strings, lists and the whole call have an end."""

_TOOL_FIELDS = ("tools", "tool_choice", "parallel_tool_calls")
_INSTRUCTION = """You can call these functions:
{tools}
Answer with JSON only: {{"name": ..., "arguments": {{...}}}}. Take the values of the arguments from the question."""
# Measured with the demo model on 12 questions over 5 tools: 10 right with these turns, 6 without them.
_EXAMPLES = (
    ("What is the capital of France?", '{"name": "capital", "arguments": {"country": "France"}}'),
    ("Multiply 6 by 9.", '{"name": "multiply", "arguments": {"x": 6, "y": 9}}'),
    ("Who is the manager of Mary Smith?", '{"name": "manager", "arguments": {"person": "Mary Smith"}}'),
)


def demands_tool(request: ChatRequest) -> bool:
    """Whether the request insists on a tool call, which is what must be emulated."""
    choice = request.body.get("tool_choice")
    return bool(request.body.get("tools")) and (choice == "required" or isinstance(choice, dict))


def without_tools(request: ChatRequest) -> ChatRequest:
    """The request with everything about tools left out but what was said."""
    return request.with_fields(**dict.fromkeys(_TOOL_FIELDS))


def wrap(request: ChatRequest) -> ChatRequest:
    """A request for text of the envelope's schema instead of a tool call. Raises ConfigError for an unknown tool."""
    functions = _demanded(request)
    limit = request.body.get("max_completion_tokens") or request.body.get("max_tokens") or MAX_TOKENS
    schema = {"name": "call", "strict": True, "schema": _schema(functions)}
    return without_tools(request).with_fields(
        messages=_instructed(request.messages, functions),
        response_format={"type": "json_schema", "json_schema": schema},
        max_tokens=min(limit, MAX_TOKENS),
        max_completion_tokens=None,
        temperature=request.body.get("temperature", 0),
        stream=None,
        stream_options=None,
    )


def unwrap(completion: Completion, request: ChatRequest) -> Completion:
    """The answer to a wrapped request, as the tool call that it stands for. Raises BackendError when it is none."""
    names = {function["name"] for function in _demanded(request)}
    try:
        call = msgspec.json.decode(completion.text.encode())
        name, arguments = call["name"], call["arguments"]
    except (msgspec.DecodeError, UnicodeError, TypeError, KeyError):
        name, arguments = None, None
    if name not in names or not isinstance(arguments, dict):
        raise BackendError(
            f"the model {completion.model} did not write the tool call that was asked for",
            hint="try again, or use a larger model",
            retryable=True,
        )
    function = {"name": name, "arguments": msgspec.json.encode(arguments).decode()}
    call = {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    return Completion({**completion.body, "choices": [choice]}, completion.backend, completion.weights)


def plain(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages of tools in the words of a conversation, for a chat template that knows only user and assistant.

    What was called becomes something the assistant said, what it returned something the user says. Raises ConfigError
    for messages that are none.
    """
    names: dict[str, str] = {}
    returned: list[str] = []
    result: list[dict[str, Any]] = []
    question = ""

    def say_returned() -> None:
        if returned:
            result.append({"role": "user", "content": "\n".join([*returned, f"Now answer: {question}"])})
            returned.clear()

    try:
        for message in messages:
            if message["role"] == "tool":
                name = names.get(message.get("tool_call_id", ""), "The function")
                returned.append(f"{name} returned: {_text(message.get('content'))}")
                continue
            say_returned()
            if message["role"] == "user":
                question = _text(message.get("content"))
            calls = [(call["id"], call["function"]) for call in message.get("tool_calls") or ()]
            names |= {call: function["name"] for call, function in calls}
            said = [f"I called {function['name']} with {function['arguments']}." for _, function in calls]
            result.append({"role": "assistant", "content": "\n".join(said)} if said else dict(message))
    except (KeyError, TypeError, AttributeError):
        raise ConfigError("`messages` are not what OpenAI's Chat Completions define") from None
    say_returned()
    return result


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part, dict) and "text" in part)
    return content or ""


def _demanded(request: ChatRequest) -> list[dict[str, Any]]:
    """The functions that may be called: all, or the one that `tool_choice` names."""
    try:
        functions = [tool["function"] for tool in request.body["tools"]]
        choice = request.body.get("tool_choice")
        if isinstance(choice, dict):
            functions = [f for f in functions if f["name"] == choice["function"]["name"]]
        named = [function["name"] for function in functions]
    except (KeyError, TypeError):
        raise ConfigError("`tools` or `tool_choice` is not what OpenAI's Chat Completions define") from None
    if not named:
        raise ConfigError("`tool_choice` names a tool that `tools` does not hold")
    return functions


def _instructed(messages: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with the tools in its system message, and examples before its first turn."""
    listed = "\n".join(msgspec.json.encode(function).decode() for function in functions)
    instruction = _INSTRUCTION.format(tools=listed)
    rest = [dict(message) for message in messages]
    if rest and rest[0].get("role") in ("system", "developer"):
        instruction = f"{_text(rest.pop(0).get('content'))}\n\n{instruction}"
    examples = [
        {"role": role, "content": content}
        for pair in _EXAMPLES
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    return [{"role": "system", "content": instruction}, *examples, *rest]


def _schema(functions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One alternative a tool, with their definitions moved to the root under names that cannot meet."""
    definitions: dict[str, Any] = {}
    alternatives = []
    for number, function in enumerate(functions):
        parameters = dict(function.get("parameters") or {"type": "object", "properties": {}})
        prefix = f"t{number}."
        for key in ("$defs", "definitions"):
            for name, schema in (parameters.pop(key, None) or {}).items():
                definitions[prefix + name] = _bounded(schema, prefix)
        properties = {"name": {"const": function["name"]}, "arguments": _bounded(parameters, prefix)}
        alternatives.append(
            {
                "type": "object",
                "properties": properties,
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema = alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}
    return {**schema, "$defs": definitions} if definitions else schema


# Of what maps names to schemas, the names are somebody's own and no keywords.
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_VERBATIM = ("const", "enum", "default", "examples", "required")


def _bounded(schema: Any, prefix: str) -> Any:
    """The schema with an end to its strings and lists, objects closed, and references moved to `prefix`."""
    if isinstance(schema, list):
        return [_bounded(item, prefix) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _VERBATIM:
            result[key] = value
        elif key in _MAPS and isinstance(value, dict):
            result[key] = {name: _bounded(item, prefix) for name, item in value.items()}
        elif key == "$ref" and isinstance(value, str):
            result[key] = f"#/$defs/{prefix}{value.rpartition('/')[2]}"
        else:
            result[key] = _bounded(value, prefix)
    kind = result.get("type")
    if kind == "string" and not result.keys() & {"maxLength", "enum", "const", "format", "pattern"}:
        result["maxLength"] = MAX_STRING_CHARS
    if kind == "array":
        result.setdefault("maxItems", MAX_ITEMS)
    if kind == "object" and "properties" in result:
        result.setdefault("additionalProperties", False)
    return result
