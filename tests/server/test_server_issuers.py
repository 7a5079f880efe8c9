"""What an operator says of an issuer holds for its tokens, and for no other's: audience, algorithms, claims, clocks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.warnings import InsecureKeyLengthWarning
from test_server_tokens import ISSUER, NOW, OTHER, RSA, RSA_2, Clock, Provider, claims, jwk, sign

from aibox.errors import AccessError, AuthError, ConfigError
from aibox.server.principal import Role
from aibox.server.tokens import Tokens
from aibox.settings import Settings
from aibox.settings_server import IssuerSettings

pytestmark = pytest.mark.anyio

RSA_1024 = rsa.generate_private_key(public_exponent=65537, key_size=1024)


def held(*, provider: Provider | None = None, **settings: Any) -> Tokens:
    """The tokens of one issuer under these settings."""
    one = IssuerSettings(**{"issuer": ISSUER, "audience": "aibox", **settings})
    return Tokens([one], http=provider or Provider(), clock=Clock())


@pytest.mark.parametrize("alg", ["RS256", "PS256"])
async def test_a_token_of_an_rsa_key_under_2048_bits_is_refused(alg: str) -> None:
    """RFC 7518 sec. 3.3 and 3.5: whoever published such a key, others may sign in its place. The rest hold."""
    provider = Provider()
    provider.keys[ISSUER] = [jwk(RSA_1024, "short", alg), jwk(RSA, "k1", alg)]
    tokens = held(provider=provider, algorithms=(alg,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)  # here it signs
        short = sign(key=RSA_1024, alg=alg, kid="short")
    with pytest.raises(AuthError, match="1024 bits"):
        await tokens.authenticate(short)
    assert await tokens.authenticate(sign(alg=alg))


async def test_a_key_that_names_its_algorithm_is_for_no_other() -> None:
    """RFC 8725 sec. 3.1, also where the issuer may use several; one that names none is for each of them."""
    both, provider = ("RS256", "RS512"), Provider()
    provider.keys[ISSUER] = [jwk(RSA, "k1", "RS512")]
    tokens = held(provider=provider, algorithms=both)
    assert await tokens.authenticate(sign(alg="RS512"))
    with pytest.raises(AuthError, match="that its key is not for"):
        await tokens.authenticate(sign(alg="RS256"))
    provider.keys[ISSUER] = [{k: v for k, v in jwk(RSA, "k1", "").items() if k != "alg"}]
    for alg in both:
        assert await held(provider=provider, algorithms=both).authenticate(sign(alg=alg))


OWN = {
    ISSUER: {"audience": "wards", "key": RSA, "alg": "RS256"},
    OTHER: {"audience": "books", "key": RSA_2, "alg": "PS256"},
}


@pytest.mark.parametrize(("issuer", "other"), [(ISSUER, OTHER), (OTHER, ISSUER)])
async def test_no_issuer_has_what_is_anothers(issuer: str, other: str) -> None:
    """The audience, the algorithm and the key of either are refused in a token of the other, signed well or not."""
    provider = Provider()
    for name, one in OWN.items():
        # A key that names no algorithm could be used with both.
        provider.keys[name] = [{k: v for k, v in jwk(one["key"], "k1", "").items() if k != "alg"}]
    settings = [
        IssuerSettings(issuer=name, audience=one["audience"], algorithms=(one["alg"],)) for name, one in OWN.items()
    ]
    tokens = Tokens(settings, http=provider, clock=Clock())

    def token(*, audience: str = issuer, alg: str = issuer, key: str = issuer) -> str:
        body = claims(iss=issuer, aud=OWN[audience]["audience"])
        return sign(body, key=OWN[key]["key"], alg=OWN[alg]["alg"])

    found = await tokens.authenticate(token())
    assert found is not None
    assert found.how == issuer
    for wrong, said in (
        (token(audience=other), "Audience doesn't match"),
        (token(alg=other), "an algorithm that its issuer does not use here"),
        (token(key=other), "Signature verification failed"),
    ):
        with pytest.raises(AuthError, match=said):
            await tokens.authenticate(wrong)


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        ("org", {"org": "acme"}),
        ("org.id", {"org": {"id": "acme"}}),
        ("https://example.org/tenant", {"https://example.org/tenant": "acme", "https://example": {"org/tenant": "x"}}),
    ],
)
async def test_the_tenant_is_in_the_claim_that_the_operator_chose(claim: str, told: dict[str, Any]) -> None:
    """By another name, in an object, or by a name that has dots itself; what `tenant` says is then nobody's tenant."""
    tokens = held(tenant_claim=claim)
    found = await tokens.authenticate(sign(claims(tenant="rival", **told)))
    assert found is not None
    assert found.scope.tenant == "acme"
    with pytest.raises(AccessError, match=f"no tenant \\(claim '{claim}'\\)"):
        await tokens.authenticate(sign(claims(tenant="rival")))


