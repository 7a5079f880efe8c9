"""Files for a Dify app: out of the conversation's sandbox, uploaded through the door, named by their id afterwards.

A file that is text is looked at like the arguments of a call; of one that is not, nothing can be found out.
"""

from __future__ import annotations

import mimetypes
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aibox.agents.dispatch import Refused
from aibox.agents.turn_state import TurnState
from aibox.errors import AIBoxError
from aibox.sandbox.sandbox import Sandbox

MAX_FILE_MIB = 15
"""Dify's own default; a server may take less, and says so."""
MAX_FILES = 10
_KINDS = ("image", "audio", "video")
_PLAIN = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True)
class File:
    """What is uploaded. `kind` and `media_type` are read off the name, as the server does."""

    name: str
    data: bytes

    @property
    def media_type(self) -> str:
        return mimetypes.guess_type(self.name)[0] or "application/octet-stream"

    @property
    def kind(self) -> str:
        first = self.media_type.partition("/")[0]
        return first if first in _KINDS else "document"

    def form(self, *, user: str) -> tuple[bytes, str]:
        """The body of the upload and its content type: multipart/form-data, RFC 7578."""
        mark = secrets.token_hex(16)
        part = f'--{mark}\r\nContent-Disposition: form-data; name="'
        head = f'{part}user"\r\n\r\n{user}\r\n{part}file"; filename="{self.name}"\r\n'
        head += f"Content-Type: {self.media_type}\r\n\r\n"
        return head.encode() + self.data + f"\r\n--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"

    def named(self, uploaded: str) -> dict[str, str]:
        """How a run names it."""
        return {"type": self.kind, "transfer_method": "local_file", "upload_file_id": uploaded}


async def taken(paths: Sequence[str], *, sandbox: Sandbox | None, turn: TurnState) -> list[File]:
    """The files at these paths of the conversation's workspace. Raises Refused with what a model can correct."""
    if not paths:
        return []
    if sandbox is None or not turn.scope.session:
        raise Refused("There are no files here: no conversation with a sandbox. Do without them.", "invalid")
    if len(paths) > MAX_FILES:
        raise Refused(f"At most {MAX_FILES} files can be sent at once.", "invalid")
    session = await sandbox.keep(scope=turn.scope)
    found = []
    for path in paths:
        try:
            data = await session.read(path, limit_mib=MAX_FILE_MIB)
        except AIBoxError as error:
            raise Refused(
                f"{path[:200]} cannot be sent: {error.message}. Correct it and try again.", "invalid"
            ) from None
        await _look(path, data, turn=turn)
        found.append(File(_PLAIN.sub("_", path.rpartition("/")[2])[-100:], data))
    return found


async def _look(path: str, data: bytes, *, turn: TurnState) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        if turn.policy.egress.pseudonymise:
            why = "it is no text, so that personal data in it could not be found"
            raise Refused(f"{path[:200]} may not leave: {why}.", "blocked") from None
        return
    verdict = await turn.check(text, where="tool_arguments")
    if verdict.blocked or verdict.text != text:
        raise Refused(f"{path[:200]} may not leave as it is: {verdict.why()}.", "blocked")


def asked_for(arguments: Mapping[str, Any], *, app: str, known: Mapping[str, str]) -> dict[str, str]:
    """Variable to path. Raises Refused for variables that take no file, and for what is no path."""
    files = arguments.get("files") or {}
    if not isinstance(files, dict) or not all(isinstance(path, str) and path for path in files.values()):
        raise Refused("files must be an object: input by name, path in your workspace. Correct it.", "invalid")
    if unknown := sorted(set(files) - set(known)):
        takes = ", ".join(known) or "none"
        raise Refused(f"{app} takes no file as {', '.join(unknown)[:200]}; it takes {takes}.", "invalid")
    return files


def attached(arguments: Mapping[str, Any], *, app: str, allowed: bool) -> list[str]:
    """Paths of what goes along with a message."""
    paths = arguments.get("attach") or []
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise Refused("attach must be a list of paths in your workspace. Correct it and try again.", "invalid")
    if paths and not allowed:
        raise Refused(f"{app} takes no attached files. Do without them.", "invalid")
    return paths
