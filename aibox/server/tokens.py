"""Access tokens of OpenID providers: JWTs, held to RFC 8725 and RFC 9068 before a word of them is believed.

The issuer's own settings choose algorithms, audience and keys; nothing that a token says about itself does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aibox.errors import AccessError, AuthError, ConfigError
from aibox.inference.transport import Transport
from aibox.server.fetch import JsonClient, require_https
from aibox.server.jwks import Fetches, KeySet
from aibox.server.principal import Principal, known_roles
from aibox.settings_server import IssuerSettings
from aibox.types import Scope

if TYPE_CHECKING:
    import jwt

MAX_TOKEN_CHARS = 16_384
MAX_LIFETIME_S = 24 * 3600
"""A token that claims to live longer is refused: it could not be taken back in time."""
REMEMBERED_S = 60.0
"""A token that was checked is believed for so long without another check, never beyond its own end."""
REMEMBERED = 10_000

_FAMILIES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
# What an ID token has and an access token has not (OpenID Connect Core 1.0 sec. 2, 3.3.2.11).
_ID_TOKEN_CLAIMS = ("nonce", "at_hash", "c_hash")


class Tokens:
    """Authenticates bearer tokens of the configured issuers. An Authenticator."""

    def __init__(
        self,
        issuers: Sequence[IssuerSettings],
        *,
        http: Fetches | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._http = http
        self._issuers: dict[str, _Issuer] = {}
        self._issuers = self.plan(issuers)
        self._clock = clock
        self._remembered: OrderedDict[bytes, tuple[float, float, Principal]] = OrderedDict()

    def plan(self, issuers: Sequence[IssuerSettings]) -> dict[str, _Issuer]:
        """These issuers, for `use`; whose settings are the same keeps the keys that are known. Raises ConfigError."""
        planned: dict[str, _Issuer] = {}
        for settings in issuers:
            if settings.issuer in planned:
                raise ConfigError("an issuer is configured twice", hint="one [[server.issuers]] an issuer")
            known = self._issuers.get(settings.issuer)
            same = known is not None and known.settings == settings
            planned[settings.issuer] = known if known is not None and same else _Issuer(settings, http=self._http)
        return planned

    def use(self, issuers: Mapping[str, _Issuer]) -> None:
        """Trust these from now on, and nothing that was believed under others."""
        self._issuers = dict(issuers)
        self._remembered.clear()

    async def authenticate(self, token: str, *, correlation: str = "") -> Principal | None:
        """The principal of a valid access token; None for what is no JWT at all.

        Raises AuthError for a token that does not hold, AccessError for one without a tenant, UpstreamError when the
        issuer's keys cannot be had.
        """
        if token.count(".") != 2:
            return None
        if len(token) > MAX_TOKEN_CHARS:
            raise AuthError("the token is too long")
        if "=" in token:
            # RFC 7515 sec. 2 leaves padding out; with it one token could be written in several ways.
            raise AuthError("the token cannot be read")
        digest = hashlib.sha256(token.encode()).digest()
        now = self._clock()
        # One that was checked later than now was checked before the clock was put back.
        if (known := self._remembered.get(digest)) and known[0] <= now < known[1]:
            return known[2]
        header, claims = (_object(part) for part in token.split(".")[:2])
        # Read before it is verified, and used for nothing but to find the settings under which it is.
        issuer = self._issuers.get(str(claims.get("iss")))
        if issuer is None:
            raise AuthError("the token is of an issuer that is not trusted here")
        principal, expires = await issuer.principal(token, header, claims, now=now, correlation=correlation)
        if self._issuers.get(str(claims.get("iss"))) is not issuer:
            # It was taken out, or its settings changed, while its keys were asked for.
            raise AuthError("the token is of an issuer that is not trusted here any more", hint="ask again")
        self._remembered[digest] = now, min(expires, now + REMEMBERED_S), principal
        while len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return principal

    async def close(self) -> None:
        """Nothing is held open."""

    def __repr__(self) -> str:
        return f"Tokens({', '.join(self._issuers)})"


class _Issuer:
    def __init__(self, settings: IssuerSettings, *, http: Fetches | None) -> None:
        import jwt  # 4 MiB, which a server without issuers does without

        self._jwt = jwt
        require_https(settings.issuer)
        families = {_FAMILIES.get(name[:2]) for name in settings.algorithms}
        if len(families) != 1 or None in families:
            raise ConfigError(
                f"the algorithms of {settings.issuer} are of several kinds, or not known",
                hint="one asymmetric family an issuer (RFC 8725 sec. 3.1), such as RS256 alone",
            )
        if settings.jwks_url is not None:
            require_https(settings.jwks_url)
        self.settings = settings
        http = http or JsonClient(transport=_transport(settings))
        self._keys = KeySet(settings.issuer, http=http, parse=self._parse, url=settings.jwks_url)

    def _parse(self, jwk: Mapping[str, Any]) -> tuple[jwt.PyJWK, Sequence[str]] | None:
        """A key, and which of our algorithms it is for; others an issuer may list for other uses (RFC 7517 sec. 4.2-4).

        One that names its algorithm is for no other (RFC 8725 sec. 3.1).
        """
        ours = self.settings.algorithms
        named = jwk.get("alg", ours[0])
        if jwk.get("use", "sig") != "sig" or named not in ours:
            return None
        try:
            return self._jwt.PyJWK(dict(jwk), algorithm=named), (named,) if "alg" in jwk else ours
        except self._jwt.PyJWTError:
            return None

    async def principal(
        self, token: str, header: Mapping[str, Any], claims: Mapping[str, Any], *, now: float, correlation: str
    ) -> tuple[Principal, float]:
        settings = self.settings
        _hold_header(header, settings)
        key, algorithms = await self._keys.key(header["kid"], correlation=correlation)
        if header["alg"] not in algorithms:
            raise AuthError("the token is signed with an algorithm that its key is not for")
        try:
            claims = self._jwt.decode(
                token,
                key.key,
                algorithms=[header["alg"]],
                audience=settings.audience,
                issuer=settings.issuer,
                # Times are held below, against a clock that tests can move, and with bounds that PyJWT has not.
                # An RSA key under 2048 bits signs nothing (RFC 7518 sec. 3.3, 3.5).
                options={"require": ["iss", "sub", "aud", "exp", "iat"], "verify_exp": False, "verify_iat": False,
                         "verify_nbf": False, "enforce_minimum_key_length": True},
            )  # fmt: skip
        except self._jwt.PyJWTError as error:
            raise AuthError(f"the token does not hold: {error}") from None
        _hold_claims(claims, settings, now=now)
        return _principal(claims, settings), claims["exp"] + settings.leeway_s


def _transport(settings: IssuerSettings) -> Transport:
    """How its keys are fetched. Raises ConfigError for certificates that cannot be used, now and not at the first."""
    proxy = settings.proxy.get_secret_value() if settings.proxy else None
    transport = Transport(ca_bundle=settings.ca_bundle, proxy=proxy)
    if settings.ca_bundle is not None:
        transport.tls()
    return transport


def _hold_header(header: Mapping[str, Any], settings: IssuerSettings) -> None:
    if header.get("alg") not in settings.algorithms:
        raise AuthError("the token is signed with an algorithm that its issuer does not use here")
    if "crit" in header:
        raise AuthError("the token asks for an extension that is not understood (RFC 7515 sec. 4.1.11)")
    kid = header.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= 256:
        raise AuthError("the token does not name its key")
    # RFC 9068 sec. 4: `at+jwt`, with or without `application/`, in any case.
    typ = str(header.get("typ", "")).lower().removeprefix("application/")
    if settings.rfc9068 and typ != "at+jwt":
        raise AuthError(
            "the token is not an access token (RFC 9068: its type is not at+jwt)",
            hint="send an access token; where the issuer marks none, set rfc9068 = false for it",
        )
    if not settings.rfc9068 and typ not in ("", "jwt", "at+jwt"):
        raise AuthError("the token is of another kind than an access token")


def _hold_claims(claims: Mapping[str, Any], settings: IssuerSettings, *, now: float) -> None:
    wanted = ("client_id", "jti") if settings.rfc9068 else ()
    if missing := [name for name in wanted if not isinstance(claims.get(name), str) or not claims[name]]:
        raise AuthError(f"the token lacks {', '.join(missing)} (RFC 9068 sec. 2.2)")
    # Keycloak marks its kinds of token in a claim; an ID token is for the client that asked for it and not for us.
    if any(name in claims for name in _ID_TOKEN_CLAIMS) or claims.get("typ") in ("ID", "Refresh", "Logout"):
        raise AuthError("the token is an ID token or a refresh token", hint="send the access token")
    times = {name: claims[name] for name in ("exp", "iat", "nbf") if name in claims}
    for name, value in times.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**40:
            raise AuthError(f"the token's {name} is not a time")
    if times["exp"] <= now - settings.leeway_s:
        raise AuthError("the token has expired", hint="get a new one")
    if max(times["iat"], times.get("nbf", 0)) > now + settings.leeway_s:
        raise AuthError("the token is not valid yet", hint="are the clocks of the issuer and of this machine right?")
    if times["exp"] - times["iat"] > MAX_LIFETIME_S:
        raise AuthError(f"the token lives longer than {MAX_LIFETIME_S // 3600} hours")


def _principal(claims: Mapping[str, Any], settings: IssuerSettings) -> Principal:
    tenant = _claim(claims, settings.tenant_claim)
    if not isinstance(tenant, str) or not tenant:
        # Never somebody's default, and never `sub`: a wrong mapper must not make a tenant of each user.
        raise AccessError(
            f"the token has no tenant (claim {settings.tenant_claim!r})", hint="map the tenant into the access token"
        )
    if settings.tenants is not None and tenant not in settings.tenants:
        raise AccessError("this issuer does not speak for that tenant")
    roles = _claim(claims, settings.roles_claim)
    try:
        scope = Scope(tenant=tenant, user=str(claims["sub"]))
        return Principal(scope, known_roles(roles if isinstance(roles, list) else ()), how=settings.issuer)
    except ConfigError as error:
        raise AccessError(f"the token's tenant or subject is not a name: {error.message}") from None


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """A claim by its name; a name with dots goes into objects where no claim has the whole name."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _object(part: str) -> dict[str, Any]:
    """One part of a token. A name that stands twice is refused: two readers could read two different tokens."""
    try:
        data = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
        value = json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, binascii.Error, RecursionError):
        raise AuthError("the token cannot be read") from None
    if not isinstance(value, dict):
        raise AuthError("the token cannot be read")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands twice")
    return value