@pytest.mark.parametrize("claim", [{"org": "acme"}, {"org": ["acme"]}, {"org": {"id": {"id": "acme"}}}, {"id": "acme"}])
async def test_a_tenant_beside_the_path_is_none(claim: dict[str, Any]) -> None:
    """`org.id` is a text in that place, and not what stands above, below or beside it."""
    with pytest.raises(AccessError, match="no tenant"):
        await held(tenant_claim="org.id").authenticate(sign(claims(**claim)))


@pytest.mark.parametrize("leeway_s", [0, 30, 300])
async def test_clocks_may_differ_by_the_leeway_and_no_more(leeway_s: int) -> None:
    """A beginning up to it ahead and an end less than it ago are taken; a second more is refused, without one too."""
    tokens = held(leeway_s=leeway_s)
    for name in ("iat", "nbf"):
        assert await tokens.authenticate(sign(claims(**{name: NOW + leeway_s, "exp": NOW + 600})))
        with pytest.raises(AuthError, match="not valid yet"):
            await tokens.authenticate(sign(claims(**{name: NOW + leeway_s + 1, "exp": NOW + 600})))
    begun = NOW - 3600
    assert await tokens.authenticate(sign(claims(iat=begun, exp=NOW - leeway_s + 1)))
    with pytest.raises(AuthError, match="expired"):
        await tokens.authenticate(sign(claims(iat=begun, exp=NOW - leeway_s)))


@pytest.mark.parametrize("leeway_s", [301, 300.5, -1, float("nan"), float("inf")])
def test_a_leeway_beyond_five_minutes_is_no_setting(leeway_s: float, tmp_path: Path) -> None:
    """Nobody makes tokens live on by a setting: it is between 0 and 300 seconds."""
    issuer = {"issuer": ISSUER, "audience": "aibox"}
    env = {"AIBOX_HOME": str(tmp_path)}
    for fits in (0, 300):
        loaded = Settings.load(env=env, server={"issuers": [{**issuer, "leeway_s": fits}]})
        assert loaded.server.issuers[0].leeway_s == fits
    with pytest.raises(ConfigError, match="leeway_s"):
        Settings.load(env=env, server={"issuers": [{**issuer, "leeway_s": leeway_s}]})


async def test_an_issuer_speaks_for_its_tenants_only() -> None:
    """A provider that is trusted for one tenant cannot make tokens for another."""
    tokens = held(tenants=frozenset({"acme"}))
    assert await tokens.authenticate(sign())
    with pytest.raises(AccessError, match="speak for"):
        await tokens.authenticate(sign(claims(tenant="rival")))


async def test_roles_are_found_where_keycloak_puts_them() -> None:
    """A claim with dots in its name goes into objects; a token typed JWT passes where the operator says so."""
    tokens = held(roles_claim="realm_access.roles", rfc9068=False)
    body = claims(roles=..., realm_access={"roles": ["tenant_admin", "offline_access"]}, client_id=..., jti=...)
    found = await tokens.authenticate(sign(body, typ="JWT"))
    assert found is not None
    assert found.roles == {Role.TENANT_ADMIN}
    with pytest.raises(AuthError):
        await tokens.authenticate(sign(claims(typ="ID"), typ="JWT"))


@pytest.mark.parametrize(
    "settings",
    [
        {"issuer": "http://id.example.org"},
        {"issuer": "https://user@id.example.org"},
        {"issuer": "file:///etc/passwd"},
        {"issuer": ISSUER, "jwks_url": "http://169.254.169.254/keys"},
        {"issuer": ISSUER, "algorithms": ("RS256", "ES256")},
        {"issuer": ISSUER, "algorithms": ("HS256",)},
        {"issuer": ISSUER, "algorithms": ("none",)},
    ],
)
def test_settings_that_would_weaken_it_are_refused(settings: dict[str, Any]) -> None:
    """Plain http beyond this machine, credentials in a URL, symmetric or mixed algorithms: an error at the start."""
    with pytest.raises(ConfigError):
        Tokens([IssuerSettings(audience="aibox", **settings)])


def test_an_issuer_stands_once() -> None:
    """Two settings for one issuer would leave open which of them holds."""
    one = IssuerSettings(issuer=ISSUER, audience="a")
    with pytest.raises(ConfigError, match="twice"):
        Tokens([one, one])
