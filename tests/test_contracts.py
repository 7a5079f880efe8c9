"""The built-in parts hold the contracts that a plugin's parts are held to, where no suite of their own runs them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

import aibox
from aibox.guardrails.pseudonyms import Pseudonyms
from aibox.memory.memory import Memory
from aibox.protocols import Erasable, Recorder, Tool
from aibox.testing.erasable_contract import ErasableContract
from aibox.testing.recorder_contract import RecorderContract
from aibox.testing.tool_contract import ToolContract
from aibox.types import Scope


class TestAuditChainRecords(RecorderContract):
    @pytest.fixture
    async def recorder(self, tmp_path: Path) -> AsyncIterator[Recorder]:
        async with aibox.AuditChain(tmp_path / "audit.db") as chain:
            yield chain


@aibox.tool
def owed(customer: str, currency: str = "EUR") -> float:
    """Open invoices of a customer."""
    return 1240.5


class TestFunctionTool(ToolContract):
    arguments: ClassVar[Mapping[str, Any]] = {"customer": "Acme"}

    @pytest.fixture
    def tool(self) -> Tool:
        return owed


class TestPseudonymsErase(ErasableContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Erasable]:
        pseudonyms = Pseudonyms(tmp_path / "vault.db", key=bytes(32))
        yield pseudonyms
        await pseudonyms.close()

    async def plant(self, store: Erasable, scope: Scope) -> None:
        assert isinstance(store, Pseudonyms)
        self.tokens = getattr(self, "tokens", {})
        [self.tokens[scope]] = await store.tokens([("EMAIL", f"{scope.user}@{scope.tenant}.example")], scope=scope)

    async def held(self, store: Erasable, scope: Scope) -> bool:
        assert isinstance(store, Pseudonyms)
        return "@" in await store.restore(self.tokens[scope], scope=scope)


class TestMemoryErases(ErasableContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Erasable]:
        memory = Memory(tmp_path / "memory")
        yield memory
        await memory.close()

    async def plant(self, store: Erasable, scope: Scope) -> None:
        assert isinstance(store, Memory)
        await store.remember(f"{scope.user} of {scope.tenant} likes tea", scope=scope)

    async def held(self, store: Erasable, scope: Scope) -> bool:
        assert isinstance(store, Memory)
        return bool(await store.list(scope=scope))
