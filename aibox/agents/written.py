"""What a model writes, in the events of a stream: each text through a filter of its own, the rest as it came.

An event whose text is held back waits for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aibox.agents import bodies
from aibox.agents.known import ARGUMENTS, SAID, known
from aibox.errors import BackendError
from aibox.inference.capabilities import Api
from aibox.types import Where


class Filter(Protocol):
    """Takes a text piece by piece; returns what may be shown by now. An OutputFilter is one."""

    @property
    def text(self) -> str: ...

    async def push(self, text: str) -> str: ...

    async def finish(self) -> str: ...


Make = Callable[[], Filter]
Arguments = Callable[[str], Awaitable[str]]
"""What becomes of the arguments of a call, once there is all of them: half of a JSON text cannot be judged."""
Body = dict[str, Any]


class Choices:
    """A stream of Chat Completions or of Completions."""

    def __init__(self, api: Api, make: Make, arguments: Arguments, tools: frozenset[str]) -> None:
        self._api = api
        self._tools = tools
        self._make = make
        self._arguments = arguments
        self._calls: dict[tuple[int, int], str] = {}
        self._kinds: dict[tuple[int, int], str] = {}
        self._names: dict[tuple[int, int], str] = {}
        self._ids: dict[tuple[int, int], Any] = {}
        self._filters: dict[tuple[int, str], Filter] = {}
        self._open: set[tuple[int, str]] = set()
        self._last: Body = {}

    async def take(self, body: Body) -> list[Body]:
        """The events to show for one that came, in order."""
        choices = body.get("choices")
        if not choices:
            return [body]
        self._last = body
        shown = [made for choice in choices if (made := await self._choice(choice)) is not None]
        return [{**body, "choices": shown}] if shown else []

    async def rest(self) -> list[Body]:
        """What was still held back, when a stream ends without a reason."""
        shown = []
        for index in sorted({index for index, _ in (*self._open, *self._calls)}):
            said: Body = await self._finish(index)
            said |= await self._called(index)
            if said:
                frame = {"index": index, "finish_reason": None}
                shown.append({**frame, "delta": said} if self._api == "chat" else {**frame, **said})
        frame = {key: value for key, value in self._last.items() if key not in ("choices", "usage")}
        return [{**frame, "choices": shown}] if shown else []

    async def _choice(self, choice: Body) -> Body | None:
        """None when it says nothing but what is held back."""
        told = choice.get("delta") or {} if self._api == "chat" else choice
        index = choice.get("index", 0)
        said = {key: told[key] for key in SAID[self._api] if isinstance(told.get(key), str) and told[key]}
        made: Body = {}
        for key, text in said.items():
            # What a model writes before its answer has ended when the answer begins.
            made |= await self._finish(index, before=key)
            made[key] = made.get(key, "") + await self._filter(index, key).push(text)
        if choice.get("finish_reason"):
            for key, text in (await self._finish(index)).items():
                made[key] = made.get(key, "") + text
        if self._api == "chat":
            made |= await self._calling(index, told, last=bool(choice.get("finish_reason")))
            said |= {key: told[key] for key in ("tool_calls", "function_call") if told.get(key)}
        if made == said:
            return choice if said else bodies.without_tokens(choice)
        others = told.keys() - said.keys() - ({"role"} if self._api == "chat" else _FRAME)
        if not any(made.values()) and not choice.get("finish_reason") and not any(told[key] for key in others):
            return None
        changed = {**choice, "delta": {**told, **made}} if self._api == "chat" else {**choice, **made}
        return bodies.without_tokens(changed)

    async def _calling(self, index: int, told: Body, *, last: bool) -> Body:
        """The calls in a piece, without their arguments, which follow in the last one."""
        made: Body = {}
        if isinstance(one := told.get("function_call"), dict):
            self._calls[index, _OLD] = self._calls.get((index, _OLD), "") + (one.get("arguments") or "")
            one = self._named((index, _OLD), one)
            rest = await bodies.beside(one, ("arguments",), self._beside, self._tools)
            made["function_call"] = {**one, **rest, "arguments": ""}
        if isinstance(calls := told.get("tool_calls"), list):
            made["tool_calls"] = [begun for call in calls if (begun := await self._begun(index, call)) is not None]
        if last:
            for key, rest in (await self._called(index)).items():
                made[key] = [*made.get(key, ()), *rest] if key == "tool_calls" else {**made.get(key, {}), **rest}
        return made

    async def _beside(self, text: str, where: Where) -> str:  # noqa: ARG002 - all of it is of a call
        return await self._arguments(text)

    async def _begun(self, index: int, call: Body) -> Body | None:
        """A piece of a call without what it is called with; None for one that is nothing else."""
        kind = "custom" if call.get("custom") else "function"
        field, number, told = ARGUMENTS[kind], call.get("index", 0), call.get(kind) or {}
        self._kinds[index, number] = kind
        self._calls[index, number] = self._calls.get((index, number), "") + (told.get(field) or "")
        if call.get("id") and call["id"] != self._ids.get((index, number)):
            self._ids[index, number] = call["id"]
            self._names.pop((index, number), None)
        told = self._named((index, number), told)
        if not (call.get("id") or told.get("name")):
            return None
        call = {**call, **await bodies.beside(call, ("function", "custom"), self._beside, self._tools)}
        if not told:
            return call
        return {**call, kind: {**told, **await bodies.beside(told, (field,), self._beside, self._tools), field: ""}}

    def _named(self, key: tuple[int, int], told: Body) -> Body:
        """The call, if its name is whole, said again, or in pieces that begin the name of a tool. Raises BackendError.

        Of another text in pieces none says anything to a check, and without them the call is not what the model wrote.
        """
        before, name = self._names.get(key, ""), told.get("name")
        if not name:
            return told
        if not isinstance(name, str):
            raise BackendError("the model's server named a call with what is no text", retryable=True)
        whole = f"{before}{name}"
        if not before or any(tool.startswith(whole) for tool in self._tools):
            self._names[key] = whole
        elif name != before:
            raise BackendError("the model's server wrote a name in pieces that is of no tool", retryable=True)
        return told

    async def _called(self, index: int) -> Body:
        """The arguments of a choice's calls, whole."""
        keys = [key for key in sorted(self._calls) if key[0] == index]
        texts = {number: self._calls.pop((choice, number)) for choice, number in keys}
        made: Body = {}
        if old := texts.pop(_OLD, ""):
            made["function_call"] = {"arguments": await self._arguments(old)}
        calls = []
        for number, text in texts.items():
            kind = self._kinds.pop((index, number))
            if text:
                calls.append({"index": number, kind: {ARGUMENTS[kind]: await self._arguments(text)}})
        return {**made, "tool_calls": calls} if calls else made

    def _filter(self, index: int, key: str) -> Filter:
        self._open.add((index, key))
        if (index, key) not in self._filters:
            self._filters[index, key] = self._make()
        return self._filters[index, key]

    async def _finish(self, index: int, *, before: str = "") -> Body:
        """The rest of what a choice says, by field; `before` a field: of those that come before it."""
        keys = SAID[self._api]
        made = {}
        for key in keys[: keys.index(before)] if before else keys:
            if (index, key) in self._open:
                self._open.discard((index, key))
                if text := await self._filters[index, key].finish():
                    made[key] = text
        return made


