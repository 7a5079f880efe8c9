"""The bubblewrap driver holds what every driver must."""

from __future__ import annotations

import pytest

from aibox.protocols import Driver
from aibox.sandbox.bubblewrap import Bubblewrap
from aibox.testing.driver_contract import DriverContract


class TestBubblewrap(DriverContract):
    @pytest.fixture
    def driver(self) -> Driver:
        return Bubblewrap()
