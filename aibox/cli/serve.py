"""`aibox serve`: the same objects behind an OpenAI-compatible API, on loopback, behind a local key."""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

import aibox.box
from aibox.cli import interrupt
from aibox.cli.options import ConfigOption, ModelOption, PolicyOption, load_settings
from aibox.cli.target import agent
from aibox.errors import ConfigError, MissingExtraError
from aibox.settings_server import ServerSettings
from aibox.types import Scope

if TYPE_CHECKING:
    from aibox.server.log import Log


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
    document: Annotated[bool, typer.Option("--openapi", help="Print the OpenAPI document and serve nothing.")] = False,
) -> None:
    """Serve the platform and OpenAI's routes under /v1, for all the tenants that can prove who they are."""
    if document:
        _print_document()
        return
    settings, name = load_settings(config=config, model=model)
    changes = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    server = settings.server.model_copy(update=changes)
    _refuse_unguarded(server)
    console = Console(stderr=True, highlight=False)

    async def main() -> None:
        try:
            from aibox.server.api_keys import ApiKeys
            from aibox.server.app import create_app
            from aibox.server.auth import Callers, LocalKey
            from aibox.server.log import Log, LogHandler
            from aibox.server.process import Server, allow_connections
            from aibox.server.rates import RateLimits
            from aibox.server.redis_buckets import RedisBuckets
            from aibox.server.tokens import Tokens
        except ImportError:
            raise MissingExtraError("aibox serve", extra="server") from None
        key = LocalKey(settings.home / "keys" / "server.sha256", scope=Scope(tenant=server.tenant, user=server.user))
        # Where callers can be told apart there is no key that is everybody's.
        keys = ApiKeys(settings.home / server.api_keys) if server.api_keys else None
        ways: list[Any] = [keys] if keys else []
        ways += [Tokens(server.issuers)] if server.issuers else []
        callers = Callers(*(ways or [key]))
        allow_connections(server.limits.connections)
        async with AsyncExitStack() as stack:
            log = Log(sys.stderr.buffer) if server.log == "json" else None
            if log is not None:
                logging.getLogger().addHandler(LogHandler(log))
                stack.callback(log.close)
            box = await stack.enter_async_context(aibox.box.open(settings=settings, policy=policy))
            stack.push_async_callback(callers.close)
            rates = None
            if server.rates_url is not None:
                rates = RateLimits(RedisBuckets(server.rates_url.get_secret_value(), told=_told_of_redis(log)))
                stack.push_async_callback(rates.close)
            served = agent(target, box) if target else box.agent(model=name)
            box.recovery.start(served)
            app = create_app(box, callers=callers, agents={served.name: served}, keys=keys, log=log, rates=rates)
            with _listen(server.host, server.port) as listening:
                # A key is printed once: not before it is certain that there is a server to use it with.
                fresh = None if ways else key.prepare(renew=new_key)
                console.print(f"aibox serves http://{server.host}:{listening.getsockname()[1]}/v1", markup=False)
                if fresh:
                    console.print(f"key (shown this once): {fresh}", markup=False)
                await Server(app, limits=server.limits, log=log).serve(sockets=[listening])

    interrupt.run(main())


def _print_document() -> None:
    try:
        from aibox.server.table import written
    except ImportError:
        raise MissingExtraError("aibox serve", extra="server") from None
    print(written(), end="")


def _refuse_unguarded(server: ServerSettings) -> None:
    try:
        local = server.host == "localhost" or ipaddress.ip_address(server.host).is_loopback
    except ValueError:
        local = False
    if not local and not server.issuers and not server.api_keys:
        raise ConfigError(
            f"aibox serve listens on loopback only, not on {server.host}, while one local key is all that guards it",
            hint="configure [[server.issuers]], or server.api_keys and `aibox keys create`",
        )


def _told_of_redis(log: Log | None) -> Callable[[bool], None]:
    def told(answers: bool) -> None:
        if log is not None:
            log.say("redis", level="info" if answers else "error", answers=answers)

    return told


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
