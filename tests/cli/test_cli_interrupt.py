"""Ctrl-C reaches a command whatever its threads are doing."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, signal, sys, threading, time, uvloop
from aibox.cli import interrupt

async def main():
    def press():
        time.sleep(0.2)  # by now the loop sleeps, with nothing that would wake it
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    threading.Thread(target=press).start()
    try:
        await asyncio.Event().wait()
    finally:
        print("cleaned up", flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    interrupt.run(main(), loop=uvloop.new_event_loop if sys.argv[1] == "uvloop" else None)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_signal_that_another_thread_gets_wakes_the_loop(loop: str) -> None:
    """A SIGINT that does not interrupt the loop's own wait ends the command, after its clean-up, on either loop."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM, loop], capture_output=True, text=True, timeout=120)
    assert (ran.stdout, ran.stderr) == ("cleaned up\ninterrupted\n", "")
