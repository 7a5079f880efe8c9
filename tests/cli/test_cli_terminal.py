"""`aibox chat` on a real terminal: Ctrl-C stops an answer and keeps the conversation; at the prompt it leaves."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from aibox.inference import demo_model

pytestmark = pytest.mark.skipif(demo_model.find() is None, reason="the demo model is not installed: make setup")
PROMPT = b"you>"
CTRL_C = b"\x03"


class Chat:
    """The program at the other end of a pseudo-terminal."""

    def __init__(self) -> None:
        self.shown = b""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background of a script
            os.execv(sys.executable, [sys.executable, "-m", "aibox", "chat"])

    def type(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    def until(self, wanted: bytes, *, timeout_s: float = 180) -> None:
        """Read up to `wanted`, and leave what comes after it; b"" means the end of the program."""
        deadline = time.monotonic() + timeout_s
        while not wanted or wanted not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    piece = os.read(self.terminal, 4096)
                except OSError:  # Linux's end of a pseudo-terminal
                    piece = b""
                if not piece:
                    assert not wanted, self.shown
                    return
                self.shown += piece
        self.shown = self.shown.partition(wanted)[2]

    def shows(self, what: bytes, *, within_s: float) -> bool:
        """Whether it shows that by then; if so, up to there is read."""
        try:
            self.until(what, timeout_s=within_s)
        except AssertionError:
            return False
        return True

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def chat() -> Iterator[Chat]:
    program = Chat()
    yield program
    os.close(program.terminal)


def test_an_answer_is_stopped_and_the_conversation_goes_on(chat: Chat) -> None:
    """Ctrl-C while the model works ends the turn alone: the prompt is back, a command works, and it leaves with 0."""
    chat.until(PROMPT)
    for _ in range(10):
        chat.type(b"Write a very long story about a lighthouse.\n")
        if not chat.shows(PROMPT, within_s=1):
            break  # the line is read at once, and it is at work; a story that was over by now is told anew
    chat.type(CTRL_C)
    chat.until(b"stopped")
    chat.until(PROMPT)
    chat.type(b"/memory\n")
    chat.until(b"nothing is remembered")
    chat.type(b"/quit\n")
    chat.until(b"")
    assert chat.exit_code() == 0


def test_at_the_prompt_it_leaves_at_once(chat: Chat) -> None:
    """Ctrl-C where nothing is being answered ends the program with 130, without another Enter."""
    chat.until(PROMPT)
    chat.type(CTRL_C)
    chat.until(b"")
    assert chat.exit_code() == 130
