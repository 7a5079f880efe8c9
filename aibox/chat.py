"""One model call in the field's own JSON (OpenAI Chat Completions), with what aibox knows about it beside it.

The bodies are passed through: fields that aibox does not know are kept as they came.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from aibox.errors import ConfigError
from aibox.types import Label

MOST_TOKENS = 10**9
"""Of one answer that are believed: a count is a model server's word, and sums of it must fit where they are kept."""
MOST_USD = 1e6


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one or more calls. `cached_tokens` are part of the input, `reasoning_tokens` part of the output.

    `cost_usd` is None where no price is known; the sum of a known and an unknown one is what is known.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = None

    @classmethod
    def read(cls, body: Mapping[str, Any] | None) -> Usage:
        """From the `usage` object of an answer, also of `/responses`; missing or null fields count as 0.

        Where there is a total alone (of a rerank), what is no output of it is input. `cost` is OpenRouter's field, in
        USD; a Router fills it in where it knows the price.
        """
        body = body if isinstance(body, dict) else {}
        incoming = body.get("prompt_tokens_details") or body.get("input_tokens_details")
        outgoing = body.get("completion_tokens_details") or body.get("output_tokens_details")
        cost = body.get("cost")
        output = _count(body.get("completion_tokens", body.get("output_tokens")))
        asked = _count(body.get("prompt_tokens", body.get("input_tokens")))
        return cls(
            input_tokens=asked or max(0, _count(body.get("total_tokens")) - output),
            output_tokens=output,
            cached_tokens=_count(incoming.get("cached_tokens")) if isinstance(incoming, dict) else 0,
            reasoning_tokens=_count(outgoing.get("reasoning_tokens")) if isinstance(outgoing, dict) else 0,
            cost_usd=float(min(cost, MOST_USD)) if isinstance(cost, int | float) and 0 <= cost < math.inf else None,
        )

    def __add__(self, other: Usage) -> Usage:
        costs = [cost for cost in (self.cost_usd, other.cost_usd) if cost is not None]
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            sum(costs) if costs else None,
        )


def _count(value: object) -> int:
    """A server's count, also where it writes 12.0; what is no count is 0, for it must never lower what was spent."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return min(value, MOST_TOKENS) if type(value) is int and value > 0 else 0


Capability = Literal[
    "chat", "completions", "responses", "tools", "vision", "audio", "embeddings", "rerank", "reasoning"
]


@dataclass(frozen=True, slots=True)
class Price:
    """USD for a million tokens. `cached_usd` is the price of input that the server had cached; None is the full one."""

    input_usd: float = 0.0
    output_usd: float = 0.0
    cached_usd: float | None = None

    def cost_usd(self, usage: Usage) -> float:
        cached = min(usage.cached_tokens, usage.input_tokens)
        cached_usd = self.input_usd if self.cached_usd is None else self.cached_usd
        fresh_usd = (usage.input_tokens - cached) * self.input_usd
        return (fresh_usd + cached * cached_usd + usage.output_tokens * self.output_usd) / 1e6


@dataclass(frozen=True, slots=True)
class Weights:
    """Which weights answer, and how well that is known.

    `verified`: aibox loaded the file and hashed it against a manifest or a known digest; `declared`: the server or the
    operator said so; `unknown`: nobody did. Digests are SHA-256 in hex, empty when unknown.
    """

    known: Literal["verified", "declared", "unknown"] = "unknown"
    sha256: str = ""
    template_sha256: str = ""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that a backend offers. `tools` is False when the server does not enforce `tool_choice` by itself.

    `demo` marks a model that is there to try aibox out and is too small to be relied upon. `capabilities` None: nobody
    has said what it can do, and nothing is refused.
    """

    id: str
    backend: str
    external: bool = False
    tools: bool = True
    context_tokens: int | None = None
    weights: Weights = field(default_factory=Weights)
    demo: bool = False
    capabilities: frozenset[Capability] | None = None
    price: Price | None = None


