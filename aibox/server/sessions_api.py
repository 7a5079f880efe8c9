"""`/v1/sessions`: the caller's own conversations."""

from __future__ import annotations

from collections.abc import Mapping

from aibox.agents.agent import Agent
from aibox.agents.sessions import Session, Sessions
from aibox.agents.state import AgentState
from aibox.errors import AccessError
from aibox.server.principal import Principal
from aibox.server.route import ASKS, route
from aibox.server.shapes.shape import Name
from aibox.server.shapes.talk import SessionList, SessionQuery, SessionShown, SessionsQuery, SessionWhole, Title
from aibox.types import Scope

_MANY = 1_000_000


class SessionsAPI:
    """Conversations of the caller. What is somebody else's is not found."""

    def __init__(self, state: AgentState, *, agents: Mapping[str, Agent]) -> None:
        # An agent that was put together by hand may keep its conversations in a state of its own.
        own = {name: agent.parts.state for name, agent in agents.items()}
        self._default = state
        self._own = {name: kept for name, kept in own.items() if kept is not None}

    @route("GET", "/v1/sessions", roles=ASKS)
    async def list_(self, who: Principal, query: SessionsQuery) -> SessionList:
        """The caller's conversations, the latest first."""
        scope = who.scope.narrow(agent=query.agent)
        states = {id(kept): kept for kept in (self._default, *self._own.values())}
        found = [s for kept in states.values() for s in await kept.sessions.list(scope=scope, limit=query.limit)]
        latest = sorted(found, key=lambda session: -session.updated_us)[: query.limit]
        return SessionList(data=[SessionShown.model_validate(session) for session in latest])

    @route("GET", "/v1/sessions/{id}", roles=ASKS)
    async def get(self, who: Principal, id: Name, query: SessionQuery) -> SessionShown:  # noqa: A002 - as the path has it
        """One conversation, without its messages."""
        sessions, scope = self._of(who, id, query)
        found: list[Session] = await sessions.list(scope=scope.narrow(session=""), limit=_MANY)
        for session in found:
            if session.id == id:
                return SessionShown.model_validate(session)
        raise AccessError("there is no such session", hint="sessions.list(scope=...) names yours", absent=True)

    @route("GET", "/v1/sessions/{id}/export", roles=ASKS)
    async def export(self, who: Principal, id: Name, query: SessionQuery) -> SessionWhole:  # noqa: A002 - likewise
        """One conversation with every message, as the model saw it."""
        sessions, scope = self._of(who, id, query)
        return SessionWhole.model_validate(await sessions.export(scope=scope))

    @route("PATCH", "/v1/sessions/{id}", roles=ASKS, examples=[{"title": "The plan for March"}])
    async def title(
        self, who: Principal, id: Name, query: SessionQuery, body: Title  # noqa: A002 - likewise
    ) -> None:  # fmt: skip
        """Give a conversation a title."""
        sessions, scope = self._of(who, id, query)
        await sessions.rename(body.title, scope=scope)

    @route("DELETE", "/v1/sessions/{id}", roles=ASKS)
    async def delete(self, who: Principal, id: Name, query: SessionQuery) -> None:  # noqa: A002 - likewise
        """Let go of a conversation."""
        sessions, scope = self._of(who, id, query)
        await sessions.delete(scope=scope)

    def _of(self, who: Principal, session: str, query: SessionQuery) -> tuple[Sessions, Scope]:
        state = self._own.get(query.agent, self._default)
        return state.sessions, who.scope.narrow(agent=query.agent, session=session)
