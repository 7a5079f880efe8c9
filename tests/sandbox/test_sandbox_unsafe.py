"""The driver without isolation: it holds what of the contract can hold, says what cannot, and is never chosen."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from sandbox_abuses import running

import aibox
from aibox.audit.chain import AuditChain
from aibox.errors import ConfigError, SandboxError
from aibox.protocols import Driver
from aibox.sandbox.sandbox import Sandbox
from aibox.settings_parts import SandboxSettings
from aibox.testing import UnsafeLocalDriver
from aibox.testing.driver_contract import DriverContract
from aibox.testing.unsafe_local import NOT_HELD
from aibox.types import Scope


class TestUnsafeLocalDriver(DriverContract):
    @pytest.fixture
    def driver(self, request: pytest.FixtureRequest) -> Driver:
        if (why := NOT_HELD.get(request.function.__name__)) is not None:
            pytest.skip(f"does not hold: {why}")
        return UnsafeLocalDriver()


def test_what_does_not_hold_is_named_by_the_contract() -> None:
    """Each exception is a test that exists, with a reason."""
    assert all(callable(getattr(DriverContract, name)) and why for name, why in NOT_HELD.items())


def test_no_name_and_no_setting_chooses_it() -> None:
    """It is handed over as an object or not used: there is no word for it, and aibox itself does not hand it on."""
    for name in ("unsafe-local", "UnsafeLocalDriver", "unsafe", "local"):
        with pytest.raises(ConfigError):
            Sandbox(name)
        with pytest.raises(ValidationError):
            SandboxSettings.model_validate({"driver": name})
    assert "UnsafeLocalDriver" not in aibox.__all__


@pytest.mark.anyio
async def test_it_says_and_records_that_it_is_unsafe(scope: Scope, tmp_path: Path) -> None:
    """It is never available, and every session of it stands in the evidence as not isolated."""
    async with AuditChain(tmp_path / "audit.db") as chain:
        sandbox = Sandbox(UnsafeLocalDriver(), audit=chain)
        health = await sandbox.available()
        assert not health.ok
        assert "isolates nothing" in health.detail
        async with sandbox.session(scope=scope) as session:
            assert (await session.python("6 * 7")).value == "42"
        await sandbox.close()
        [started] = [entry async for entry in chain.entries(scope.tenant) if entry.kind == "sandbox.started"]
    assert (started.detail["driver"], started.detail["isolated"]) == ("unsafe-local", False)
    assert "rights" in started.detail["unsafe"]


@pytest.mark.anyio
async def test_closing_ends_orphans_and_removes_the_folder(scope: Scope) -> None:
    """Also while a run is going on: what left its parent and its process group is gone with the session."""
    marker = f"9{time.monotonic_ns()}"
    sandbox = Sandbox(UnsafeLocalDriver())
    session = await sandbox.open(scope=scope)
    folder = Path((await session.bash("pwd")).stdout.strip())
    assert folder.is_dir()

    def end(stream: str, text: str) -> None:
        raise KeyError(text)

    with pytest.raises(KeyError):
        await session.bash(f"(setsid sleep {marker} &); sleep 0.1; echo ready; sleep 30", on_output=end)
    await session.close()
    assert not running(marker)
    assert not folder.exists()
    with pytest.raises(SandboxError):
        await session.bash("true")
