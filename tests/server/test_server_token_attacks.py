"""Access tokens put together by hand and sent to a server, each so that what is tried is all that is wrong with it.

Whoever believed a header, read a time loosely or took the second of two claims would answer 200.
"""

from __future__ import annotations

import base64
import datetime as dt
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from platform_world import ISSUER, KEY, Asked, World, world

pytestmark = pytest.mark.anyio

OWN = ec.generate_private_key(ec.SECP256R1())
"""The key of whoever attacks."""
NOW = int(time.time())
HEADER = {"alg": "ES256", "typ": "at+jwt", "kid": "k"}
CLAIMS = {
    "iss": ISSUER, "sub": "eva", "aud": "aibox", "client_id": "web", "jti": "1", "tenant": "acme", "roles": ["user"],
    "iat": NOW - 10, "exp": NOW + 3600,
}  # fmt: skip


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def written(part: Any) -> str:
    """A part of a token: an object as JSON, bytes as they are."""
    return b64(part if isinstance(part, bytes) else json.dumps(part).encode())


def signature(text: str, key: ec.EllipticCurvePrivateKey = KEY) -> bytes:
    r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def made(header: Any = HEADER, claims: Any = CLAIMS, *, key: ec.EllipticCurvePrivateKey = KEY) -> str:
    text = f"{written(header)}.{written(claims)}"
    return f"{text}.{b64(signature(text, key))}"


def header(**more: Any) -> str:
    return made({**HEADER, **more})


def claims(**more: Any) -> str:
    return made(claims={**CLAIMS, **more})


def with_mac(secret: bytes, alg: str = "HS256") -> str:
    text = f"{written({**HEADER, 'alg': alg})}.{written(CLAIMS)}"
    return f"{text}.{b64(hmac.digest(secret, text.encode(), alg.replace('HS', 'sha')))}"


def in_der() -> str:
    """Signed by the right key, in the form that certificates have."""
    text = made().rpartition(".")[0]
    return f"{text}.{b64(KEY.sign(text.encode(), ec.ECDSA(hashes.SHA256())))}"


def certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "id.example.org")])
    begins = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    named = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    timed = named.serial_number(7).not_valid_before(begins).not_valid_after(begins + dt.timedelta(days=36500))
    return timed.sign(key, hashes.SHA256())


DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
INFO = serialization.PublicFormat.SubjectPublicKeyInfo
POINT = KEY.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
CERTIFICATE = certificate(KEY)
CHAIN = [base64.b64encode(certificate(OWN).public_bytes(DER)).decode()]
THUMB = b64(certificate(OWN).fingerprint(hashes.SHA256()))
EMPTY = b64(b"")

