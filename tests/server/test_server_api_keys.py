"""API keys: shown once, kept as hashes, scoped, ending; and who may ask what."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aibox.errors import AccessError, AuthError, ConfigError
from aibox.server.api_keys import DAY_S, USED_EVERY_S, ApiKeys
from aibox.server.auth import Callers
from aibox.server.principal import Role
from aibox.types import Scope

pytestmark = pytest.mark.anyio

SCOPE = Scope(tenant="acme", user="nightly")
NOW = 1_800_000_000


class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def keys(shared_place: Path | str, clock: Clock) -> AsyncIterator[ApiKeys]:
    keys = ApiKeys(shared_place, clock=clock)
    yield keys
    await keys.close()


async def test_a_key_is_its_tenants_and_not_kept(keys: ApiKeys, shared_place: Path | str) -> None:
    """It tells tenant, user and roles; the secret is in no file, and the file is the owner's alone."""
    key = await keys.create(scope=SCOPE, roles=[Role.SERVICE, Role.AUDITOR], note="nightly report")
    found = await keys.authenticate(key)
    assert found is not None
    assert (found.scope, found.roles) == (SCOPE, {Role.SERVICE, Role.AUDITOR})
    secret = key.split("-", 2)[2].encode()
    if isinstance(shared_place, str):
        return
    for file in shared_place.parent.iterdir():
        assert secret not in file.read_bytes()
        assert file.stat().st_mode & 0o077 == 0
    await keys.close()


@pytest.mark.parametrize("change", ["secret", "id", "revoked", "ended"])
async def test_every_refusal_reads_alike(change: str, keys: ApiKeys, clock: Clock) -> None:
    """Unknown, wrong, revoked and ended cannot be told apart by whoever guesses."""
    key = await keys.create(scope=SCOPE, days=1)
    prefix, id_, secret = key.split("-", 2)
    other = {
        "secret": f"{prefix}-{id_}-{'A' * 43}",
        "id": f"{prefix}-{'0' * 12}-{secret}",
    }.get(change, key)
    if change == "revoked":
        assert await keys.revoke(id_, tenant="acme")
    if change == "ended":
        clock.now += DAY_S
    with pytest.raises(AuthError, match="unknown, was revoked or has ended"):
        await keys.authenticate(other)


async def test_another_tenant_can_neither_see_nor_end_a_key(keys: ApiKeys) -> None:
    """Listing, revoking and rotating are a tenant's own."""
    key = await keys.create(scope=SCOPE)
    id_ = key.split("-")[1]
    assert await keys.list("rival") == []
    assert not await keys.revoke(id_, tenant="rival")
    with pytest.raises(ConfigError):
        await keys.rotate(id_, tenant="rival")
    assert await keys.authenticate(key)


async def test_a_rotated_key_overlaps_and_then_ends(keys: ApiKeys, clock: Clock) -> None:
    """Both work for a day, so that a program can be changed without a gap; then only the new one does."""
    old = await keys.create(scope=SCOPE, days=30)
    new = await keys.rotate(old.split("-")[1], tenant="acme", overlap_days=1)
    assert await keys.authenticate(old)
    assert await keys.authenticate(new)
    clock.now += DAY_S
    with pytest.raises(AuthError):
        await keys.authenticate(old)
    assert await keys.authenticate(new)


async def test_a_key_that_was_made_for_a_second_can_be_renewed_and_none_is_made_for_less(keys: ApiKeys) -> None:
    """What lives for nothing would be no key, and could not be given a successor that lives as long."""
    short = await keys.create(scope=SCOPE, days=1 / DAY_S)
    assert await keys.authenticate(await keys.rotate(short.split("-")[1], tenant="acme")) is not None
    for days in (0.4 / DAY_S, 0.0, -1.0, 3651.0, float("nan")):
        with pytest.raises(ConfigError, match="at least a second"):
            await keys.create(scope=SCOPE, days=days)


async def test_last_use_is_known_to_a_minute(keys: ApiKeys, clock: Clock) -> None:
    """The first use is written, a second within the minute is not."""
    key = await keys.create(scope=SCOPE)
    assert (await keys.list("acme"))[0].last_used is None
    await keys.authenticate(key)
    clock.now += USED_EVERY_S - 1
    await keys.authenticate(key)
    assert (await keys.list("acme"))[0].last_used == NOW
    clock.now += 1
    await keys.authenticate(key)
    assert (await keys.list("acme"))[0].last_used == NOW + USED_EVERY_S


async def test_the_local_scope_gets_no_key(keys: ApiKeys) -> None:
    """What belongs to the person at the keyboard is not served."""
    with pytest.raises(ConfigError, match="local scope"):
        await keys.create(scope=Scope.local())


async def test_an_auditor_may_not_ask_a_model(keys: ApiKeys) -> None:
    """Reading evidence is all that the role gives."""
    callers = Callers(keys)
    auditor = await keys.create(scope=SCOPE, roles=[Role.AUDITOR])
    assert (await callers.principal(f"Bearer {auditor}")).roles == {Role.AUDITOR}
    with pytest.raises(AccessError, match="role"):
        await callers.scope(f"Bearer {auditor}")
    service = await keys.create(scope=SCOPE)
    assert await callers.scope(f"bearer {service}") == SCOPE


