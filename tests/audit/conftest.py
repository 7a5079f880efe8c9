"""The log's tables in the PostgreSQL of this test run."""

from __future__ import annotations

import pytest


@pytest.fixture
def postgres_url(postgres_owner: str) -> str:
    """The log's tables, as the role that writes them."""
    from aibox.audit.postgres import prepare

    prepare(postgres_owner, role="writer")
    return postgres_owner.replace("owner@", "writer@")
