"""The bytes of an entry: fixed places, closed schemas, and nothing that is read in two ways."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import threading
import time
import uuid
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from aibox.audit import sealed
from aibox.audit.record import (
    HEADER_BYTES,
    KNOWN_FLAGS,
    MAX_BODY_BYTES,
    Header,
    Mac,
    body_commit,
    genesis_prev,
    leaf_hash,
    log_id,
    make_parts,
    read_detail,
    read_open,
    read_private,
    tagger,
    uuid7,
)
from aibox.audit.sealed import Subject
from aibox.errors import ConfigError
from aibox.types import Scope

HEADER = Header(1, 0, 0, 1_700_000_000_000_000, bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32)


def test_the_header_is_frozen() -> None:
    """122 bytes, big-endian, each field at its place; the hashes over it are those of the page that documents them."""
    packed = HEADER.pack()
    assert len(packed) == HEADER_BYTES == 122
    fields = (
        "41494258",
        "01",
        "01",
        "00000000",
        "0000000000000000",
        "00060a24181e4000",
        "01" * 32,
        "02" * 32,
        "03" * 32,
    )
    assert packed.hex() == "".join(fields)
    assert leaf_hash(packed) == hashlib.sha256(b"\x00" + packed).digest()
    assert log_id("o") == hashlib.sha256(b"aibox/log/v1\x00o").digest()
    parts = hashlib.sha256(b"open").digest() + hashlib.sha256(b"sealed").digest()
    assert body_commit(b"open", b"sealed") == hashlib.sha256(b"aibox/body/v1\x00" + parts).digest()
    assert tagger(b"k" * 32).of(b"l") == hmac.digest(b"k" * 32, b"aibox/tag/v1\x00l", "sha256")
    inner = hashlib.sha256(b"p" * 32).digest()
    assert genesis_prev(b"l", b"p" * 32) == hashlib.sha256(b"aibox/genesis/v1\x00l" + inner).digest()


@given(
    st.integers(0, 255).filter(lambda flags: not flags & ~KNOWN_FLAGS), st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.binary(min_size=96, max_size=96),
)  # fmt: skip
def test_a_header_reads_back(flags: int, epoch: int, seq: int, ts_us: int, hashes: bytes) -> None:
    """What is packed is what is unpacked, for every value of every field."""
    header = Header(flags, epoch, seq, ts_us, hashes[:32], hashes[32:64], hashes[64:])
    assert Header.unpack(header.pack()) == header


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4])
def test_another_magic_or_version_is_refused(at: int) -> None:
    """What is not this format is not read as if it were."""
    packed = bytearray(HEADER.pack())
    packed[at] ^= 1
    with pytest.raises(ValueError, match="format"):
        Header.unpack(bytes(packed))


@pytest.mark.parametrize("flag", [1 << n for n in range(8) if not 1 << n & KNOWN_FLAGS])
def test_an_unknown_flag_is_refused(flag: int) -> None:
    """A flag of a later version is not ignored: it may say that the entry means something else."""
    packed = bytearray(HEADER.pack())
    packed[5] |= flag
    with pytest.raises(ValueError, match="flags"):
        Header.unpack(bytes(packed))


@pytest.mark.parametrize("length", [0, 121, 123])
def test_another_length_is_refused(length: int) -> None:
    """A header is 122 bytes, no fewer and no more."""
    with pytest.raises(ValueError, match="122"):
        Header.unpack((HEADER.pack() * 2)[:length])


def test_a_sequence_number_that_does_not_fit_is_refused() -> None:
    """Attack: numbers below 0 and from 2^64 on are no places in a log; they do not wrap around."""
    for seq in (-1, 2**64):
        with pytest.raises(Exception, match=r"argument|format|range|large"):
            Header(0, 0, seq, 0, bytes(32), bytes(32), bytes(32)).pack()


UNFIT: list[Any] = [
    1.5,
    b"y",
    2**60,
    -(2**60),
    "\ud800",
    "y" * MAX_BODY_BYTES,
    [0.5],
    {"é": 1},
    {"t": [2**53]},
    object(),
]


@pytest.mark.parametrize(
    "detail",
    [*({name: value} for name in ("x", "label") for value in UNFIT), {"é": 1}, {"\ud800": 1}, {b"x": 1}, {1: 1}],
    ids=itertools.count(),
)
def test_a_detail_that_cannot_be_recorded_is_the_callers_mistake(scope: Scope, detail: dict[str, object]) -> None:
    """Floats, odd keys, other types, large numbers, long texts and such as are none are refused, in either part."""
    with pytest.raises(ConfigError, match=r"turn.started"):
        make_parts("turn.started", scope=scope, turn="t", detail=detail)


def test_the_schema_of_a_body_is_closed(scope: Scope) -> None:
    """A field more or fewer, another version, order or type of the same body is not a body."""
    data = make_parts("turn.started", scope=scope, turn="t", detail={"label": "internal", "a": 1}).open
    body = json.loads(data)
    assert read_open(data).action == "turn.started"
    assert read_detail(data) == {"label": "internal"}
    changes = (
        {**body, "more": 1},
        {k: v for k, v in body.items() if k != "tenant"},
        {**body, "v": 2},
        {**body, "id": 1},
    )
    for changed in changes:
        with pytest.raises(ValueError, match="body"):
            read_open(json.dumps(changed, sort_keys=True, separators=(",", ":")).encode())
    for other in (json.dumps(body).encode(), data.replace(b'"v":1', b'"v":1,"v":1'), b"", b"[]", b"\xff"):
        with pytest.raises(ValueError, match="body"):
            read_open(other)
    with pytest.raises(ValueError):  # noqa: PT011 - canonical.loads says what
        read_detail(data.replace(b'"label":"internal"', b'"label": "internal"'))


def test_who_it_was_and_what_is_not_for_everybody_lies_in_the_private_part(scope: Scope) -> None:
    """Names, digests of texts and fields that no table calls open are never in the part that everybody reads."""
    detail = {"model": "m", "sha256": "00" * 32, "anything": "else"}
    parts = make_parts("model.called", scope=scope, turn="t", detail=detail)
    assert read_detail(parts.open) == {"model": "m"}
    private = read_private(parts.private)
    assert private["actor"] == {"user": scope.user, "agent": scope.agent, "session": scope.session}
    assert private["detail"] == {"sha256": "00" * 32, "anything": "else"}
    assert scope.user.encode() not in parts.open


def test_the_sealed_part_is_frozen() -> None:
    """The layout of a sealed part and the key of one entry are those that are documented; another key opens nothing."""
    blob = Subject.of(b"s" * 16, b"k" * 32).seal(b"private")
    salt = blob[16:32]
    key = hmac.digest(b"k" * 32, b"aibox/entry/v1\x00" + salt, "sha256")
    assert blob[:16] == b"s" * 16
    assert blob[32:64] == hashlib.sha256(b"aibox/entry-key/v1\x00" + key).digest()
    assert AESGCM(key).decrypt(bytes(12), blob[64:], None) == b"private"
    assert Subject.of(b"s" * 16, b"k" * 32).entry_key(blob) == key
    assert sealed.unseal(blob, key) == b"private"
    for data, wrong in ((blob[:40], key), (blob, key[:31])):
        with pytest.raises(ValueError, match="not a sealed part"):
            sealed.unseal(data, wrong)
    damaged = blob[:-1] + bytes([blob[-1] ^ 1])
    for data, wrong in ((blob, bytes(32)), (blob, b""), (blob[:40], key), (damaged, key)):
        with pytest.raises(ValueError, match=r"sealed|key"):
            sealed.unseal(data, wrong)


def test_two_entries_of_one_fact_have_two_commitments() -> None:
    """Attack: whoever guesses what was recorded cannot confirm it by hashing: each sealed part is salted."""
    one, two = (Subject.of(b"s" * 16, b"k" * 32).seal(b"private") for _ in range(2))
    assert body_commit(b"open", one) != body_commit(b"open", two)


def test_ids_are_of_version_7_and_of_their_time_and_each_is_another() -> None:
    """RFC 9562 sec. 5.7, from several threads at once: 48 bits of the time in ms, which never goes back within one."""
    drawn: list[list[uuid.UUID]] = [[] for _ in range(4)]

    def draw(mine: list[uuid.UUID]) -> None:
        mine.extend(uuid.UUID(uuid7()) for _ in range(3000))

    began = time.time_ns() // 1_000_000
    threads = [threading.Thread(target=draw, args=(mine,)) for mine in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = time.time_ns() // 1_000_000
    for mine in drawn:
        times = [one.int >> 80 for one in mine]
        assert times == sorted(times)
        assert began <= times[0] <= times[-1] <= ended
        assert {(one.version, one.variant) for one in mine} == {(7, uuid.RFC_4122)}
        assert {str(one)[19] for one in mine} == set("89ab")
    assert len({one for mine in drawn for one in mine}) == 12_000


def test_a_detail_is_read_only_out_of_a_body() -> None:
    """What has a field too many is no body, also to who asks for its detail only; and a detail is an object."""
    good = b'{"action":"a","detail":{"x":1},"id":"","tenant":"t","turn_id":"","v":1}'
    assert read_detail(good) == {"x": 1}
    for bad in (
        good.replace(b'"v":1', b'"v":1,"w":1'),
        good.replace(b'{"x":1}', b"[1]"),
        good.replace(b'{"x":1}', b'"x"'),
    ):
        with pytest.raises(ValueError, match="not a body"):
            read_detail(bad)


@pytest.mark.parametrize(
    "data",
    [
        b"[]", b"1", b'{"actor":{"agent":"","session":"","user":""}}', b'{"actor":{},"detail":{}}',
        b'{"actor":{"agent":"","session":"","user":""},"detail":[]}', b'{"actor":[],"detail":{}}',
        b'{"actor":{"agent":"","session":"","user":"","x":""},"detail":{}}',
        b'{"actor":{"agent":"","session":"","user":""},"detail":{},"more":1}',
    ],
)  # fmt: skip
def test_the_schema_of_a_private_part_is_closed(data: bytes) -> None:
    """Actor and detail, each with its own fields, and nothing else."""
    assert read_private(b'{"actor":{"agent":"","session":"","user":""},"detail":{}}')["detail"] == {}
    with pytest.raises(ValueError, match="not a private part"):
        read_private(data)


@given(st.binary(max_size=64), st.binary(max_size=300))
def test_the_quick_hmac_is_hmac(key: bytes, message: bytes) -> None:
    """RFC 2104 by hand and by OpenSSL give the same, for every key of up to a block."""
    expected = hmac.digest(key, message, "sha256")
    prepared = Mac(key, message[:7])
    # Twice: what is prepared must not be used up.
    assert [prepared.of(message[7:]) for _ in range(2)] == [expected] * 2


def test_the_quick_hmac_has_the_published_values() -> None:
    """RFC 4231, test cases 1 and 2."""
    cases = {
        (b"\x0b" * 20, b"Hi There"): "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
        (b"Jefe", b"what do ya want for nothing?"): "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    }
    assert {Mac(key).of(message).hex() for key, message in cases} == set(cases.values())
