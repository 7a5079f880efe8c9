"""A tenant with many callers and one with a single caller, before a model server that takes a few calls at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from server_parts import Upstream, serving
from test_server_shut import make

from aibox.server.principal import Role

NOISY, AT_ONCE = 40, 2


@pytest.mark.loopback
def test_a_noisy_tenant_does_not_hold_a_quiet_one_up(tmp_path: Path) -> None:
    """The quiet tenant's call, the last to come of 41, is with the model before a quarter of the noisy one's."""
    upstream = Upstream()
    with serving(tmp_path, upstream, server='api_keys = "keys.db"\n', backend=f"calls_at_once = {AT_ONCE}\n") as server:
        noisy, quiet = (make(server.home, tenant, "eva") for tenant in ("noisy", "quiet"))
        operator = make(server.home, "ours", "root", Role.PLATFORM_ADMIN)

        def wait_for(calls: int) -> None:
            told = f"aibox_requests_under_way {calls + 1}\n"
            server.until(lambda: told in server.send("GET", "/metrics", key=operator).read().decode())

        statuses: list[int] = []

        def ask(text: str, key: str) -> None:
            statuses.append(server.ask(text, key=key).status)

        many = [threading.Thread(target=ask, args=(f"HOLD {number}", noisy)) for number in range(NOISY)]
        for thread in many:
            thread.start()
        server.until(lambda: upstream.begun == AT_ONCE)
        wait_for(NOISY)
        one = threading.Thread(target=ask, args=("quiet", quiet))
        one.start()
        wait_for(NOISY + 1)
        assert len(upstream.asked) == AT_ONCE
        upstream.release.set()
        for thread in (*many, one):
            thread.join(60)
        assert statuses == [200] * (NOISY + 1)
        # Its turn is the next but one; a few short calls may overtake it on its way to the model, and not the forty.
        assert upstream.asked.index("quiet") <= NOISY // 4
    upstream.close()
