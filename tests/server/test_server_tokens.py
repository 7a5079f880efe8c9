"""Access tokens: what RFC 8725 and RFC 9068 ask for, attack by attack. Keys are real; only the clock is scripted."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import anyio
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from aibox.errors import AccessError, AuthError, UpstreamError
from aibox.server.jwks import COOLDOWN_S, FRESH_S, STALE_S, KeySet
from aibox.server.principal import Role
from aibox.server.tokens import MAX_LIFETIME_S, Tokens
from aibox.settings_server import IssuerSettings

pytestmark = pytest.mark.anyio

ISSUER = "https://id.example.org/realms/acme"
OTHER = "https://id.example.net"
NOW = 1_800_000_000
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RSA_2 = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, kid: str, alg: str) -> dict[str, Any]:
    kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**json.loads(kind.to_jwk(key.public_key())), "kid": kid, "alg": alg, "use": "sig"}


class Provider:
    """The documents of two issuers, and how often they were asked for. Its answers stand where HTTP would."""

    def __init__(self) -> None:
        self.keys = {ISSUER: [jwk(RSA, "k1", "RS256")], OTHER: [jwk(RSA_2, "k1", "RS256")]}
        self.asked: list[str] = []
        self.down = False
        self.jwks_uri: str | None = None
        """In the place of the right one."""

    async def get(self, url: str, *, correlation: str = "") -> dict[str, Any]:
        self.asked.append(url)
        await anyio.sleep(0)
        if self.down:
            raise UpstreamError(f"{url} cannot be asked")
        for issuer, keys in self.keys.items():
            if url == f"{issuer}/.well-known/openid-configuration":
                return {"issuer": issuer, "jwks_uri": self.jwks_uri or f"{issuer}/jwks"}
            if url == f"{issuer}/jwks":
                return {"keys": keys}
        raise UpstreamError(f"{url} answered 404")


def claims(**changes: Any) -> dict[str, Any]:
    plain = {
        "iss": ISSUER, "sub": "u-17", "aud": "aibox", "client_id": "web", "jti": "1", "tenant": "acme",
        "roles": ["user", "root"], "iat": NOW - 10, "exp": NOW + 300,
    }  # fmt: skip
    return {name: value for name, value in {**plain, **changes}.items() if value is not ...}


def sign(body: dict[str, Any] | None = None, *, key: Any = RSA, alg: str = "RS256", **header: Any) -> str:
    headers = {"typ": "at+jwt", "kid": "k1", **header}
    return jwt.encode(body or claims(), key, algorithm=alg, headers={k: v for k, v in headers.items() if v is not ...})


def raw(header: Any, body: Any, signature: bytes = b"x") -> str:
    """A token put together by hand, without the manners of a library."""
    parts = [h if isinstance(h, bytes) else json.dumps(h).encode() for h in (header, body)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, signature))


class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(provider: Provider, clock: Clock) -> Tokens:
    issuers = [IssuerSettings(issuer=ISSUER, audience="aibox"), IssuerSettings(issuer=OTHER, audience="aibox")]
    return Tokens(issuers, http=provider, clock=clock)


async def test_a_good_token_tells_tenant_user_and_known_roles(tokens: Tokens) -> None:
    """The tenant is the claim's, the user the subject, and a role that nobody knows gives nothing."""
    found = await tokens.authenticate(sign())
    assert found is not None
    assert (found.scope.tenant, found.scope.user, found.roles) == ("acme", "u-17", frozenset({Role.USER}))
    assert found.how == ISSUER


async def test_what_is_no_token_is_left_to_others(tokens: Tokens) -> None:
    """An API key is not a broken token."""
    assert await tokens.authenticate("aibox-local-x") is None


