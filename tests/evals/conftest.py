"""What these tests share: a chain, and an agent whose parts are the real ones but for the model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import aibox


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[aibox.AuditChain]:
    async with aibox.AuditChain(tmp_path / "audit.db") as chain:
        yield chain
