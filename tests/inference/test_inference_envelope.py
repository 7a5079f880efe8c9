"""The schema envelope: what the model is asked to write instead of a tool call."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibox.chat import ChatRequest
from aibox.errors import ConfigError
from aibox.inference import envelope

OWED = {
    "name": "owed",
    "description": "Open invoices",
    "parameters": {
        "type": "object",
        "properties": {
            "customer": {"type": "string"},
            "years": {"type": "array", "items": {"type": "integer"}},
            "address": {"$ref": "#/$defs/Address"},
            "kind": {"type": "string", "enum": ["a"]},
            "type": {"type": "string", "maxLength": 3},
        },
        "required": ["customer"],
        "$defs": {"Address": {"type": "object", "properties": {"city": {"type": "string"}}}},
    },
}
OTHER = {"name": "other", "parameters": {"type": "object", "properties": {"x": {"$ref": "#/$defs/Address"}},
                                         "$defs": {"Address": {"type": "integer"}}}}  # fmt: skip


def wrapped(*functions: dict[str, Any], choice: Any = "required", **fields: Any) -> dict[str, Any]:
    tools = [{"type": "function", "function": function} for function in functions]
    messages = fields.pop("messages", [{"role": "system", "content": "Books."}, {"role": "user", "content": "Acme?"}])
    return envelope.wrap(ChatRequest({"messages": messages, "tools": tools, "tool_choice": choice, **fields})).body


def schema_of(body: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = body["response_format"]["json_schema"]["schema"]
    return schema


def test_everything_open_gets_an_end() -> None:
    """Strings, lists and objects without a bound get one; bounds that were there stay."""
    arguments = schema_of(wrapped(OWED))["properties"]["arguments"]
    properties = arguments["properties"]
    assert properties["customer"]["maxLength"] == envelope.MAX_STRING_CHARS
    assert properties["years"]["maxItems"] == envelope.MAX_ITEMS
    assert properties["type"]["maxLength"] == 3
    assert "maxLength" not in properties["kind"]
    assert arguments["additionalProperties"] is False
    assert arguments["required"] == ["customer"]


def test_definitions_of_two_tools_do_not_meet() -> None:
    """References lead to their own tool's definition, at the root of the envelope."""
    schema = schema_of(wrapped(OWED, OTHER))
    first, second = (alternative["properties"]["arguments"] for alternative in schema["anyOf"])
    for arguments, name, kind in ((first, "address", "object"), (second, "x", "integer")):
        reference = arguments["properties"][name]["$ref"]
        assert schema["$defs"][reference.removeprefix("#/$defs/")]["type"] == kind


def test_a_named_tool_is_the_only_one() -> None:
    """The model cannot choose another than the one that was asked for."""
    choice = {"type": "function", "function": {"name": "other"}}
    body = wrapped(OWED, OTHER, choice=choice)
    assert schema_of(body)["properties"]["name"] == {"const": "other"}
    assert "owed" not in body["messages"][0]["content"]


@pytest.mark.parametrize(("asked", "sent"), [(None, 512), (40, 40), (4096, 512)])
def test_the_call_has_an_end(asked: int | None, sent: int) -> None:
    """A caller's smaller bound holds."""
    assert wrapped(OWED, **({} if asked is None else {"max_tokens": asked}))["max_tokens"] == sent


def test_the_conversation_stays_and_the_tools_are_in_its_system_message() -> None:
    """One system message, examples after it, then what was said, in order."""
    messages = wrapped(OWED)["messages"]
    assert messages[0]["role"] == "system"
    assert messages[0]["content"].startswith("Books.\n\n")
    assert '"owed"' in messages[0]["content"]
    assert messages[-1] == {"role": "user", "content": "Acme?"}
    assert [m["role"] for m in messages[1:-1]] == ["user", "assistant"] * 3
    assert wrapped(OWED, messages=[{"role": "user", "content": "x"}])["messages"][0]["role"] == "system"


@pytest.mark.parametrize(
    ("tools", "choice"),
    [([{"type": "function"}], "required"), (["x"], "required"), ([], {"type": "function", "function": {"name": "x"}}),
     ([{"type": "function", "function": OWED}], {"type": "function", "function": {"name": "x"}}), ([], {"x": 1})],
)  # fmt: skip
def test_tools_that_are_none_are_refused(tools: list[Any], choice: Any) -> None:
    """A mistake in the request is said as one."""
    with pytest.raises(ConfigError, match="tool"):
        envelope.wrap(ChatRequest({"messages": [], "tools": tools, "tool_choice": choice}))


def test_tool_messages_become_words() -> None:
    """A template that knows user and assistant only still shows what was called and what came of it."""
    calls = [
        {"id": i, "type": "function", "function": {"name": n, "arguments": "{}"}} for i, n in (("1", "a"), ("2", "b"))
    ]
    plain = envelope.plain(
        [
            {"role": "user", "content": "What?"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "1", "content": "one"},
            {"role": "tool", "tool_call_id": "2", "content": "two"},
        ]
    )
    assert [m["role"] for m in plain] == ["user", "assistant", "user"]
    assert plain[1]["content"] == "I called a with {}.\nI called b with {}."
    assert plain[2]["content"] == "a returned: one\nb returned: two\nNow answer: What?"


ROLES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=5)}
)


@given(st.lists(ROLES))
def test_a_conversation_without_tools_stays_as_it_is(messages: list[dict[str, Any]]) -> None:
    """Nothing is put into words that is in words already."""
    assert envelope.plain(messages) == messages
