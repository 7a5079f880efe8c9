"""`aibox serve`: the same objects behind an OpenAI-compatible API, on loopback, behind a local key."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

import aibox.box
from aibox.cli import interrupt
from aibox.cli.options import ConfigOption, ModelOption, PolicyOption, load_settings
from aibox.cli.target import agent
from aibox.errors import ConfigError, MissingExtraError
from aibox.server import guards
from aibox.settings_server import ServerSettings
from aibox.types import Scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from aibox.agents.agent import Agent
    from aibox.box import Box
    from aibox.server.log import Log
    from aibox.server.rates import RateLimits
    from aibox.server.stores import Kept


def serve(
    target: Annotated[
        str | None, typer.Argument(help="module:attr of an Agent, or of a callable that takes the box and returns one.")
    ] = None,
    model: ModelOption = None,
    policy: PolicyOption = None,
    config: ConfigOption = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; beyond loopback only with issuers or API keys.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 8420 by default.")] = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="Replace the local key, and print the new one.")] = False,
    dev: Annotated[
        bool,
        typer.Option("--dev", help="For your own machine: loopback only, without the guards of a server."),
    ] = False,
    document: Annotated[bool, typer.Option("--openapi", help="Print the OpenAPI document and serve nothing.")] = False,
) -> None:
    """Serve the platform and OpenAI's routes under /v1, for all the tenants that can prove who they are."""
    if document:
        _print_document()
        return
    settings, name = load_settings(config=config, model=model)
    changes = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    server = settings.server.model_copy(update=changes)
    guards.refuse_unguarded(server, dev=dev)

    async def main() -> None:
        try:
            from aibox.server.api_keys import ApiKeys
            from aibox.server.app import create_app
            from aibox.server.auth import Callers, LocalKey
            from aibox.server.process import Server, allow_connections
            from aibox.server.reload import Reload
            from aibox.server.tokens import Tokens
        except ImportError:
            raise MissingExtraError("aibox serve", extra="server") from None
        key = LocalKey(settings.key_folder / "server.sha256", scope=Scope(tenant=server.tenant, user=server.user))
        # Where callers can be told apart there is no key that is everybody's.
        keys = ApiKeys(settings.api_keys) if settings.api_keys else None
        tokens = Tokens(server.issuers)
        ways: list[Any] = [*([keys] if keys else []), *([tokens] if server.issuers else [])]
        callers = Callers(*(ways or [key]))
        allow_connections(server.limits.connections)
        async with AsyncExitStack() as stack:
            log = _log(server, stack)
            box = await stack.enter_async_context(aibox.box.open(settings=settings, policy=policy))
            stack.push_async_callback(callers.close)
            if not dev:
                guards.refuse_unfit(settings, server, box.policies)
            rates = await _rates(server, stack, log)
            kept = await _kept(box)

            def made() -> Agent:
                return agent(target, box) if target else box.agent(model=name)

            served = made()
            agents = {served.name: served}
            box.recovery.start(served)

            def renew() -> None:
                agents[served.name] = made()

            reload = Reload(
                box,
                callers=callers,
                tokens=tokens,
                keys=keys,
                read=lambda: load_settings(config=config, model=model)[0],
                renew=renew,
                guarded=not dev,
            )
            app = create_app(
                box, callers=callers, agents=agents, keys=keys, log=log, rates=rates, reload=reload, kept=kept
            )

            with _listen(server.host, server.port) as listening:
                # A key is printed once: not before it is certain that there is a server to use it with.
                fresh = None if ways else key.prepare(renew=new_key)
                _say(f"aibox serves http://{server.host}:{listening.getsockname()[1]}/v1")
                if fresh:
                    _say(f"key (shown this once): {fresh}")
                if dev:
                    _say(guards.DEV)
                await Server(app, limits=server.limits, log=log, reload=reload).serve(sockets=[listening])

    interrupt.run(main(), loop=_event_loop())


def _say(line: str) -> None:
    # Not by rich: it would be loaded for this, and break a line where a terminal is narrow.
    print(line, file=sys.stderr, flush=True)


async def _kept(box: Box) -> Kept:
    """The server's stores, its log opened. What was written as policies is in force before an agent goes on."""
    from aibox.server import stores

    kept = stores.keep(box)
    await kept.in_force.start()
    box.recovery.look(box.audit)
    return kept


def _event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is: half of what a request costs besides the model is the loop's."""
    try:
        import uvloop
    except ImportError:
        return None  # not made for this system
    return uvloop.new_event_loop


def _print_document() -> None:
    try:
        from aibox.server.table import written
    except ImportError:
        raise MissingExtraError("aibox serve", extra="server") from None
    print(written(), end="")


def _log(server: ServerSettings, stack: AsyncExitStack) -> Log | None:
    from aibox.server.log import Log, LogHandler

    if server.log != "json":
        return None
    log = Log(sys.stderr.buffer)
    logging.getLogger().addHandler(LogHandler(log))
    stack.callback(log.close)
    return log


async def _rates(server: ServerSettings, stack: AsyncExitStack, log: Log | None) -> RateLimits | None:
    from aibox.server.rates import RateLimits
    from aibox.server.redis_buckets import RedisBuckets

    def told(answers: bool) -> None:
        if log is not None:
            log.say("redis", level="info" if answers else "error", answers=answers)

    if server.rates_url is None:
        return None
    buckets = RedisBuckets(server.rates_url.get_secret_value(), told=told)
    rates = RateLimits(buckets)
    stack.push_async_callback(rates.close)
    # Without it each server holds the bounds by itself: the log says so before the first request does.
    await buckets.check()
    return rates


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol's number: asyncio turns Nagle's algorithm off only where it reads that this is TCP. Else an answer
    # in two writes waits for the caller's delayed acknowledgement: 48 ms instead of 8 were measured.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another: --port N, or 0 for a free one"
        ) from None
    return listening
