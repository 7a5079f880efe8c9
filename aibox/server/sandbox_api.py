"""`/v1/sandbox`: code of the caller, run where it can harm nobody."""

from __future__ import annotations

import base64

from aibox.box import Box
from aibox.execution import Result
from aibox.sandbox.sandbox import Sandbox
from aibox.sandbox.session import Session
from aibox.server.principal import Principal
from aibox.server.route import ASKS, route
from aibox.server.shapes import sandbox as shapes
from aibox.server.shapes.shape import Id

MAX_FILE_BYTES = 32 << 20


class SandboxAPI:
    """Sessions of the caller. Each ends when it is told to, or when nobody used it for a while."""

    def __init__(self, box: Box) -> None:
        self._box = box

    @property
    def _sandbox(self) -> Sandbox:
        # The box makes it when it is first asked for, which looks for engines.
        return self._box.sandbox

    @route("POST", "/v1/sandbox", roles=ASKS, status=201, records=True, examples=[{"gpus": 0}])
    async def open(self, who: Principal, body: shapes.NewSandbox) -> shapes.SandboxShown:
        """A new, empty session: a workspace, and an interpreter that remembers."""
        return shapes.SandboxShown(id=(await self._sandbox.open(scope=who.scope, gpus=body.gpus)).id)

    @route("GET", "/v1/sandbox", roles=ASKS)
    async def list_(self, who: Principal) -> shapes.SandboxList:
        """The caller's open sessions, those of their agents' conversations among them."""
        return shapes.SandboxList(data=[shapes.SandboxShown(id=id_) for id_ in self._sandbox.ids(scope=who.scope)])

    @route(
        "POST", "/v1/sandbox/{id}/run", roles=ASKS, records=True, watched=True, max_body_bytes=4 << 20,
        examples=[{"code": "sum(range(10))", "language": "python"}],
    )  # fmt: skip
    async def run(self, who: Principal, id: Id, body: shapes.Code) -> shapes.Ran:  # noqa: A002 - as the path has it
        """Run Python code or a command line. A caller who leaves stops it."""
        session = await self._session(who, id)
        return _ran(await (session.python(body.code) if body.language == "python" else session.bash(body.code)))

    @route("GET", "/v1/sandbox/{id}/files", roles=ASKS)
    async def files(self, who: Principal, id: Id, query: shapes.FolderQuery) -> shapes.FileList:  # noqa: A002
        """What is in a folder of the workspace. Links are not followed."""
        found = await (await self._session(who, id)).ls(query.path, deep=query.deep)
        return shapes.FileList(data=[shapes.FileShown.model_validate(one) for one in found])

    @route("GET", "/v1/sandbox/{id}/file", roles=ASKS, media="application/octet-stream")
    async def read(self, who: Principal, id: Id, query: shapes.PathQuery) -> bytes:  # noqa: A002
        """One file, as it is. Whatever is in it, it is the word of the code that wrote it."""
        return await (await self._session(who, id)).read(query.path)

    @route("PUT", "/v1/sandbox/{id}/file", roles=ASKS, max_body_bytes=MAX_FILE_BYTES)
    async def write(self, who: Principal, id: Id, query: shapes.PathQuery, body: bytes) -> None:  # noqa: A002
        """Write a file, and the folders above it. The body is the file as it is."""
        await (await self._session(who, id)).write(query.path, body)

    @route("DELETE", "/v1/sandbox/{id}", roles=ASKS, records=True)
    async def end(self, who: Principal, id: Id) -> None:  # noqa: A002
        """End a session: what runs there is stopped, its files are gone."""
        await (await self._session(who, id)).close()

    async def _session(self, who: Principal, id_: str) -> Session:
        return await self._sandbox.attach(id_, scope=who.scope)


def _ran(result: Result) -> shapes.Ran:
    return shapes.Ran(
        stdout=result.stdout,
        stderr=result.stderr,
        exit_code=result.exit_code,
        duration_s=result.duration_s,
        value=result.value,
        tables=[shapes.TableShown.model_validate(table) for table in result.tables],
        figures=[base64.b64encode(figure).decode() for figure in result.figures],
        peak_memory_mib=result.peak_memory_mib,
        truncated=result.truncated,
        limits_hit=list(result.limits_hit),
        state_lost=result.state_lost,
    )
