"""A model file that does not chat, in process: vectors and scores, in the fields' own JSON."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aibox.chat import ChatRequest
from aibox.errors import BackendError, ConfigError
from aibox.inference.embedded import Embedded
from aibox.inference.gguf import Header, read_header
from aibox.inference.pooled import pooling_of, task_of
from aibox.inference.router import Router
from aibox.types import Scope

pytestmark = pytest.mark.anyio


@pytest.fixture
async def vectors(model_file: Path) -> AsyncIterator[Router]:
    # Any model gives vectors; those of one that was made to chat are poor, and of the same shape.
    router = Router(Embedded(model_file, name="v", context_tokens=256, pooling="mean", model_id="vectors"))
    yield router
    await router.close()


async def test_a_model_file_embeds(vectors: Router, scope: Scope) -> None:
    """One vector of unit length a text, by role, alike for like texts; in the official client's base64 too."""
    same, also, other = await vectors.embed(["Paris is a city.", "Paris is a city.", "17 + 4"], scope=scope)
    assert math.isclose(math.fsum(x * x for x in same), 1.0, rel_tol=1e-3)
    assert math.dist(same, also) < 1e-3 < math.dist(same, other)
    made = await vectors.openai(scope=scope).embeddings.create(model="vectors", input="Paris is a city.")
    assert math.dist(made.data[0].embedding, same) < 1e-3
    assert made.usage.prompt_tokens > 2
    spent = await vectors.accounts.spent(scope.tenant)
    assert spent.calls == 2


async def test_what_it_cannot_do_is_refused_before_anything_is_sent(
    vectors: Router, model_file: Path, scope: Scope
) -> None:
    """The registry says what a file is for: an embedder does not chat, and a model that chats does not embed."""
    (info,) = await vectors.models()
    assert info.capabilities == {"embeddings"}
    with pytest.raises(ConfigError, match="cannot do what is asked: chat"):
        await vectors.complete("Hello?", model="vectors", scope=scope)
    with pytest.raises(ConfigError, match="cannot do what is asked: rerank"):
        await vectors.post("rerank", ChatRequest({"model": "vectors", "query": "a", "documents": ["b"]}), scope=scope)
    chats = Embedded(model_file)
    for api in ("embeddings", "rerank", "completions", "responses"):
        with pytest.raises(ConfigError, match=f"has no /{api}"):
            await chats.post(api, ChatRequest({"input": "x", "query": "x", "documents": ["x"]}), scope=scope)  # type: ignore[arg-type]
    assert chats._loaded is None
    await chats.close()


@pytest.mark.parametrize(
    "body", [{"input": [1, 2]}, {"input": [""]}, {"input": {}}, {"input": ["a", 1]}, {"input": "a", "dimensions": 3}]
)
async def test_what_are_no_texts_is_refused(vectors: Router, scope: Scope, body: dict[str, Any]) -> None:
    """Token ids of another tokenizer, an empty text, a number of dimensions that it has not."""
    with pytest.raises(ConfigError):
        await vectors.post("embeddings", ChatRequest({"model": "vectors", **body}), scope=scope)


async def test_a_text_that_is_too_long_is_an_error_that_says_so(vectors: Router, scope: Scope) -> None:
    """It is not cut off without a word, and the next text is embedded."""
    with pytest.raises(BackendError, match="longer than the context"):
        await vectors.embed(["word " * 1000], scope=scope)
    assert len(await vectors.embed(["word"], scope=scope)) == 1


async def test_leaving_ends_the_work_between_two_texts(vectors: Router, scope: Scope) -> None:
    """A caller who goes does not keep the engine busy with what nobody waits for."""
    await vectors.embed(["warm"], scope=scope)
    many = asyncio.create_task(vectors.embed(["some words to embed"] * 100_000, scope=scope))
    await asyncio.sleep(0.2)
    many.cancel()
    with pytest.raises(asyncio.CancelledError):
        await many
    async with asyncio.timeout(30):
        assert len(await vectors.embed(["next"], scope=scope)) == 1


async def test_documents_are_ranked(model_file: Path, scope: Scope) -> None:
    """Every document has a score, the best comes first, and `top_n` of them are given. Here they mean nothing."""
    router = Router(Embedded(model_file, name="r", context_tokens=256, pooling="rank", model_id="ranks"))
    body = {"model": "ranks", "query": "What eats grass?", "documents": ["Cows do.", "Paris is a city.", "17 + 4"]}
    whole = (await router.post("rerank", ChatRequest(body), scope=scope)).body["results"]
    assert sorted(one["index"] for one in whole) == [0, 1, 2]
    assert [one["relevance_score"] for one in whole] == sorted((o["relevance_score"] for o in whole), reverse=True)
    top = (await router.post("rerank", ChatRequest({**body, "top_n": 1}), scope=scope)).body["results"]
    assert [one["index"] for one in top] == [whole[0]["index"]]
    for wrong in ({"documents": []}, {"documents": "x"}, {"documents": [1]}, {"top_n": 0}):
        with pytest.raises(ConfigError):
            await router.post("rerank", ChatRequest({**body, **wrong}), scope=scope)
    await router.close()


def test_a_file_says_what_it_is_for(tmp_path: Path) -> None:
    """The header's pooling decides, and the operator before it; a file that says none, or `none`, chats."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def header(pooling: int) -> Header:
        pairs = [text("general.architecture") + struct.pack("<I", 8) + text("bert")]
        pairs.append(text("bert.pooling_type") + struct.pack("<II", 4, pooling))
        (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs))
        return read_header(tmp_path / "m.gguf")

    tasks = {pooling: task_of(pooling_of(header(pooling), None)) for pooling in range(6)}
    assert tasks == {0: "chat", 1: "embeddings", 2: "embeddings", 3: "embeddings", 4: "rerank", 5: "chat"}
    assert task_of(pooling_of(header(1), "rank")) == "rerank"
    assert task_of(pooling_of(Header(), None)) == "chat"
    with pytest.raises(ConfigError, match="pooling is one of"):
        pooling_of(Header(), "max")  # type: ignore[arg-type]  # what a caller may type