HEADERS: dict[str, Callable[[], str]] = {
    "x5c of its own": lambda: made({**HEADER, "x5c": CHAIN}, key=OWN),
    "x5c of its own and no kid": lambda: made({"alg": "ES256", "typ": "at+jwt", "x5c": CHAIN}, key=OWN),
    "x5c and the thumbprint as kid": lambda: made({**HEADER, "kid": THUMB, "x5t#S256": THUMB, "x5c": CHAIN}, key=OWN),
    "x5c in PEM": lambda: made({**HEADER, "x5c": [certificate(OWN).public_bytes(PEM).decode()]}, key=OWN),
    "x5u elsewhere": lambda: made({**HEADER, "x5u": "https://evil.example/chain.pem"}, key=OWN),
    "x5u as a file": lambda: made({**HEADER, "kid": "own", "x5u": "file:///tmp/chain.pem"}, key=OWN),
    "x5u as data": lambda: made({**HEADER, "x5u": "data:application/pem-certificate-chain," + CHAIN[0]}, key=OWN),
    "crit of nothing": lambda: header(crit=[]),
    "crit of what is known": lambda: header(crit=["exp"], exp=NOW + 300),
    "crit of what is not": lambda: header(
        crit=["http://example.org/UNDEFINED"], **{"http://example.org/UNDEFINED": True}
    ),
    "crit that is a text": lambda: header(crit="exp"),
    "crit that is null": lambda: header(crit=None),
    "crit that is false": lambda: header(crit=False),
    "b64 false": lambda: header(crit=["b64"], b64=False),
    "alg in small letters": lambda: header(alg="es256"),
    "typ that is a list": lambda: header(typ=["at+jwt"]),
    "kid that is a list": lambda: header(kid=["k"]),
    "two alg": lambda: made(json.dumps(HEADER).encode()[:-1] + b', "alg": "ES256"}'),
    "two kid": lambda: made(json.dumps(HEADER).encode()[:-1] + b', "kid": "k"}'),
}
MACS: dict[str, Callable[[], str]] = {
    "the public key in DER": lambda: with_mac(KEY.public_key().public_bytes(DER, INFO)),
    "the public key in PEM": lambda: with_mac(KEY.public_key().public_bytes(PEM, INFO)),
    "the public key in DER, HS512": lambda: with_mac(KEY.public_key().public_bytes(DER, INFO), "HS512"),
    "the point": lambda: with_mac(POINT),
    "the certificate in PEM": lambda: with_mac(CERTIFICATE.public_bytes(PEM)),
    "the certificate in DER": lambda: with_mac(CERTIFICATE.public_bytes(DER)),
    "the certificate as x5c has it": lambda: with_mac(base64.b64encode(CERTIFICATE.public_bytes(DER))),
    "nothing": lambda: with_mac(b""),
}
FORMS: dict[str, Callable[[], str]] = {
    "a JWE": lambda: (
        f"{written({'alg': 'dir', 'enc': 'A128GCM', 'kid': 'k'})}..{b64(b'i' * 12)}.{b64(b'c')}.{b64(b't' * 16)}"
    ),
    "five segments that begin with a good token": lambda: f"{made()}.{EMPTY}.{EMPTY}",
    "five segments of a good token": lambda: f"{made()}.{b64(b'c')}.{b64(b't' * 16)}",
    "four segments": lambda: f"{made()}.",
    "two segments": lambda: made().rpartition(".")[0],
    "a segment before": lambda: f".{made()}",
    "no signature": lambda: made().rpartition(".")[0] + ".",
    "no claims": lambda: made(claims=b""),
    "in JSON": lambda: json.dumps(dict(zip(("protected", "payload", "signature"), made().split("."), strict=True))),
    "a token as the claims": lambda: made({**HEADER, "cty": "JWT"}, made().encode()),
    "a token as a text of the claims": lambda: made({**HEADER, "cty": "JWT"}, json.dumps(made()).encode()),
    "a good token in one of its own": lambda: made({**HEADER, "cty": "JWT"}, made().encode(), key=OWN),
    "a good token as a claim of its own": lambda: made(claims={**CLAIMS, "jwt": made()}, key=OWN),
    "one = too many": lambda: made() + "=",
    "a line end in the signature": lambda: made()[:-5] + "\n" + made()[-5:],
    "a mark in the signature": lambda: made()[:-5] + "!" + made()[-5:],
    "the signature in DER": in_der,
}
TIMES: dict[str, Any] = {
    "negative": -1,
    "a negative fraction": -0.5,
    "huge": 2**70,
    "a huge fraction": 1e15,
    "beyond what a float holds": float("inf"),
    "minus that": float("-inf"),
    "no number": float("nan"),
    "true": True,
    "false": False,
    "null": None,
    "a list": [NOW],
    "an object": {},
    "an empty text": "",
}
"""What is no time, whichever claim has it."""
MORE_TIMES: dict[str, dict[str, Any]] = {
    "exp a text": {"exp": str(NOW + 300)},
    "exp a text of a date": {"exp": "2099-01-01T00:00:00Z"},
    "exp a fraction that is over": {"exp": NOW - 31.5},
    "exp in milliseconds": {"exp": (NOW + 300) * 1000},
    "nbf a text": {"nbf": str(NOW - 10)},
    "nbf a fraction to come": {"nbf": NOW + 3600.5},
    "iat a text": {"iat": str(NOW - 10)},
    "iat a fraction to come": {"iat": NOW + 3600.5},
}
TWICE: dict[str, bytes] = {
    "tenant": b'"tenant": "rival"',
    "tenant, the same": b'"tenant": "acme"',
    "tenant, written with an escape": b'"ten\\u0061nt": "rival"',
    "sub": b'"sub": "boss"',
    "roles": b'"roles": ["platform_admin"]',
    "exp": b'"exp": 4000000000',
    "iss": b'"iss": "https://id.example.org"',
    "aud": b'"aud": "aibox"',
    "in an object": b'"realm_access": {"roles": [], "roles": ["platform_admin"]}',
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def w(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("tokens")) as it:
        yield it


async def asks(w: World, bearer: str) -> httpx2.Response:
    return await w.send("get", "/v1/models", Asked(), bearer)


async def refused(w: World, bearer: str) -> None:
    answered = await asks(w, bearer)
    assert answered.status_code == 401, answered.text
    assert answered.json()["error"]["code"] == "policy.auth"
    # Also once its issuer's keys are known and a good token has been seen.
    assert (await asks(w, made())).status_code == 200
    assert (await asks(w, bearer)).status_code == 401


async def test_what_is_put_together_here_is_taken_when_nothing_is_wrong(w: World) -> None:
    """By hand a token is as good as a provider's; a fraction of a second is a time (RFC 7519 sec. 2)."""
    fractions = {"exp": NOW + 3000.5, "iat": NOW - 10.5, "nbf": NOW - 10.25}
    for good in (made(), header(x5c=CHAIN, x5u="https://evil.example/chain.pem"), claims(**fractions), claims(nbf=NOW)):
        assert (await asks(w, good)).status_code == 200


@pytest.mark.parametrize("attack", HEADERS)
async def test_a_header_chooses_neither_key_nor_rules(w: World, attack: str) -> None:
    """Certificates that come along are not looked at, and whatever asks to be understood is not."""
    await refused(w, HEADERS[attack]())


@pytest.mark.parametrize("secret", MACS)
async def test_what_is_public_is_no_secret(w: World, secret: str) -> None:
    """An HMAC with the issuer's public key, in whatever form it is published, signs nothing."""
    await refused(w, MACS[secret]())


@pytest.mark.parametrize("form", FORMS)
async def test_what_is_not_three_segments_of_its_own_is_no_token(w: World, form: str) -> None:
    """Encrypted, nested, too many or too few: nothing is taken out of it."""
    await refused(w, FORMS[form]())


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", TIMES)
async def test_what_is_no_time_is_not_read_as_one(w: World, name: str, value: str) -> None:
    """Of an odd type or beyond all calendars, in a token that is signed as it should be."""
    await refused(w, claims(**{name: TIMES[value]}))


@pytest.mark.parametrize("what", MORE_TIMES)
async def test_a_time_that_is_a_text_or_does_not_hold_is_refused(w: World, what: str) -> None:
    """A text is no number however it reads, and a fraction is over when it is over."""
    await refused(w, claims(**MORE_TIMES[what]))


@pytest.mark.parametrize("name", TWICE)
async def test_a_claim_that_stands_twice_is_none(w: World, name: str) -> None:
    """Signed by the issuer or not, two readers could read two tokens: first or last, neither is taken."""
    text = json.dumps(CLAIMS).encode()
    await refused(w, made(claims=text[:-1] + b", " + TWICE[name] + b"}"))
    await refused(w, made(claims=b"{" + TWICE[name] + b", " + text[1:]))


@pytest.mark.parametrize("part", ["header", "claims", "signature"])
async def test_a_segment_has_no_padding(w: World, part: str) -> None:
    """RFC 7515 sec. 2: base64url without its `=`. With it one token has several spellings, one of them free."""
    parts = {}
    for name, body in (("header", HEADER), ("claims", CLAIMS)):
        data = json.dumps(body).encode()
        data += b" " * ((1 - len(data)) % 3)
        parts[name] = b64(data) + ("==" if name == part else "")
    text = f"{parts['header']}.{parts['claims']}"
    await refused(w, f"{text}.{b64(signature(text))}" + ("==" if part == "signature" else ""))
