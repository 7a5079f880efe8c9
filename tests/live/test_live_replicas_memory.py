"""Memory and documents of two replicas over one PostgreSQL, and isolation as an operator verifies it there."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import httpx2
from services import OF_TWO, Platform

from aibox.server.isolation_report import IsolationReport

pytestmark = OF_TWO
PLATFORM = {"memory": True}


def ask(url: str, key: str, method: str, path: str, **more: Any) -> httpx2.Response:
    answered = httpx2.request(method, url + path, headers={"authorization": f"Bearer {key}"}, timeout=60, **more)
    assert answered.status_code < 300, answered.text
    return answered


def found(url: str, key: str, path: str, query: str) -> list[str]:
    return [hit["text"] for hit in ask(url, key, "POST", path, json={"query": query}).json()["data"]]


def test_what_one_is_told_the_other_knows_until_it_is_forgotten_there(both: Platform) -> None:
    """A memory is recalled at either replica, by nobody else, and is gone from both when either forgets it."""
    one, other = both.replicas
    eva, tom, rival = both.key("acme", "user"), both.key("acme", "user", user="tom"), both.key("rival", "user")
    kept = "The boiler in the cellar was made in 1974."
    made = ask(one, eva, "POST", "/v1/memory", json={"text": kept}).json()
    for url in both.replicas:
        assert found(url, eva, "/v1/memory/recall", "How old is the boiler?") == [kept]
        for stranger in (tom, rival):
            assert found(url, stranger, "/v1/memory/recall", "How old is the boiler?") == []
    ask(other, eva, "DELETE", f"/v1/memory/{made['id']}")
    for url in both.replicas:
        assert found(url, eva, "/v1/memory/recall", "How old is the boiler?") == []


def test_a_document_of_one_is_found_at_the_other(both: Platform) -> None:
    """Text that one replica has read is searched at the other, by whoever may see it."""
    one, other = both.replicas
    eva, rival = both.key("acme", "user"), both.key("rival", "user")
    text = b"# Terms\n\nGoods are delivered within fourteen days of the order.\n"
    added = ask(one, eva, "POST", "/v1/knowledge?name=terms.md", content=text).json()["document"]
    assert "fourteen days" in found(other, eva, "/v1/knowledge/search", "When are goods delivered?")[0]
    assert found(other, rival, "/v1/knowledge/search", "When are goods delivered?") == []
    ask(other, eva, "DELETE", f"/v1/knowledge/{added['id']}")
    assert found(one, eva, "/v1/knowledge/search", "When are goods delivered?") == []


def test_an_operator_verifies_isolation_where_requests_land_on_both(both: Platform) -> None:
    """`aibox verify isolation` through nginx: nothing crosses, and rows, caches, memory and documents are tried."""
    report = both.folder / "isolation.json"
    command = [sys.executable, "-m", "aibox", "verify", "isolation", "--url", both.url, "--report", str(report)]
    command += ["--config", str(both.folder / "a" / "aibox.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    read = IsolationReport.read(report)
    assert read.count("crossed") == 0
    held = {row.area for row in read.rows if row.outcome == "held"}
    assert held >= {"audit", "caches", "database", "knowledge", "memory", "receipts", "sessions", "streams"}, held
    assert json.loads(report.read_text())["receipt"] is not None
    again = subprocess.run(
        [sys.executable, "-m", "aibox", "verify", str(report)], capture_output=True, text=True, timeout=300
    )
    assert again.returncode == 0, again.stdout + again.stderr
