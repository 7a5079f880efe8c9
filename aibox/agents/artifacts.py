"""Files and figures that code made: out of the sandbox, past the output checks, to the person who asked.

Text is checked as an answer is. What no check can read is handed out as the policy says, and marked. Names are the
guest's word: they are checked as well, and cut down to what a terminal and a file system bear.
"""

from __future__ import annotations

import functools
import mimetypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from aibox.agents.events import ArtifactMade
from aibox.agents.evidence import digest
from aibox.agents.turn_state import TurnState
from aibox.errors import AIBoxError, IntegrityError
from aibox.sandbox.session import Session

MAX_MIB = 4
"""Of one artifact; a larger one is named and stays in the sandbox."""
MAX_A_CALL, MAX_A_TURN, MAX_TURN_MIB = 16, 64, 16
CHECKED_KIB = 256
"""A longer text is not read by the checks, which would keep everybody else waiting: it counts as unchecked."""
_MIB = 1024 * 1024
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
)
_TEXTS = ("application/json", "application/xml", "image/svg+xml")
_NAME_CHARS = 200
_ODD = re.compile(r"[^\w.,()+ /-]")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_OURS = re.compile(r"figure-\d{1,2}\.png")


@dataclass(frozen=True, slots=True)
class Found:
    """Something that a call left; without `data` where it cannot be taken out, for the reason in `fault`."""

    name: str
    size: int
    data: bytes | None
    fault: str = ""


async def left(session: Session, figures: Sequence[bytes]) -> list[Found]:
    """The figures of a run, and the files that are new or changed since the last one of the session."""
    found = [Found(f"figure-{number}.png", len(png), png) for number, png in enumerate(figures, 1)]
    for entry in (await session.changed())[: MAX_A_CALL + 1]:
        if entry.size > MAX_MIB * _MIB:
            found.append(Found(entry.path, entry.size, None, f"it is larger than {MAX_MIB} MiB"))
            continue
        try:
            data = await session.read(entry.path, limit_mib=MAX_MIB)
        except AIBoxError as error:
            # Its message names the path, which nothing has checked yet.
            found.append(Found(entry.path, entry.size, None, f"it could not be read ({error.code})"))
        else:
            found.append(Found(entry.path, len(data), data))
    return found


async def hand_out(session: Session, figures: Sequence[bytes], *, tool: str, call_id: str, turn: TurnState) -> str:
    """Hand out what a run left, and say to the model what the person got; empty where there was nothing.

    Raises what must stop the turn: evidence that cannot be written, and checks that cannot answer.
    """
    try:
        found = await left(session, figures)
    except IntegrityError:
        raise
    except AIBoxError as error:
        return f"(files that were made could not be looked at: {error.message})"
    lines = []
    for one in found[:MAX_A_CALL]:
        made = await _made(one, tool=tool, call_id=call_id, turn=turn)
        turn.made(made)
        lines.append(f"{made.name} held back: {made.withheld}" if made.withheld else f"{made.name} shown to the user")
    if len(found) > MAX_A_CALL:
        lines.append(f"more than {MAX_A_CALL} files in one call: the rest was shown to nobody; pack them into one")
    return "\n".join(f"({line})" for line in lines)


async def _made(one: Found, *, tool: str, call_id: str, turn: TurnState) -> ArtifactMade:
    name = await _named(one.name, turn=turn)
    data, checked, refused = one.data, False, one.fault
    text = None if data is None else _text(data)
    if text is not None and turn.guardrail is not None:
        verdict = await turn.check(text, where="output")
        checked = True
        if verdict.blocked:
            refused = verdict.why()
        else:
            # As an answer is: what was taken out is out, and who asked gets their own values back.
            shown = await turn.guardrail.restore(verdict.text, scope=turn.scope)
            data = data if shown == text else shown.encode("utf-8", "surrogatepass")
    media_type = "application/octet-stream" if data is None else media_type_of(one.name, data)
    refused = refused or turn.policy.artifacts.held_back(turn.label, checked=checked) or _too_much(data, turn=turn)
    given = None if refused else data
    detail = {
        "tool": tool,
        "call_sha256": digest(call_id.encode("utf-8", "surrogatepass")),
        "outcome": "withheld" if refused else "delivered",
        "media_type": media_type,
        "checked": checked,
        "label": str(turn.label),
        "bytes": one.size if given is None else len(given),
        "name_sha256": digest(one.name.encode("utf-8", "surrogatepass")),
        # Of what code made, and of what was handed out, which checks may have changed.
        "made_sha256": "" if one.data is None else digest(one.data),
        "sha256": "" if given is None else digest(given),
    }
    turn.record.note("artifact.made", detail)
    return ArtifactMade(
        name=name,
        media_type=media_type,
        size=one.size if given is None else len(given),
        sha256="" if given is None else digest(given),
        label=turn.label,
        tool=tool,
        call_id=call_id,
        checked=checked,
        data=given,
        withheld=refused,
    )


def _too_much(data: bytes | None, *, turn: TurnState) -> str:
    handed = [made for made in turn.artifacts if made.data is not None]
    if len(handed) >= MAX_A_TURN:
        return f"{MAX_A_TURN} were handed out in this turn already"
    if sum(made.size for made in handed) + len(data or b"") > MAX_TURN_MIB * _MIB:
        return f"more than {MAX_TURN_MIB} MiB would be handed out in this turn"
    return ""


async def _named(path: str, *, turn: TurnState) -> str:
    """The path without what is odd in it; one that a check finds fault with says its suffix only."""
    name = _ODD.sub("_", path)[-_NAME_CHARS:]
    suffix = PurePosixPath(name).suffix
    plain = f"file{suffix if _SUFFIX.fullmatch(suffix) else ''}"
    if _OURS.fullmatch(name):
        return name
    verdict = await turn.check(name, where="output")
    return plain if verdict.blocked or verdict.text != name else name


def _text(data: bytes) -> str | None:
    """What the checks can read; None for what is no text, and for more than they read."""
    if len(data) > CHECKED_KIB * 1024 or b"\0" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


@functools.cache
def _types() -> mimetypes.MimeTypes:
    """Those that Python knows, whatever the machine has been told. Half a megabyte: made when there is a file."""
    return mimetypes.MimeTypes()


def media_type_of(name: str, data: bytes) -> str:
    """By its first bytes where they are known, else by its name, where what is in it does not belie that."""
    for magic, known in _MAGIC:
        if data.startswith(magic):
            return known
    told = _types().guess_type(PurePosixPath(name).name)[0] or ""
    readable = told.startswith("text/") or told in _TEXTS
    if _text(data) is not None:
        return told if readable else "text/plain"
    # A name must not make an image, or a text, of what is none.
    return told if told and not readable and not told.startswith("image/") else "application/octet-stream"
