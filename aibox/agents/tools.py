"""Typed tools: any function, with what policy and evidence need to know of it beside it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, ParamSpec, TypedDict, TypeVar, Unpack, overload

import anyio
from pydantic import BaseModel
from pydantic_core import to_json

from aibox.agents._sdk import Signature, signature_of
from aibox.agents.secret import Secret, scrub
from aibox.errors import AIBoxError, ConfigError
from aibox.protocols import Tool
from aibox.types import Label, Scope

P = ParamSpec("P")
R = TypeVar("R")


class ToolOptions(TypedDict, total=False):
    """What `@aibox.tool` takes; see FunctionTool."""

    label: Label | str | None
    approve: bool
    side_effects: bool
    timeout_s: float
    private: bool
    untrusted: bool
    sends: bool
    idempotency_key: str | None
    concurrency: int | None


class FunctionTool:
    """A Python function that an agent can call: the schema comes from its signature, the words from its docstring.

    `label` marks what it returns; `approve` asks a person before each call; `side_effects` makes the record durable
    before it runs and keeps a call from running twice; `timeout_s` bounds it. `private`, `untrusted` and `sends` say
    what it adds to the lethal three: data that nobody else should see, content that a stranger wrote, a way out for
    text. What `sends` may carry is bounded by the policy's door. `idempotency_key` names a parameter: a second call
    with the same value returns what the first one did. `concurrency` bounds how many calls run at once.

    Calling the object calls the function, unchanged.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        label: Label | str | None = None,
        approve: bool = False,
        side_effects: bool = False,
        timeout_s: float = 60.0,
        private: bool = False,
        untrusted: bool = False,
        sends: bool = False,
        idempotency_key: str | None = None,
        concurrency: int | None = None,
    ) -> None:
        self.function = function
        self.name = function.__name__
        self.label = None if label is None else Label.of(label)
        self.approve = approve
        self.side_effects = side_effects or sends or idempotency_key is not None
        self.timeout_s = timeout_s
        self.private = private
        self.untrusted = untrusted
        self.sends = sends
        self.idempotency_key = idempotency_key
        parameters = inspect.signature(function).parameters
        if idempotency_key is not None and idempotency_key not in parameters:
            raise ConfigError(f"{self.name} has no parameter {idempotency_key!r} to be its idempotency key")
        self._secrets = {n: p.default for n, p in parameters.items() if isinstance(p.default, Secret)}
        self._concurrency = concurrency
        # A semaphore belongs to one event loop; `run_sync` has another than the caller.
        self._gates: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )
        functools.update_wrapper(self, function)

    @functools.cached_property
    def _signature(self) -> Signature:
        return signature_of(without(self.function, self._secrets) if self._secrets else self.function)

    @property
    def description(self) -> str:
        return self._signature.description

    @property
    def schema(self) -> Mapping[str, Any]:
        return self._signature.schema

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    async def call(self, arguments: Mapping[str, Any], *, scope: Scope) -> str:
        """Validate, then run; a synchronous function runs in a thread. Raises what the function raises."""
        args, kwargs = self._signature.bind(arguments)
        held = {name: secret.resolve(scope=scope) for name, secret in self._secrets.items()}
        async with self._gate():
            try:
                value = await self._run(args, {**kwargs, **held})
            except AIBoxError:
                raise
            except Exception as error:
                if held and (clean := scrub(str(error), held)) != str(error):
                    # A library that quotes the request it failed on would quote the key with it.
                    raise RuntimeError(f"{type(error).__name__}: {clean}") from None
                raise
        return scrub(as_text(value), held)

    async def _run(self, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if inspect.iscoroutinefunction(self.function):
            return await self.function(*args, **kwargs)
        work = functools.partial(self.function, *args, **kwargs)
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)

    @contextlib.asynccontextmanager
    async def _gate(self) -> AsyncIterator[None]:
        if self._concurrency is None:
            yield
            return
        loop = asyncio.get_running_loop()
        async with self._gates.setdefault(loop, asyncio.Semaphore(self._concurrency)):
            yield

    def __repr__(self) -> str:
        return f"<tool {self.name}{inspect.signature(self.function)}>"


def without(function: Callable[..., Any], names: Mapping[str, Any]) -> Callable[..., Any]:
    """The function as a model may know it: without these parameters, in signature and annotations."""
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.name not in names]

    def known(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    functools.update_wrapper(known, function)
    del known.__wrapped__  # type: ignore[attr-defined]  # set by update_wrapper; it would lead back to all parameters
    known.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]  # what inspect reads
    known.__annotations__ = {k: v for k, v in function.__annotations__.items() if k not in names}
    return known


def as_text(value: Any) -> str:
    """What a model is shown of a value: text as it is, models and other values as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    return to_json(value, fallback=repr).decode()


@overload
def tool(function: Callable[P, R], /) -> FunctionTool: ...
@overload
def tool(**options: Unpack[ToolOptions]) -> Callable[[Callable[P, R]], FunctionTool]: ...
def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a tool: `@aibox.tool`, or `@aibox.tool(label=..., approve=..., side_effects=..., timeout_s=...)`.

    `label` marks what the tool returns (`"confidential/PHI"`); `approve` asks a person before each call;
    `side_effects` makes the record of the call durable before it happens, and keeps it from happening twice;
    `timeout_s` bounds it. `private`, `untrusted`, `sends`, `idempotency_key` and `concurrency`: see FunctionTool.
    """
    if function is not None:
        return FunctionTool(function)
    return lambda function: FunctionTool(function, **options)


def as_tool(value: Tool | Callable[..., Any]) -> Tool:
    """A tool as it is; a plain function becomes one. Raises ConfigError for anything else."""
    if inspect.isfunction(value) or inspect.ismethod(value):
        return FunctionTool(value)
    if all(hasattr(value, name) for name in ("name", "description", "schema", "call")):
        return value  # type: ignore[return-value]  # the shape was just looked at
    raise ConfigError(f"not a tool: {value!r}", hint="decorate a function with @aibox.tool")