async def test_the_keys_of_a_person_go_with_them(keys: ApiKeys, shared_place: Path | str) -> None:
    """They open nothing any more, and no name or note of theirs is left; others' keys are as they were."""
    eva, ben = Scope(tenant="acme", user="eva"), Scope(tenant="acme", user="ben")
    gone = await keys.create(scope=eva, note="evas-laptop", scopes=["inference"], models=["small"])
    stay = [await keys.create(scope=scope) for scope in (ben, Scope(tenant="rival", user="eva"))]
    assert await keys.erase(scope=SCOPE, subject="eva") == 1
    with pytest.raises(AuthError):
        await keys.authenticate(gone)
    for key in stay:
        assert await keys.authenticate(key)
    assert [key.scope.user for key in await keys.list("acme")] == ["ben"]
    if isinstance(shared_place, Path):
        for file in shared_place.parent.glob(f"{shared_place.name}*"):
            assert b"evas-laptop" not in file.read_bytes()
    assert await keys.erase(scope=SCOPE) == 1
    assert await keys.authenticate(stay[1])


async def test_a_key_is_ended_by_whoever_ends_or_erases_it_and_not_by_its_time(keys: ApiKeys, clock: Clock) -> None:
    """So what runs with it is broken off; another tenant's key of the same id says nothing about it."""
    made = [await keys.create(scope=Scope(tenant="acme", user=user), days=1) for user in ("eva", "eva", "ben")]
    stays, revoked, erased = (key.split("-")[1] for key in made)
    clock.now += 2 * DAY_S
    asked = {"acme": [stays, revoked, erased]}
    assert await keys.ended(asked) == set()
    await keys.revoke(revoked, tenant="acme")
    await keys.erase(scope=SCOPE, subject="ben")
    assert await keys.ended(asked) == {revoked, erased}
    assert await keys.ended({"rival": [stays]}) == {stays}


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "aibox-0-0", "Bearer  "])
async def test_what_is_no_bearer_token_is_refused(header: str, keys: ApiKeys) -> None:
    """No header, another scheme, an empty token: 401."""
    with pytest.raises(AuthError):
        await Callers(keys).principal(header)


async def test_a_key_says_what_it_is_for(keys: ApiKeys) -> None:
    """Scopes and models are there again, also of the key in its place; one that names none is for everything."""
    key = await keys.create(scope=SCOPE, scopes=["inference", "memory:read"], models=["small", "big/m"])
    found = await keys.authenticate(key)
    assert found is not None
    assert (found.scopes, found.models) == ({"inference", "memory:read"}, {"small", "big/m"})
    after = await keys.authenticate(await keys.rotate(key.split("-")[1], tenant="acme"))
    assert after is not None
    assert (after.scopes, after.models) == (found.scopes, found.models)
    wide = await keys.authenticate(await keys.create(scope=SCOPE))
    assert wide is not None
    assert (wide.scopes, wide.models) == (None, None)
    assert sorted(str(key.scopes and sorted(key.scopes)) for key in await keys.list("acme")) == [
        "None", "['inference', 'memory:read']", "['inference', 'memory:read']",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change", ["DELETE FROM key_scopes", "UPDATE key_scopes SET scopes = 'admin'", "UPDATE key_scopes SET models = ''"]
)
async def test_a_narrow_key_of_which_it_is_lost_what_it_is_for_opens_nothing(keys: ApiKeys, change: str) -> None:
    """Also to a server of before there were scopes, which takes the hash of the secret alone; wide ones stay."""
    narrow = await keys.create(scope=SCOPE, scopes=["inference"], models=["small"])
    wide = await keys.create(scope=SCOPE)
    assert await keys.authenticate(narrow)
    for key, alone in ((narrow, False), (wide, True)):
        _, id_, secret = key.split("-", 2)
        (row,) = await keys._run("acme", "SELECT hash FROM keys WHERE id = ?", id_)
        assert (bytes(row[0]) == hashlib.sha256(secret.encode()).digest()) is alone
    await keys._run("acme", change)
    with pytest.raises(AuthError, match="unknown, was revoked or has ended"):
        await keys.authenticate(narrow)
    assert await keys.authenticate(wide)


@pytest.mark.parametrize(
    ("narrow", "says"),
    [
        ({"scopes": ["everything"]}, "no scope 'everything'"),
        ({"models": ["m"]}, "not for agents"),
        ({"scopes": ["agents", "inference"], "models": ["m"]}, "not for agents"),
        ({"scopes": ["inference"], "models": ["two words"]}, "no spaces"),
    ],
)
async def test_a_key_that_would_be_wider_than_it_looks_is_not_made(
    keys: ApiKeys, narrow: dict[str, list[str]], says: str
) -> None:
    """A scope that is not there, and models beside agents, which choose models of their own."""
    with pytest.raises(ConfigError, match=says):
        await keys.create(scope=SCOPE, **narrow)
    assert await keys.list("acme") == []
