"""What every Erasable keeps to. A store of your own runs this suite by subclassing it and overriding what is marked."""

from __future__ import annotations

import pytest

from aibox.protocols import Erasable
from aibox.types import Scope

EVA = Scope(tenant="contract", user="eva")
BEN = Scope(tenant="contract", user="ben")
RIVAL = Scope(tenant="rival", user="eva")


class ErasableContract:
    """Override the fixture `store`, `plant` (keep something of a scope's user) and `held` (is it still there)."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def store(self) -> Erasable:
        raise NotImplementedError("override the fixture `store` and return the store under test")

    async def plant(self, store: Erasable, scope: Scope) -> None:
        raise NotImplementedError("keep something of the scope's user")

    async def held(self, store: Erasable, scope: Scope) -> bool:
        raise NotImplementedError("whether what was planted for the scope can be had")

    @pytest.mark.anyio
    async def test_one_person_goes_and_the_others_stay(self, store: Erasable) -> None:
        """The same user name in another tenant is another person, and so is another user of the same tenant."""
        for scope in (EVA, BEN, RIVAL):
            await self.plant(store, scope)
        assert await store.erase(scope=EVA, subject="eva") >= 1
        assert [await self.held(store, scope) for scope in (EVA, BEN, RIVAL)] == [False, True, True]

    @pytest.mark.anyio
    async def test_a_tenant_goes_whole(self, store: Erasable) -> None:
        """Without a subject everybody of the tenant is forgotten, and nobody of another."""
        for scope in (EVA, BEN, RIVAL):
            await self.plant(store, scope)
        await store.erase(scope=EVA)
        assert [await self.held(store, scope) for scope in (EVA, BEN, RIVAL)] == [False, False, True]

    @pytest.mark.anyio
    async def test_erasing_again_finds_nothing(self, store: Erasable) -> None:
        """It can be repeated, and says that there was nothing more; so it is for somebody who was never there."""
        await self.plant(store, EVA)
        await store.erase(scope=EVA, subject="eva")
        assert await store.erase(scope=EVA, subject="eva") == 0
        assert await store.erase(scope=EVA, subject="nobody") == 0
