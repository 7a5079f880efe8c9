"""`aibox egress report` answers from the evidence, and only from evidence that holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import aibox
from aibox.chat import ModelInfo, Price
from aibox.cli.app import run as main
from aibox.errors import EgressError
from aibox.inference.egress_report import Attempt, flows
from aibox.inference.router import Router
from aibox.policy.egress import EgressRules
from aibox.policy.policy import Policy
from aibox.testing.scripted import ScriptedBackend
from aibox.types import Scope

pytestmark = pytest.mark.anyio


class Priced(ScriptedBackend):
    async def models(self) -> tuple[ModelInfo, ...]:
        return (ModelInfo(id="big", backend=self.name, external=True, price=Price(1_000_000, 1_000_000)),)


async def _leave(path: Path) -> None:
    policy = Policy(egress=EgressRules(models=frozenset({"*"})))
    async with aibox.AuditChain(path) as chain:
        router = Router(Priced("one two", "three", name="out", external=True), policy=policy, audit=chain)
        for tenant in ("acme", "rival"):
            await router.complete("Hi", model="out/big", scope=Scope(tenant=tenant, user="eva"), label="public")
        with pytest.raises(EgressError):
            await router.complete("Hi", model="out/big", scope=Scope(tenant="acme", user="ben"), label="restricted")
        await router.close()


async def test_the_report_says_what_left_and_what_was_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row a tenant, model, label and policy, with sums that are those of the calls; nobody's text is in it."""
    await _leave(tmp_path / "audit.db")
    assert main(["egress", "report", str(tmp_path / "audit.db"), "--json"]) == 0
    flows = json.loads(capsys.readouterr().out)["flows"]
    assert [(f["tenant"], f["label"], f["allowed"], f["denied"], f["tokens"], f["cost_usd"]) for f in flows] == [
        ("acme", "public", 1, 0, 3, "3.000000000"),
        ("acme", "restricted", 0, 1, 0, "0"),
        ("rival", "public", 1, 0, 2, "2.000000000"),
    ]
    assert "ben" not in json.dumps(flows)
    assert main(["egress", "report", str(tmp_path / "audit.db"), "--tenant", "rival"]) == 0
    out = capsys.readouterr().out
    assert "rival" in out
    assert "acme" not in out


async def test_no_report_is_made_from_evidence_that_does_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed byte is exit code 1 and no table."""
    path = tmp_path / "audit.db"
    await _leave(path)
    raw = path.read_bytes()
    at = raw.index(b"egress.denied")
    path.write_bytes(raw[:at] + b"egress.allowd" + raw[at + 13 :])
    for side in ("-wal", "-shm"):
        Path(f"{path}{side}").unlink(missing_ok=True)
    assert main(["egress", "report", str(path)]) == 1
    assert "does not hold" in capsys.readouterr().out


def test_a_passage_that_is_no_model_call_is_a_line_of_the_report() -> None:
    """What a tool, a trace or a webhook sent out has a host and no model; it is counted like any other."""
    detail = {"host": "dify.example.org", "label": "public", "policy": "p", "bytes": 7, "passage": "x"}
    refused = {**detail, "reason": "shut"}
    (flow,) = flows(
        [
            Attempt("acme", 0, 1, "egress.allowed", detail),
            Attempt("acme", 1, 2, "egress.returned", {"allowed": 0, "outcome": "delivered"}),
            Attempt("acme", 2, 3, "egress.denied", refused),
        ]
    )
    assert (flow.host, flow.model, flow.allowed, flow.denied, flow.sent_bytes) == ("dify.example.org", "", 1, 1, 7)