@dataclass(frozen=True, slots=True)
class Agreed:
    """A person's yes to sending text up to a label to one external model, under one policy. `approval` names it."""

    approval: str
    model: str
    label: Label
    policy: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A Chat Completions request: `body` as it goes over the wire, and the label of all the text in it."""

    body: dict[str, Any]
    label: Label = field(default_factory=Label)
    agreed: tuple[Agreed, ...] = field(default=(), repr=False, compare=False)
    """What people have agreed to. No part of the body; the door compares it with what it is about to do."""
    _data: bytes = field(default=b"", init=False, repr=False, compare=False)
    """The body as it was encoded, once it was."""

    @classmethod
    def read(cls, data: bytes, label: Label | None = None) -> ChatRequest:
        """From JSON. What is sent on is what was read of it, and never the bytes. Raises ConfigError."""
        # A name that stands twice in an object is one thing to us, and may be the other to whoever reads it next.
        try:
            body = msgspec.json.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"the body is not JSON, or no object: {error}") from None
        if not isinstance(body, dict):
            raise ConfigError("the body is not JSON, or no object")
        return cls(body, label or Label())

    def encoded(self) -> bytes:
        """The bytes of the body as they go over the wire. Raises ConfigError for what JSON cannot say."""
        if self._data:
            # Recorded and then sent: what is on record is what was sent.
            return self._data
        try:
            data = msgspec.json.encode(self.body)
        except UnicodeEncodeError:
            raise ConfigError("the request holds text that is not valid Unicode", hint="send UTF-8 text") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"the request cannot be written as JSON: {error}") from None
        object.__setattr__(self, "_data", data)
        return data

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.body.get("messages", [])
        return messages

    def with_body(self, body: dict[str, Any]) -> ChatRequest:
        """The same request with another body."""
        # For every call, several times: `replace` costs five times as much.
        return ChatRequest(body, self.label, self.agreed)

    def with_fields(self, **fields: Any) -> ChatRequest:
        """The same request with some fields of the body replaced; a field given as None is removed."""
        body = {**self.body, **fields}
        return self.with_body({k: v for k, v in body.items() if not (k in fields and v is None)})


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's wish to call a tool; `arguments` is the JSON text that it wrote, valid or not."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer: the server's `body`, the name of the backend that gave it, and what is known of its weights."""

    body: dict[str, Any]
    backend: str = ""
    weights: Weights = field(default_factory=Weights)
    came: tuple[dict[str, Any], bytes] | None = field(default=None, repr=False, compare=False)
    """The body as the server sent it, and its bytes."""

    def encoded(self) -> bytes:
        """The bytes of the body: those that the server sent, while nobody has replaced it."""
        return _encoded(self.body, self.came)

    @property
    def message(self) -> dict[str, Any]:
        choices = self.body.get("choices") or [{}]
        message: dict[str, Any] = choices[0].get("message") or {}
        return message

    @property
    def text(self) -> str:
        return plain(self.message.get("content"))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(
            ToolCall(str(call.get("id") or ""), str(called.get("name") or ""), json_text(called.get("arguments")))
            for call in self.message.get("tool_calls") or ()
            for called in (call.get("function") or {},)
        )

    @property
    def finish_reason(self) -> str:
        choices = self.body.get("choices") or [{}]
        return str(choices[0].get("finish_reason") or "")

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def usage(self) -> Usage:
        return Usage.read(self.body.get("usage"))


