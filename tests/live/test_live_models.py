"""Two replicas that stage one model from one bucket: the same weights behind the same answers, or none."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from seaweed import ACCESS_KEY, SECRET_KEY, put, seaweed
from services import OF_TWO, Platform, two_replicas, until_ready

from aibox.audit.chain import AuditChain
from aibox.inference import demo_model

MODEL = demo_model.find()
pytestmark = [*OF_TWO, pytest.mark.skipif(MODEL is None, reason="the demo model is not installed: make setup")]

BACKENDS = """
[[backends]]
kind = "embedded"
name = "chat"
staged = "small"

[[backends]]
kind = "embedded"
name = "vectors"
staged = "small"
pooling = "mean"
"""
CHAT: dict[str, Any] = {"model": "chat/small", "temperature": 0, "max_tokens": 24}
CHAT["messages"] = [{"role": "user", "content": "Name three rivers."}]
VECTORS = {"model": "vectors/small", "input": ["The boiler is old.", "Rivers run to the sea."]}


def weights_of_ours() -> bytes:
    """The demo model's, with a tail that nobody reads: aibox knows the digest of that file by itself, not of this."""
    assert MODEL is not None
    return MODEL.read_bytes() + bytes(32)


def models(config: Path, *words: str) -> str:
    """What `aibox models` prints, run where a replica keeps its files."""
    command = [sys.executable, "-m", "aibox", "models", *words, "--config", str(config)]
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    env = {**os.environ, **keys, "AIBOX_HOME": str(config.parent)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """The words of `aibox models` that stage the model in it."""
    assert MODEL is not None
    with seaweed(tmp_path_factory.mktemp("weed")) as endpoint:
        put(endpoint, "/models", b"")
        put(endpoint, f"/models/org/small/{MODEL.name}", weights_of_ours())
        yield "stage", "s3://models/org/small", "--endpoint", endpoint


@pytest.fixture(scope="module")
def both(
    bucket: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory, postgres_copy: Callable[[], str]
) -> Iterator[Platform]:
    told: list[str] = []
    folder = tmp_path_factory.mktemp("two that stage")
    before = lambda config: told.append(models(config, *bucket))  # noqa: E731 - short
    with two_replicas(folder, postgres_copy(), backends=BACKENDS, before=before) as made:
        # One manifest, down to its digest, which each has signed.
        assert told[0] == told[1] != ""
        yield made


def ask(url: str, key: str, path: str, body: Any, name: str) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}", "x-correlation-id": name}
    return httpx2.post(url + path, json=body, headers=headers, timeout=120)


async def weights(both: Platform, *names: str) -> set[tuple[str, str]]:
    """What is on record of the weights that answered these requests."""
    async with AuditChain(both.database, keys=both.keys) as chain:
        ends = [entry.detail async for entry in chain.entries("acme") if entry.kind == "turn.sealed"]
    found = [one for one in ends if one.get("correlation") in names]
    assert len(found) == len(names)
    return {(str(one["weights"]), str(one["weights_sha256"])) for one in found}


def test_both_answer_from_the_weights_in_the_bucket(both: Platform) -> None:
    """The same words and the same vectors, and each answer's entry names the digest of the bucket's object."""
    key = both.key("acme", "user")
    texts, vectors, names = [], [], []
    for name, url in zip("ab", both.replicas, strict=True):
        names += [f"the-chat-{name}", f"the-vectors-{name}"]
        said = ask(url, key, "/v1/chat/completions", CHAT, names[-2])
        texts.append(said.json()["choices"][0]["message"]["content"])
        made = ask(url, key, "/v1/embeddings", VECTORS, names[-1])
        vectors.append([one["embedding"] for one in made.json()["data"]])
    assert texts[0] == texts[1] != ""
    assert vectors[0] == vectors[1]
    assert vectors[0][0] != vectors[0][1]
    known = ("verified", hashlib.sha256(weights_of_ours()).hexdigest())
    assert asyncio.run(weights(both, *names)) == {known}


def test_a_replica_whose_copy_was_changed_does_not_answer_from_it(both: Platform, bucket: tuple[str, ...]) -> None:
    """After one byte on its disk it refuses, and the other answers; staged anew it answers as that one does."""
    key, (one, other) = both.key("acme", "user"), both.replicas
    config = both.folder / "b" / "aibox.toml"
    (copy,) = (config.parent / "models" / "small").glob("*.gguf")
    wanted = ask(one, key, "/v1/embeddings", VECTORS, "before").json()["data"]

    def again(do: Callable[[], object]) -> httpx2.Response:
        both.processes["b"].terminate()
        both.processes["b"].wait(60)
        do()
        both.start("b")
        until_ready(other, lambda: both.log("b"), both.processes["b"])
        return ask(other, key, "/v1/embeddings", VECTORS, "after")

    def flip() -> None:
        with copy.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))

    def stage_anew() -> None:
        models(config, "remove", "small")
        models(config, *bucket)

    try:
        refused = again(flip)
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "config.operator")
        assert copy.name not in refused.text
        assert ask(one, key, "/v1/embeddings", VECTORS, "meanwhile").json()["data"] == wanted
    finally:
        answered = again(stage_anew)
    assert answered.json()["data"] == wanted