_OLD = -1
"""The number of a call in the form that came before `tool_calls`."""
_FRAME = {"index", "finish_reason", "logprobs", "stop_reason"}

# The texts of the Responses API: the field of the whole text, and the field that counts the parts.
_TEXTS = {
    "response.output_text": ("text", "content_index"),
    "response.refusal": ("refusal", "content_index"),
    "response.reasoning_text": ("text", "content_index"),
    "response.reasoning_summary_text": ("text", "summary_index"),
}
_PLACE = {"type", "sequence_number", "item_id", "output_index", "content_index", "summary_index"}
_ENDS = ("completed", "incomplete", "failed")
_CALLS = {"response.function_call_arguments": "arguments", "response.custom_tool_call_input": "input"}


class Response:
    """A stream of the Responses API: the same text comes in pieces, whole, in its part, its item and the response."""

    def __init__(self, make: Make, arguments: Arguments, tools: frozenset[str]) -> None:
        self._make = make
        self._arguments = arguments
        self._tools = tools
        self._called: dict[str, str] = {}
        self._filters: dict[tuple[int, str, int], Filter] = {}
        self._pieces: dict[tuple[int, str, int], Body] = {}
        self._whole: dict[str, str] = {}
        self._number = 0

    async def take(self, body: Body) -> list[Body]:
        """The events to show for one that came, numbered anew."""
        shown = []
        for event in await self._take(body):
            if event.get("sequence_number", self._number) != self._number:
                event = {**event, "sequence_number": self._number}  # noqa: PLW2901 - the same event, in its place
            self._number += 1
            shown.append(event)
        return shown

    async def rest(self) -> list[Body]:
        """A stream of this API has an event that ends it."""
        return []

    async def _take(self, body: Body) -> list[Body]:
        kind, _, step = str(body.get("type", "")).rpartition(".")
        if kind in _TEXTS and step in ("delta", "done"):
            return await self._text(kind, step, body)
        for name in ("part", "item", "response"):
            if name in body:
                # What stands beside it is nothing that anybody looks at.
                body = _only(body, name)
                break
        if "part" in body:
            return [{**body, "part": await bodies.output_part(body["part"], self._shown)}]
        if "item" in body:
            item = await bodies.output_item(body["item"], self._shown, self._tools)
            return [] if item is None else [{**body, "item": item}]
        if isinstance(body.get("response"), dict):
            late = await self._late() if kind == "response" and step in _ENDS else []
            return [*late, {**body, "response": await bodies.output(body["response"], self._shown, self._tools)}]
        if kind in _CALLS:
            return await self._call(kind, step, body)
        if body.get("type") == "error":
            return [body]
        # An event that is not known could say what no check has seen.
        return [body] if body.keys() <= _PLACE else []

    async def _text(self, kind: str, step: str, body: Body) -> list[Body]:
        field, counts = _TEXTS[kind]
        key = (body.get("output_index", 0), kind, body.get(counts, 0))
        named = "delta" if step == "delta" else field
        body = _only(body, named, "logprobs", "obfuscation")
        if not isinstance(text := body.get(named), str):
            return []
        fresh = key not in self._filters
        through = self._filters[key] if not fresh else self._filters.setdefault(key, self._make())
        if step == "delta":
            self._pieces[key] = body
            shown = await through.push(text)
            if shown == text:
                return [body]
            return [bodies.without_tokens({**body, "delta": shown})] if shown else []
        self._pieces.pop(key, None)
        rest = (await through.push(text) if fresh else "") + await through.finish()
        self._whole[text] = through.text
        done = body if through.text == text else bodies.without_tokens({**body, field: through.text})
        if not rest or fresh:
            return [done]
        return [_piece(body, kind, rest), done]

    async def _call(self, kind: str, step: str, body: Body) -> list[Body]:
        """Arguments are shown when they are whole: a piece that is all of them, then the event that ends them."""
        if step != "done" or not isinstance(text := body.get(_CALLS[kind]), str):
            return []
        body = _only(body, _CALLS[kind], "name")
        if body.get("name"):
            body |= await bodies.beside({"name": body["name"]}, (), self._shown, self._tools)
        shown = await self._shown(text, "tool_arguments")
        frame = {name: value for name, value in body.items() if name not in (_CALLS[kind], "name")}
        return [{**frame, "type": f"{kind}.delta", "delta": shown}, {**body, _CALLS[kind]: shown}]

    async def _late(self) -> list[Body]:
        """What is held back of texts that the server never said the end of."""
        pieces, self._pieces = self._pieces, {}
        return [
            _piece(body, key[1], rest) for key, body in pieces.items() if (rest := await self._filters[key].finish())
        ]

    async def _shown(self, text: str, where: Where) -> str:
        """What was shown of a text that has been written by now; one that never came in pieces is looked at now."""
        if where == "tool_arguments":
            if text not in self._called:
                self._called[text] = await self._arguments(text)
            return self._called[text]
        if text not in self._whole:
            through = self._make()
            shown = await through.push(text) + await through.finish()
            self._whole[text] = shown
        return self._whole[text]


def _only(body: Body, *fields: str) -> Body:
    """An event with these fields and those of its place."""
    return known(body, _PLACE.union(fields))


def _piece(body: Body, kind: str, text: str) -> Body:
    made = {name: value for name, value in body.items() if name not in ("text", "refusal", "logprobs")}
    return {**made, "type": f"{kind}.delta", "delta": text, **({"logprobs": []} if "logprobs" in body else {})}
