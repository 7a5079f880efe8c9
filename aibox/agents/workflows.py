"""`run_workflow`: workflow and chat apps of a Dify server of the operator's, as passages through the door.

By Dify's service API: one key an app, a pseudonym for the user, errors as `{status, code, message}`, also in the middle
of a stream whose HTTP status is 200. What an app answers is a stranger's text; a turn that ends stops its task.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import anyio

from aibox.agents.dispatch import Refused
from aibox.agents.http import Http, lines, whole
from aibox.agents.passage import passage
from aibox.agents.secret import Secret, scrub
from aibox.agents.turn_state import TurnState
from aibox.agents.workflow_files import File, asked_for, attached, taken
from aibox.errors import AccessError, AIBoxError, ConfigError, LimitError, UpstreamError
from aibox.sandbox.sandbox import Sandbox
from aibox.settings_parts import WorkflowSettings
from aibox.types import Label, Scope

MAX_ANSWER_KIB = 2048
MAX_TEXT_CHARS = 64_000
SILENCE_S = 60.0
"""A stream says something every 10 s, if only `ping`."""
STOP_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DifyApp:
    """One app. `url` is the API's base, such as `https://dify.example.org/v1`; `key` the app's own.

    `inputs` says, by name, what each of the app's variables means, `files` the same of those that take a file; `attach`
    allows files to go along with a message of a chat app. `streaming` False waits for the whole answer, which proxies
    cut and which cannot be stopped. `label` marks what it returns; `approve` asks a person before each run.
    """

    name: str
    url: str
    key: Secret
    kind: Literal["workflow", "chat"] = "workflow"
    description: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    attach: bool = False
    streaming: bool = True
    approve: bool = False
    label: Label | None = None
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"the workflow {self.name} needs the address of a Dify API, not {self.url!r}")

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    def told(self) -> str:
        """For a model: what it is for, and what it takes."""
        takes = "; ".join(f"{name}: {meaning}" for name, meaning in self.inputs.items())
        query = " Takes `query`." if self.kind == "chat" else ""
        files = "; ".join(f"{name}: {meaning}" for name, meaning in self.files.items())
        return (
            f"{self.name}: {self.description}{query}"
            + (f" Inputs: {takes}." if takes else "")
            + (f" Files: {files}." if files else "")
        )


class RunWorkflow:
    """The tool over the configured apps. What it sends is bound by `egress.hosts` and `egress.ceiling`."""

    name = "run_workflow"
    sends = True
    untrusted = True
    side_effects = True

    def __init__(self, apps: Sequence[DifyApp], *, http: Http | None = None, sandbox: Sandbox | None = None) -> None:
        if not apps:
            raise ConfigError("run_workflow needs at least one app")
        takes = [app.name for app in apps if app.files or app.attach]
        if takes and sandbox is None:
            raise ConfigError(
                f"the workflow {takes[0]} takes files, and there is no sandbox that they could come from",
                hint="RunWorkflow(apps, sandbox=box.sandbox)",
            )
        self._sandbox = sandbox
        self._apps = {app.name: app for app in apps}
        if len(self._apps) < len(apps):
            raise ConfigError("two workflows have one name")
        # The operator's own server may well have a private address.
        self._http = http or Http(private_hosts=[app.host for app in apps])
        self.approve = any(app.approve for app in apps)
        self.timeout_s = max(app.timeout_s for app in apps)
        self.description = "Run one of these, and get its answer. " + " ".join(app.told() for app in apps)
        text = {"type": "string"}
        properties: dict[str, Any] = {
            "app": {**text, "enum": list(self._apps), "description": "Which one."},
            "inputs": {"type": "object", "description": "Its inputs, by name.", **_inputs(apps)},
        }
        if any(app.kind == "chat" for app in apps):
            properties["query"] = {**text, "description": "What to ask a chat app."}
            properties["conversation"] = {**text, "description": "To go on with one: the id that it answered."}
        if any(app.files for app in apps):
            names = {name: text for app in apps for name in app.files}
            told = {"type": "object", "description": "Files, by input: paths in your workspace."}
            properties["files"] = {**told, "properties": names, "additionalProperties": False}
        if any(app.attach for app in apps):
            along = "Paths in your workspace of files to send along with query."
            properties["attach"] = {"type": "array", "items": text, "description": along}
        self.schema: Mapping[str, Any] = {
            "type": "object",
            "properties": properties,
            "required": ["app"],
            "additionalProperties": False,
        }

    async def call(self, arguments: Mapping[str, Any], *, scope: Scope) -> str:  # noqa: ARG002 - Tool's face
        raise Refused(f"{self.name} works inside a turn only.", "invalid")

    async def call_in(self, arguments: Mapping[str, Any], *, call_id: str, turn: TurnState) -> str:  # noqa: ARG002
        app, body = self._read(arguments)
        named = asked_for(arguments, app=app.name, known=app.files)
        along = attached(arguments, app=app.name, allowed=app.attach and app.kind == "chat")
        files = await taken([*named.values(), *along], sandbox=self._sandbox, turn=turn)
        key = app.key.resolve(scope=turn.scope)
        body["user"] = pseudonym(turn.scope, key=key.reveal())
        run = _Run(app, body, key=key, http=self._http, turn=turn)
        with anyio.fail_after(app.timeout_s):
            try:
                sent = [await run.upload(file) for file in files]
                body["inputs"] = {**body["inputs"], **dict(zip(named, sent, strict=False))}
                if along:
                    body["files"] = sent[len(named) :]
                answer = await run.answer()
            except anyio.get_cancelled_exc_class():
                # The turn, or the time, is over; the server would go on for nobody.
                with anyio.move_on_after(STOP_S, shield=True):
                    await run.stop()
                raise
            except AIBoxError as error:
                # A server may quote the request that it refuses.
                error.message = scrub(error.message, {"key": key})
                error.args = (error.message,)
                raise
        if app.label is not None:
            turn.touch(app.label.because(f"workflow {app.name}"))
        return scrub(answer[:MAX_TEXT_CHARS], {"key": key})

    def _read(self, arguments: Mapping[str, Any]) -> tuple[DifyApp, dict[str, Any]]:
        """The app and the body for it. Raises Refused with what a model can correct."""
        app = self._apps.get(str(arguments.get("app")))
        if app is None:
            raise Refused(f"There is no such app; there are: {', '.join(self._apps)}.", "invalid")
        inputs = arguments.get("inputs") or {}
        if not isinstance(inputs, dict):
            raise Refused("inputs must be an object with the inputs by name. Correct it and try again.", "invalid")
        if app.inputs and (unknown := sorted(set(inputs) - set(app.inputs))):
            raise Refused(f"{app.name} has no input {', '.join(unknown)}; it has {', '.join(app.inputs)}.", "invalid")
        body: dict[str, Any] = {"inputs": inputs, "response_mode": "streaming" if app.streaming else "blocking"}
        if app.kind == "chat":
            query, conversation = arguments.get("query"), arguments.get("conversation") or ""
            if not isinstance(query, str) or not query.strip() or not isinstance(conversation, str):
                raise Refused(f"{app.name} needs query, as text, and conversation, if any, as text.", "invalid")
            # Names of conversations are made by a model of the server's, which nobody asked for.
            body |= {"query": query, "conversation_id": conversation, "auto_generate_name": False}
        return app, body

    def __repr__(self) -> str:
        return f"<tool {self.name} of {', '.join(self._apps)}>"


def configured(tables: Sequence[WorkflowSettings], *, sandbox: Callable[[], Sandbox]) -> RunWorkflow | None:
    """The tool over the apps that the settings describe; the sandbox is asked for where one of them takes files."""
    apps = [
        DifyApp(
            key=Secret(f"workflow {table.name}", file=table.key_file),
            label=None if table.label is None else Label.of(table.label),
            **table.model_dump(exclude={"key_file", "label"}),
        )
        for table in tables
    ]
    takes_files = any(app.files or app.attach for app in apps)
    return RunWorkflow(apps, sandbox=sandbox() if takes_files else None) if apps else None


def _inputs(apps: Sequence[DifyApp]) -> dict[str, Any]:
    """Where there is one app only, its inputs can be held to: small models need that."""
    if len(apps) > 1 or not apps[0].inputs:
        return {}
    known = {
        name: {"type": ["string", "number", "boolean"], "description": meaning}
        for name, meaning in apps[0].inputs.items()
    }
    return {"properties": known, "additionalProperties": False}


class _Run:
    """One run of one app."""

    def __init__(self, app: DifyApp, body: dict[str, Any], *, key: Secret, http: Http, turn: TurnState) -> None:
        self._app = app
        self._body = body
        self._key = key
        self._http = http
        self._turn = turn
        self._task = ""

    async def answer(self) -> str:
        """Raises AIBoxError for what the server says went wrong."""
        app = self._app
        path = "/workflows/run" if app.kind == "workflow" else "/chat-messages"
        silence_s = SILENCE_S if app.streaming else app.timeout_s
        async with self._request(path, self._body, silence_s=silence_s) as answer:
            if not app.streaming:
                found = _object(await whole(answer, max_kib=MAX_ANSWER_KIB))
                return _finished(found.get("data")) if app.kind == "workflow" else _said(found, found.get("answer"))
            return await self._streamed(answer)

    async def upload(self, file: File) -> dict[str, str]:
        """Send a file ahead; how the run is to name it."""
        form = file.form(user=self._body["user"])
        async with self._request("/files/upload", None, form=form, silence_s=self._app.timeout_s, good=201) as answer:
            uploaded = _id(_object(await whole(answer, max_kib=64)).get("id"))
        if not uploaded:
            raise UpstreamError(f"{self._app.name} took a file and did not say what it is called")
        return file.named(uploaded)

    async def stop(self) -> None:
        """Ask the server to end the task. That it could not be asked is on record, and no more can be done."""
        if not self._task:
            return
        path = f"/workflows/tasks/{self._task}/stop"
        if self._app.kind == "chat":
            path = f"/chat-messages/{self._task}/stop"
        outcome = "stopped"
        try:
            async with self._request(path, {"user": self._body["user"]}, silence_s=STOP_S) as answer:
                await whole(answer, max_kib=64)
        except AIBoxError as error:
            outcome = error.code
        self._turn.record.note("workflow.stopped", {"workflow": self._app.name, "outcome": outcome})

    @asynccontextmanager
    async def _request(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        silence_s: float,
        form: tuple[bytes, str] | None = None,
        good: int = 200,
    ) -> AsyncIterator[Any]:
        app = self._app

        async def passing(host: str) -> str:
            what = json.dumps(body) if form is None else form[0]
            return await passage(host, what=RunWorkflow.name, text=what, turn=self._turn)

        headers = {"Authorization": f"Bearer {self._key.reveal()}"}
        url = app.url.rstrip("/") + path
        async with self._http.request(
            "POST", url, passing=passing, headers=headers, body=body, form=form, read_timeout_s=silence_s
        ) as answer:
            if answer.status_code != good:
                raise failure(answer.status_code, _object(await whole(answer, max_kib=64), strict=False), app=app.name)
            yield answer

    async def _streamed(self, answer: Any) -> str:
        said, replaced, size = "", False, 0
        ended: dict[str, Any] | None = None
        async for line in lines(answer, max_kib=MAX_ANSWER_KIB):
            # A `ping` has no data; comments and blank lines have none either.
            if not line.startswith("data:"):
                continue
            size += len(line)
            if size > MAX_ANSWER_KIB << 10:
                raise LimitError(f"the answer of {self._app.name} is longer than {MAX_ANSWER_KIB} KiB")
            event = _object(line.removeprefix("data:").encode())
            self._task = _id(event.get("task_id")) or self._task
            kind = event.get("event")
            if kind == "error":
                raise failure(event.get("status"), event, app=self._app.name)
            if kind in ("message", "agent_message"):
                # An agent that spoke in pieces says it once more, whole, at the end.
                whole_again = kind == "message" and replaced
                said = _text(event.get("answer")) if whole_again else said + _text(event.get("answer"))
                replaced = replaced or kind == "agent_message"
            elif kind == "message_replace":
                said = _text(event.get("answer"))
            elif kind == "message_end":
                ended = event
            elif kind == "workflow_paused":
                raise UpstreamError(f"{self._app.name} waits for a person in Dify, and was not waited for")
            elif kind == "workflow_finished":
                text = _finished(event.get("data"))
                if self._app.kind == "workflow":
                    return text
        if ended is None:
            raise UpstreamError(f"{self._app.name} broke off before its answer was complete", retryable=True)
        return _said(ended, said)


def pseudonym(scope: Scope, *, key: str) -> str:
    """Who asks, for the server: the same for the same person and app, and nothing that leads back without the key."""
    who = "\x1f".join((scope.tenant, scope.user)).encode()
    return "aibox-" + hmac.new(key.encode(), who, hashlib.sha256).hexdigest()[:32]


_WIRED = frozenset({
    "app_unavailable", "not_chat_app", "not_workflow_app", "provider_not_initialize", "provider_quota_exceeded",
    "model_currently_not_support", "completion_request_error", "agent_not_published",
})  # fmt: skip
"""Codes that say that the app or its model is set up wrongly: no other request helps."""


def failure(status: Any, body: Mapping[str, Any], *, app: str) -> AIBoxError:
    """Dify's error as ours. Its words come along; they are a stranger's, and short."""
    status = status if isinstance(status, int) else 500
    code, words = str(body.get("code") or "")[:64], str(body.get("message") or "")[:300]
    message = f"{app} answered {status} {code}: {words}".rstrip(": ")
    if status == 401:
        return ConfigError(f"{app} does not know its key", hint="one app, one key: key_file of the workflow")
    if status == 403:
        return AccessError(message)
    if code in _WIRED:
        return ConfigError(message, hint="look at the app, and its model, in Dify")
    if status in (413, 415) or code == "rate_limit_error":
        return LimitError(message)
    return UpstreamError(message, retryable=status >= 500 or status == 429)


def _finished(data: Any) -> str:
    """What a workflow gave. Raises UpstreamError for one that did not come to its end."""
    found: Mapping[str, Any] = data if isinstance(data, dict) else {}
    status = found.get("status")
    if status not in ("succeeded", "partial-succeeded"):
        why = f": {str(found['error'])[:300]}" if found.get("error") else ""
        raise UpstreamError(f"the workflow ended as {str(status)[:40]}{why}")
    outputs = found.get("outputs") or {}
    values = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    text = values[0] if len(values) == 1 and isinstance(values[0], str) else json.dumps(outputs, ensure_ascii=False)
    return text if status == "succeeded" else f"{text}\n(some of its steps failed)"


def _said(event: Mapping[str, Any], answer: Any) -> str:
    conversation = _id(event.get("conversation_id"))
    return _text(answer) + (f"\n(conversation {conversation})" if conversation else "")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _id(value: Any) -> str:
    """An id that may stand in a path and in a prompt; anything else is none."""
    text = value if isinstance(value, str) else ""
    return text if 0 < len(text) <= 64 and text.isascii() and text.replace("-", "").replace("_", "").isalnum() else ""


def _object(data: bytes, *, strict: bool = True) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    if strict:
        raise UpstreamError("the server did not answer as Dify does")
    return {}
