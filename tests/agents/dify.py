"""A Dify server on loopback that holds both sides to the published service API: what it is asked, and what it answers.

The facts are those of Dify's OpenAPI description of the service API (chat messages, workflow runs, stop, errors,
events), written down here as JSON Schema and no further than `run_workflow` goes.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import jsonschema

TASK, RUN, MESSAGE, TALK = (f"{n}0000000-0000-4000-8000-00000000000{n}" for n in range(1, 5))
FILED = "50000000-0000-4000-8000-000000000005"
TEXT = {"type": "string"}
MODE = {"enum": ["streaming", "blocking"]}
STATUS = ("running", "succeeded", "failed", "stopped", "partial-succeeded", "paused")


def _object(required: str, *, closed: bool = False, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "additionalProperties": not closed,
    }


_ASKED = {
    "inputs": {"type": "object"},
    "user": {**TEXT, "minLength": 1},
    "response_mode": MODE,
    "files": {"type": "array", "items": {"$ref": "#/$defs/file"}},
}
REQUESTS = {
    "/v1/workflows/run": _object("inputs user", closed=True, **_ASKED),
    "/v1/chat-messages": _object(
        "inputs query user",
        closed=True,
        **_ASKED,
        query=TEXT,
        conversation_id=TEXT,
        auto_generate_name={"type": "boolean"},
        workflow_id=TEXT,
    ),
    "/v1/files/upload": _object(
        "user file", closed=True, user={**TEXT, "minLength": 1}, file=_object("name type size")
    ),
    "stop": _object("user", closed=True, user={**TEXT, "minLength": 1}),
}
FILE = _object(
    "type transfer_method",
    closed=True,
    type={"enum": ["image", "document", "audio", "video", "custom"]},
    transfer_method={"enum": ["remote_url", "local_file"]},
    url=TEXT,
    upload_file_id=TEXT,
)
for _request in REQUESTS.values():
    _request["$defs"] = {"file": FILE}
UPLOADED = _object(
    "id name size extension mime_type", id=TEXT, name=TEXT, size={"type": "integer"}, extension=TEXT, mime_type=TEXT
)
_ENDED = _object("id workflow_id status", status={"enum": list(STATUS)}, outputs={"type": ["object", "null"]})
ERROR = _object("status code message", status={"type": "integer"}, code=TEXT, message=TEXT)
ANSWERS = {
    "/v1/workflows/run": _object("task_id workflow_run_id data", data=_ENDED),
    "/v1/chat-messages": _object(
        "event task_id id message_id conversation_id mode answer metadata created_at",
        event={"const": "message"},
        mode={"enum": ["chat", "agent-chat", "advanced-chat"]},
        answer=TEXT,
    ),
}
_CHAT = "task_id message_id conversation_id created_at"
_FLOW = "task_id workflow_run_id data"
EVENTS = {
    "message": _object(f"{_CHAT} answer", answer=TEXT),
    "agent_message": _object(f"{_CHAT} answer", answer=TEXT),
    "agent_thought": _object(f"{_CHAT} position thought"),
    "message_replace": _object(f"{_CHAT} answer", answer=TEXT),
    "message_end": _object(f"{_CHAT} metadata"),
    "workflow_started": _object(_FLOW, data=_object("id workflow_id")),
    "node_started": _object(_FLOW, data=_object("node_id node_type title")),
    "text_chunk": _object(_FLOW, data=_object("text")),
    "workflow_finished": _object(_FLOW, data=_ENDED),
    "workflow_paused": _object(_FLOW),
    "error": ERROR,
}


def flow(event: str, **data: Any) -> dict[str, Any]:
    """An event of a workflow, with what every one has."""
    known = {"id": RUN, "workflow_id": "w"} if event.startswith("workflow") else {}
    return {"event": event, "task_id": TASK, "workflow_run_id": RUN, "data": {**known, **data}}


def said(event: str, **more: Any) -> dict[str, Any]:
    """An event of a chat app, with what every one has."""
    ids = {"task_id": TASK, "message_id": MESSAGE, "conversation_id": TALK, "created_at": 1_705_395_332}
    return {"event": event, **ids, **more}


def blocking(path: str, text: str) -> dict[str, Any]:
    if path == "/v1/workflows/run":
        ended = {"id": RUN, "workflow_id": "w", "status": "succeeded", "outputs": {"text": text}}
        return {"task_id": TASK, "workflow_run_id": RUN, "data": ended}
    return {**said("message", answer=text), "id": MESSAGE, "mode": "chat", "metadata": {}}


@dataclass
class Dify:
    """The server. `answer` is a list of events, a whole answer, or an error; `hangs` keeps a stream open after it."""

    key: str = "app-0123456789abcdef"
    answer: Any = None
    hangs: bool = False
    url: str = ""
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    correlations: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """Where either side left the contract."""
    files: list[tuple[str, bytes]] = field(default_factory=list)
    """What was uploaded: names and bytes."""
    refuses: tuple[int, str] | None = None
    """Status and code for uploads."""
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # who asked has gone, perhaps before saying anything
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        path = first.split()[1]
        data = await reader.readexactly(int(headers.get("content-length", "0")))
        upload = path == "/v1/files/upload"
        body = self._form(headers, data) if upload else json.loads(data)
        self.requests.append((path, body))
        self.correlations.append(headers.get("x-correlation-id", ""))
        self._hold(body, REQUESTS.get("stop" if path.endswith("/stop") else path), f"request to {path}")
        if not upload and headers.get("content-type") != "application/json":
            self.faults.append(f"request to {path}: {headers.get('content-type')}")
        if headers.get("authorization") != f"Bearer {self.key}":
            await self._whole(
                writer, 401, {"status": 401, "code": "unauthorized", "message": "Access token is invalid"}
            )
        elif path in (f"/v1/workflows/tasks/{TASK}/stop", f"/v1/chat-messages/{TASK}/stop"):
            self.stopped.set()
            await self._whole(writer, 200, {"result": "success"})
        elif upload and (self.refuses or len(self.files[-1][1]) > 2**20):
            status, code = self.refuses or (413, "file_too_large")
            await self._whole(writer, status, {"status": status, "code": code, "message": ""})
        elif upload:
            name, content = self.files[-1]
            told = {"id": FILED, "name": name, "size": len(content), "extension": name.rpartition(".")[2]}
            answer = {**told, "mime_type": body["file"]["type"], "created_at": 1_705_395_332}
            self._hold(answer, UPLOADED, "answer to an upload")
            await self._whole(writer, 201, answer)
        elif isinstance(self.answer, dict) and "code" in self.answer:
            self._hold(self.answer, ERROR, "error")
            await self._whole(writer, self.answer["status"], self.answer)
        elif body["response_mode"] == "blocking":
            self._hold(self.answer, ANSWERS[path], f"answer of {path}")
            await self._whole(writer, 200, self.answer)
        else:
            await self._stream(writer)

    def _form(self, headers: dict[str, str], data: bytes) -> dict[str, Any]:
        """The fields of multipart/form-data, as the standard library's own parser of messages reads them."""
        head = f"Content-Type: {headers.get('content-type')}\r\n\r\n".encode()
        fields: dict[str, Any] = {}
        for part in email.message_from_bytes(head + data, policy=email.policy.HTTP).iter_parts():
            name = str(part.get_param("name", header="content-disposition"))
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            if (file := part.get_filename()) is None:
                fields[name] = content.decode()
            else:
                self.files.append((file, content))
                fields[name] = {"name": file, "type": part.get_content_type(), "size": len(content)}
        return fields

    async def _whole(self, writer: asyncio.StreamWriter, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
        writer.write(head.encode() + b"connection: close\r\n\r\n" + data)
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for event in self.answer:
            self._hold(event, EVENTS.get(event["event"]), f"event {event['event']}")
            writer.write(f"event: ping\n\ndata: {json.dumps(event)}\n\n".encode())
            await writer.drain()
        self.asked.set()
        if self.hangs:
            await self.stopped.wait()

    def _hold(self, value: Any, schema: Any, what: str) -> None:
        if schema is None:
            self.faults.append(f"{what}: not in the contract")
            return
        self.faults += [
            f"{what}: {fault.message}" for fault in jsonschema.Draft202012Validator(schema).iter_errors(value)
        ]


@asynccontextmanager
async def dify() -> AsyncIterator[Dify]:
    """A running server; when the block ends, nobody may have left the contract."""
    fake = Dify()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield fake
    finally:
        fake.stopped.set()
        server.close()
        await server.wait_closed()
    assert fake.faults == []