PEM = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _hmac_with(secret: bytes) -> str:
    import hashlib
    import hmac

    head = raw({"alg": "HS256", "typ": "at+jwt", "kid": "k1"}, claims()).rsplit(".", 1)[0]
    mac = hmac.new(secret, head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


FORGED: dict[str, Callable[[], str]] = {
    "alg none": lambda: raw({"alg": "none", "typ": "at+jwt", "kid": "k1"}, claims(), b""),
    "alg None": lambda: raw({"alg": "None", "typ": "at+jwt", "kid": "k1"}, claims(), b""),
    "alg nOnE": lambda: raw({"alg": "nOnE", "typ": "at+jwt", "kid": "k1"}, claims(), b""),
    "no alg": lambda: raw({"typ": "at+jwt", "kid": "k1"}, claims()),
    "alg a list": lambda: raw({"alg": ["RS256"], "typ": "at+jwt", "kid": "k1"}, claims()),
    "HS256 with the public PEM": lambda: _hmac_with(PEM),
    "HS256 with the stripped PEM": lambda: _hmac_with(PEM.strip()),
    "HS256 with the JWK": lambda: _hmac_with(json.dumps(jwk(RSA, "k1", "RS256")).encode()),
    "PS256 where RS256 is agreed": lambda: sign(alg="PS256"),
    "ES256 where RS256 is agreed": lambda: sign(key=EC, alg="ES256"),
    "another key under the same kid": lambda: sign(key=RSA_2),
    "the key of issuer B with the name of A": lambda: sign(claims(iss=ISSUER), key=RSA_2),
    "an unknown kid": lambda: sign(kid="k9"),
    "no kid": lambda: sign(kid=...),
    "a kid that is a path": lambda: sign(kid="../../etc/passwd"),
    "a kid that is SQL": lambda: sign(kid="k1' OR '1'='1"),
    "a kid of a megabyte": lambda: sign(kid="k" * 10_000),
    "a kid that is a number": lambda: raw({"alg": "RS256", "typ": "at+jwt", "kid": 1}, claims()),
    "crit": lambda: sign(crit=["exp"]),
    "crit b64": lambda: sign(crit=["b64"], b64=False),
    "its own key in jwk": lambda: sign(key=RSA_2, jwk=jwk(RSA_2, "k1", "RS256"), kid="own"),
    "its own keys at jku": lambda: sign(key=RSA_2, jku="https://evil.example/jwks", kid="own"),
    "typ JWT": lambda: sign(typ="JWT"),
    "no typ": lambda: sign(typ=...),
    "typ of a logout token": lambda: sign(typ="logout+jwt"),
    "issuer with a slash more": lambda: sign(claims(iss=ISSUER + "/")),
    "issuer in capitals": lambda: sign(claims(iss=ISSUER.upper())),
    "issuer that begins alike": lambda: sign(claims(iss=ISSUER + ".evil.example")),
    "issuer that is a list": lambda: raw({"alg": "RS256", "typ": "at+jwt", "kid": "k1"}, claims(iss=[ISSUER])),
    "another audience": lambda: sign(claims(aud="billing")),
    "an audience that contains ours": lambda: sign(claims(aud="aibox-admin")),
    "a list of other audiences": lambda: sign(claims(aud=["billing", "aibox2"])),
    "no audience": lambda: sign(claims(aud=...)),
    "no subject": lambda: sign(claims(sub=...)),
    "no end": lambda: sign(claims(exp=...)),
    "no beginning": lambda: sign(claims(iat=...)),
    "no client": lambda: sign(claims(client_id=...)),
    "no id": lambda: sign(claims(jti=...)),
    "an empty client": lambda: sign(claims(client_id="")),
    "an empty id": lambda: sign(claims(jti="")),
    "expired": lambda: sign(claims(exp=NOW - 31)),
    "not yet valid": lambda: sign(claims(nbf=NOW + 31)),
    "issued in the future": lambda: sign(claims(iat=NOW + 31)),
    "an end that is a text": lambda: sign(claims(exp=str(NOW + 300))),
    "an end that is true": lambda: sign(claims(exp=True)),
    "an end in milliseconds": lambda: sign(claims(exp=NOW * 1000)),
    "an end that is not a number": lambda: sign(claims(exp=float("inf"))),
    "a life of a year": lambda: sign(claims(exp=NOW + MAX_LIFETIME_S + 60)),
    "an ID token by its nonce": lambda: sign(claims(nonce="n")),
    "an ID token by its at_hash": lambda: sign(claims(at_hash="h")),
    "a refresh token": lambda: sign(claims(typ="Refresh")),
    "a duplicate claim": lambda: raw(
        {"alg": "RS256", "typ": "at+jwt", "kid": "k1"}, json.dumps(claims()).encode()[:-1] + b', "tenant": "rival"}'),
    "claims that are a list": lambda: raw({"alg": "RS256", "typ": "at+jwt", "kid": "k1"}, [1]),
    "claims nested deeply": lambda: raw({"alg": "RS256", "typ": "at+jwt", "kid": "k1"}, b"[" * 5000),
    "not base64": lambda: "a%.b%.c%",
    "a truncated signature": lambda: sign()[:-10],
    "a signature of another token": lambda: ".".join((*sign(claims(sub="x")).split(".")[:2], sign().split(".")[2])),
    "a token of a megabyte": lambda: sign(claims(filler="x" * 1_000_000)),
}  # fmt: skip


@pytest.mark.parametrize("attack", FORGED)
async def test_a_token_that_does_not_hold_is_refused(attack: str, tokens: Tokens) -> None:
    """Each is an AuthError, whatever the token says about itself."""
    with pytest.raises(AuthError):
        await tokens.authenticate(FORGED[attack]())


async def test_an_ec_signature_of_zeros_is_refused(provider: Provider, clock: Clock) -> None:
    """r = s = 0 verifies nothing (CVE-2022-21449's class)."""
    provider.keys[ISSUER] = [jwk(EC, "e1", "ES256")]
    tokens = Tokens(
        [IssuerSettings(issuer=ISSUER, audience="aibox", algorithms=("ES256",))], http=provider, clock=clock
    )
    good = sign(key=EC, alg="ES256", kid="e1")
    assert await tokens.authenticate(good)
    with pytest.raises(AuthError):
        await tokens.authenticate(raw({"alg": "ES256", "typ": "at+jwt", "kid": "e1"}, claims(), bytes(64)))


@pytest.mark.parametrize("tenant", [..., "", None, 7, ["acme"], "local", "a b", "../x", "ａcme", "x" * 200, "*\x00"])
async def test_a_token_without_a_tenant_is_403_and_nobodys_default(tenant: Any, tokens: Tokens) -> None:
    """Missing, empty or no name: refused, and never taken from the subject instead."""
    with pytest.raises(AccessError):
        await tokens.authenticate(sign(claims(tenant=tenant)))


@given(st.floats(0, 400))
async def test_a_remembered_token_ends_with_its_own_end(later_s: float) -> None:
    """However often it was seen, a token is believed up to its end and the allowance, and not a moment longer."""
    provider, clock = Provider(), Clock()
    tokens = Tokens([IssuerSettings(issuer=ISSUER, audience="aibox", leeway_s=30)], http=provider, clock=clock)
    token = sign(claims(exp=NOW + 100))
    assert await tokens.authenticate(token)
    clock.now = NOW + later_s
    if later_s < 130:
        assert await tokens.authenticate(token)
    else:
        with pytest.raises(AuthError, match="expired"):
            await tokens.authenticate(token)


async def test_a_clock_that_is_put_back_makes_no_token_believed_for_longer(tokens: Tokens, clock: Clock) -> None:
    """What was remembered at a later time is checked again: a minute by the clock may be hours."""
    token = sign()
    assert await tokens.authenticate(token)
    clock.now -= 900
    with pytest.raises(AuthError, match="not valid yet"):
        await tokens.authenticate(token)


async def test_a_thousand_forged_kids_are_one_question(provider: Provider, tokens: Tokens) -> None:
    """Whoever sends unknown keys cannot make this server flood the issuer; a known key still works."""
    assert await tokens.authenticate(sign())
    before = len(provider.asked)
    outcomes: list[str] = []

    async def forge(number: int) -> None:
        with pytest.raises(AuthError):
            await tokens.authenticate(sign(kid=f"forged-{number}"))
        outcomes.append("refused")

    async with anyio.create_task_group() as group:
        for number in range(1000):
            group.start_soon(forge, number)
    assert len(outcomes) == 1000
    # They were asked for a moment ago.
    assert len(provider.asked) == before
    assert await tokens.authenticate(sign(claims(sub="other")))


async def test_a_rotated_key_that_a_thousand_bring_is_one_question_and_the_answer_of_each(provider: Provider) -> None:
    """Who comes while the issuer is asked waits for what it says, and is not turned away; forged ones wait likewise."""
    keys, answers = Keys(provider), list[str]()
    await keys.set.key("k1")
    keys.now += COOLDOWN_S
    provider.keys[ISSUER] = [jwk(RSA_2, "k2", "RS256")]
    before = len(provider.asked)

    async def ask(kid: str) -> None:
        try:
            answers.append(await keys.set.key(kid))
        except AuthError:
            answers.append("refused")

    async with anyio.create_task_group() as group:
        for number in range(1000):
            group.start_soon(ask, "k2" if number % 2 else f"forged-{number}")
    assert sorted(answers) == ["k2"] * 500 + ["refused"] * 500
    assert len(provider.asked) - before == 1


class Keys:
    """A KeySet over a provider, with a clock of its own."""

    def __init__(self, provider: Provider) -> None:
        self.now = 0.0
        self.set = KeySet(ISSUER, http=provider, parse=lambda found: found["kid"], clock=lambda: self.now)


async def test_a_rotated_key_is_found_and_a_removed_one_is_gone(provider: Provider) -> None:
    """A new key costs one question, and a key that the issuer took away stops working with the next answer."""
    keys = Keys(provider)
    assert await keys.set.key("k1") == "k1"
    keys.now += COOLDOWN_S
    provider.keys[ISSUER] = [jwk(RSA_2, "k2", "RS256")]
    assert await keys.set.key("k2") == "k2"
    with pytest.raises(AuthError):
        await keys.set.key("k1")


async def test_a_key_that_was_taken_away_stops_within_its_time(provider: Provider) -> None:
    """Also when nobody asks for another: what was fetched is not believed for longer than FRESH_S."""
    keys = Keys(provider)
    await keys.set.key("k1")
    provider.keys[ISSUER] = []
    keys.now += FRESH_S
    with pytest.raises(AuthError):
        await keys.set.key("k1")


async def test_an_issuer_that_is_down_is_survived_for_a_while(provider: Provider) -> None:
    """Known keys go on working until STALE_S, then nothing does: closed, with the reason."""
    keys = Keys(provider)
    await keys.set.key("k1")
    provider.down = True
    keys.now = FRESH_S + COOLDOWN_S
    assert await keys.set.key("k1") == "k1"
    keys.now = STALE_S + COOLDOWN_S
    with pytest.raises(UpstreamError):
        await keys.set.key("k1")
    provider.down = False
    keys.now += COOLDOWN_S
    assert await keys.set.key("k1") == "k1"


async def test_keys_that_have_moved_are_looked_for_again(provider: Provider) -> None:
    """Where the address that was discovered fails, the next question is for the document, and not after a restart."""
    keys = Keys(provider)
    provider.jwks_uri = f"{ISSUER}/old"
    with pytest.raises(UpstreamError, match="404"):
        await keys.set.key("k1")
    provider.jwks_uri = None
    keys.now += COOLDOWN_S
    assert await keys.set.key("k1") == "k1"
    document = f"{ISSUER}/.well-known/openid-configuration"
    assert provider.asked == [document, f"{ISSUER}/old", document, f"{ISSUER}/jwks"]


async def test_a_discovery_document_of_another_issuer_is_refused(provider: Provider) -> None:
    """OpenID Connect Discovery 1.0 sec. 4.3: the issuer must be the very same string."""
    keys = KeySet(ISSUER, http=_Liar(), parse=lambda found: found)
    with pytest.raises(UpstreamError, match="another issuer"):
        await keys.key("k1")


@pytest.mark.parametrize(
    "uri",
    ["http://id.example.org/keys", "https://a:b@id.example.org/keys", "https://[bad/keys", "https://x:99999/keys"],
)
async def test_keys_that_a_discovery_document_has_where_nothing_may_be_asked_are_the_issuers_failure(
    provider: Provider, uri: str
) -> None:
    """Nobody goes there, whoever sent a token is told no mistake of theirs, and it holds until it is put right."""
    keys = Keys(provider)
    provider.jwks_uri = uri
    with pytest.raises(UpstreamError, match="the discovery document of"):
        await keys.set.key("k1")
    assert provider.asked == [f"{ISSUER}/.well-known/openid-configuration"]
    provider.jwks_uri = None
    keys.now += COOLDOWN_S
    assert await keys.set.key("k1") == "k1"


class _Liar:
    async def get(self, url: str, *, correlation: str = "") -> dict[str, Any]:
        return {"issuer": OTHER, "jwks_uri": f"{OTHER}/jwks"}