class Chunk(msgspec.Struct, frozen=True, eq=False):
    """One `chat.completion.chunk` of a stream, in the order in which the server sent them."""

    # No dataclass: one that is frozen takes four times as long to be made, for each piece of each stream.
    body: dict[str, Any]
    backend: str = ""
    weights: Weights = Weights()
    came: tuple[dict[str, Any], bytes] | None = None
    """The body as the server sent it, and its bytes. No part of what it is compared by."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Chunk):
            return NotImplemented
        return (self.body, self.backend, self.weights) == (other.body, other.backend, other.weights)

    __hash__ = None  # type: ignore[assignment]  # as what it holds

    def __repr__(self) -> str:
        return f"Chunk(body={self.body!r}, backend={self.backend!r}, weights={self.weights!r})"

    def encoded(self) -> bytes:
        """The bytes of the body: those that the server sent, while nobody has replaced it."""
        return _encoded(self.body, self.came)

    @property
    def delta(self) -> dict[str, Any]:
        choices = self.body.get("choices") or [{}]
        delta: dict[str, Any] = choices[0].get("delta") or {}
        return delta

    @property
    def text(self) -> str:
        return plain(self.delta.get("content"))

    @property
    def finish_reason(self) -> str:
        choices = self.body.get("choices") or [{}]
        return str(choices[0].get("finish_reason") or "")

    @property
    def usage(self) -> Usage | None:
        """Only the last chunk carries it, and only when `stream_options.include_usage` was asked for."""
        usage = self.body.get("usage")
        return Usage.read(usage) if usage else None


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a part can work now, and in words why not. A model server also says how busy it is, where it knows.

    `waiting` requests have not begun; `cache_used` is the share, 0 to 1, of the memory for running ones.
    """

    ok: bool
    detail: str = ""
    waiting: int = 0
    cache_used: float = 0.0


def plain(content: object) -> str:
    """The text of an answer; some servers write it in parts, as requests may."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def json_text(arguments: object) -> str:
    """What a tool is called with; some servers write the object itself, and not its text."""
    if arguments is None or isinstance(arguments, str):
        return arguments or ""
    return msgspec.json.encode(arguments).decode()


_SAYS_NOTHING: tuple[dict[str, Any], ...] = ({},)


def _encoded(body: dict[str, Any], came: tuple[dict[str, Any], bytes] | None) -> bytes:
    return came[1] if came is not None and came[0] is body else msgspec.json.encode(body)


def assemble(chunks: Iterable[Chunk]) -> Completion:
    """The whole answer that a finished stream amounts to. Raises ValueError for a stream without a chunk."""
    assembly = Assembly()
    for chunk in chunks:
        assembly.add(chunk)
    return assembly.whole()


class Calls:
    """Tool calls while they come: a piece has the index of its call, id and name come once, the arguments in pieces.

    Those are joined once: with each of them the string would be copied, and some hundred thousand fit into a stream.
    """

    def __init__(self) -> None:
        self._said: dict[int, tuple[list[str], list[str], list[str]]] = {}

    def add(self, part: Mapping[str, Any]) -> None:
        ids, names, arguments = self._said.setdefault(part.get("index", len(self._said)), ([], [], []))
        function = part.get("function") or {}
        ids += [str(part["id"])] if part.get("id") else []
        names.append(str(function.get("name") or ""))
        arguments.append(json_text(function.get("arguments")))

    def whole(self) -> dict[int, dict[str, Any]]:
        """Each call by its index, as in a whole answer."""
        return {
            index: {
                "id": ids[-1] if ids else "",
                "type": "function",
                "function": {"name": "".join(names), "arguments": "".join(arguments)},
            }
            for index, (ids, names, arguments) in sorted(self._said.items())
        }


class Assembly:
    """As `assemble`, while the chunks come: of each only its words are kept."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._calls = Calls()
        self._last: Chunk | None = None
        self._finish_reason, self._usage = "", None

    def add(self, chunk: Chunk) -> None:
        self._last, body = chunk, chunk.body
        self._usage = body.get("usage") or self._usage
        choice = (body.get("choices") or _SAYS_NOTHING)[0]
        delta = choice.get("delta")
        if delta:
            self._content.append(plain(delta.get("content")))
            for part in delta.get("tool_calls") or ():
                self._calls.add(part)
        self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def whole(self) -> Completion:
        """Raises ValueError where there was no chunk."""
        last, calls = self._last, self._calls.whole()
        if last is None:
            raise ValueError("a stream without a chunk is not an answer")
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._content) or None}
        if calls:
            message["tool_calls"] = [*calls.values()]
        body: dict[str, Any] = {key: last.body[key] for key in ("id", "created", "model") if key in last.body}
        body |= {"object": "chat.completion", "usage": self._usage}
        body["choices"] = [{"index": 0, "message": message, "finish_reason": self._finish_reason or "stop"}]
        return Completion(body, last.backend, last.weights)
