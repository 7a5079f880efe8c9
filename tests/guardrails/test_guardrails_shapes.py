"""Pseudonyms with the form of a value: checkers take them, nobody has them, and they come back as tokens do."""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from email_validator import validate_email
from growth import cpu_s
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import FormatChecker
from pieces import restored
from pydantic import AnyUrl, TypeAdapter
from stdnum import iban, luhn

from aibox.errors import ConfigError
from aibox.guardrails import shapes
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.marks import find_tokens, json_might_hold_tokens, masked, might_hold_tokens
from aibox.guardrails.outgoing import Outgoing
from aibox.guardrails.pii import PII, scan
from aibox.guardrails.pseudonyms import Pseudonyms, Restorer, splice, with_look_alikes
from aibox.guardrails.vault import _CROWDED, STEM_DIGITS, SUFFIXES, _canonical
from aibox.policy.policy import Policy
from aibox.policy.pseudonyms import FormType, PseudonymRules
from aibox.types import Finding, Scope

pytestmark = pytest.mark.anyio

KEY = bytes(range(32))
EVERY = PseudonymRules(format_preserving=frozenset({"*"}))
PLACES = ("input", "tool_result", "retrieved", "output", "tool_arguments")
FORMED = {"checks": {"pii": dict.fromkeys(PLACES, "redact")}, "pseudonyms": {"format_preserving": ["*"]}}
VALUES = {
    "EMAIL": ("eva@example.org", "EVA@example.org"),
    "URL": ("https://eva:secret@files.example.org",),
    "CARD": ("4111 1111 1111 1111", "4111111111111111", "378282246310005"),
    "IBAN": ("DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432"),
    "PHONE": ("+49 30 1234567", "(212) 555-0199"),
    "IP": ("203.0.113.9", "2001:db8:85a3::8a2e:370:7334"),
}
PAIRS = [(type_, value) for type_, values in VALUES.items() for value in values]
ids = st.one_of(
    *(st.integers(0, 10**digits - 1).map(lambda n, digits=digits: f"{n:0{digits}}") for digits in STEM_DIGITS)
).flatmap(lambda stem: st.sampled_from(SUFFIXES).map(lambda suffix: stem + suffix))
anyones = st.one_of(ids, st.integers(0, 10**8 - 1).map(lambda n: f"{n:08}zz"))
six = st.tuples(st.integers(0, 10**6 - 1), st.sampled_from(SUFFIXES[:16])).map(lambda pair: f"{pair[0]:06}{pair[1]}")
CHECKER = FormatChecker()


async def put(pseudonyms: Pseudonyms, type_: str, value: str, scope: Scope) -> str:
    return await pseudonyms.put(value, [(0, len(value), type_)], scope=scope, rules=EVERY)


# What passes, and what cannot be anybody's.


@given(anyones, anyones)
def test_every_id_is_a_number_of_its_own(one: str, other: str) -> None:
    """An id and its number are one to one, and a number past the last id is none."""
    assert shapes.id_of(shapes.number_of(one)) == one
    assert (shapes.number_of(one) == shapes.number_of(other)) == (one == other)
    assert shapes.id_of(len(SUFFIXES) * 10 ** max(STEM_DIGITS) * 2) is None


@given(st.sampled_from(PAIRS), anyones)
def test_what_is_written_is_read(pair: tuple[str, str], id_: str) -> None:
    """Each shape is one whole match that gives type and id back, in any case; an id that has no room has none."""
    type_, value = pair
    written = shapes.write(type_, id_, value)
    if written is None:
        assert shapes.number_of(id_) >= 1 << 24
        assert type_ in ("IP", "CARD", "PHONE", "IBAN")
        return
    for text in (written, written.upper(), written.lower()):
        match = re.fullmatch(shapes.PATTERN, text, re.ASCII)
        assert match is not None
        assert shapes.read(match) == (type_, id_)
    assert len(written) <= shapes.CHARS


@given(st.sampled_from(PAIRS), six)
def test_every_id_of_an_ordinary_tenant_has_room(pair: tuple[str, str], id_: str) -> None:
    """Six digits and the first sixteen writings of a value find room in every shape."""
    assert shapes.write(pair[0], id_, pair[1]) is not None


def passes(type_: str, value: str, written: str) -> bool:
    """By checkers that others publish: email-validator, python-stdnum, jsonschema, ipaddress, pydantic's URLs."""
    if type_ == "EMAIL":
        return CHECKER.conforms(written, "email") and bool(validate_email(written, check_deliverability=False))
    if type_ == "CARD":
        return luhn.is_valid(re.sub("[ -]", "", written)) and bool(
            re.fullmatch(r"\d{4}([ -]?)(\d{4}\1){2}\d{4}", written)
        )
    if type_ == "IBAN":
        return bool(iban.is_valid(written))
    if type_ == "PHONE":
        return bool(re.fullmatch(r"\+[1-9]\d{1,14}", written))  # ITU-T E.164
    if type_ == "URL":
        return bool(TypeAdapter(AnyUrl).validate_python(written))
    return CHECKER.conforms(written, f"ipv{ipaddress.ip_address(value).version}")


@given(st.sampled_from(PAIRS), six)
def test_published_checkers_take_each_shape(pair: tuple[str, str], id_: str) -> None:
    """What stands for a value passes where the value passes, and for an address of its version."""
    type_, value = pair
    written = shapes.write(type_, id_, value)
    assert written is not None
    assert passes(type_, value, written)


@given(six)
def test_no_shape_is_anybodys(id_: str) -> None:
    """Each lies in a space from which nobody is given anything, by the registry that gives."""
    made = {(type_, value): shapes.write(type_, id_, value) or "" for type_, value in PAIRS}
    hosts = [ipaddress.ip_address(text) for (type_, _), text in made.items() if type_ == "IP"]
    assert [(host.is_global, host.is_loopback) for host in hosts] == [(False, False)] * 2
    assert hosts[0].is_reserved
    assert hosts[1] in ipaddress.ip_network("2001:db8::/32")
    for (type_, _), text in made.items():
        if type_ == "EMAIL":
            assert text.endswith("@pseudonym.example")
        if type_ == "CARD":
            assert text.startswith("9990")
        if type_ == "IBAN":
            assert text.startswith("DE")
            assert text[4] not in "12345678"
        if type_ == "PHONE":
            assert text.startswith("+999")


def test_the_policy_names_the_types_that_have_a_shape() -> None:
    """What may be listed and what can be written are the same; another type is refused by the policy."""
    assert set(FormType.__args__) == {*shapes.TYPES, "*"}
    with pytest.raises(ConfigError, match="format_preserving"):
        Policy.read({"pseudonyms": {"format_preserving": ["PERSON"]}})


types = st.frozensets(st.sampled_from(FormType.__args__))
rules = st.builds(PseudonymRules, format_preserving=types)


@given(rules, rules, rules, st.sampled_from(sorted(shapes.TYPES)))
def test_a_join_keeps_the_form_only_where_every_level_does(
    a: PseudonymRules, b: PseudonymRules, c: PseudonymRules, type_: str
) -> None:
    """A token fails where a value is wanted, so it is the stricter; order, grouping and repetition change nothing."""
    assert (a & b).keeps_form(type_) == (a.keeps_form(type_) and b.keeps_form(type_))
    assert a & b == b & a
    assert (a & b) & c == a & (b & c)
    assert a & a == a
    assert not PseudonymRules().keeps_form(type_)


# There and back.


PIECES = st.sampled_from(
    [
        *(value for _, value in PAIRS),
        *(
            "email-482139@pseudonym.example",
            "EMAIL-482139a@PSEUDONYM.EXAMPLE",
            "Email-482139",
            "https://pseudonym.example/url-482139",
        ),
        *(
            "9990 2853 5395 7954",
            "9990285353957954",
            "DE30 9990 1614 3780 7709 73",
            "+99928730148638",
            "0099928730148638",
        ),
        *("250.14.110.206", "2001:db8:999:1396:1506:1987:1419:1767", "<EMAIL_482139>", "<LITERAL_482139>"),
        *(
            "mailto:",
            "card ",
            "tel:",
            ".",
            ",",
            " ",
            "\n",
            "-",
            "@",
            "x",
            "9",
            "é",
            "<",
            ">",
            '"',
            "/",
            "+",
            ":",
            "\u200b",
        ),
    ]
)


@settings(max_examples=300)
@given(st.lists(PIECES, max_size=10).map("".join), st.data())
def test_any_text_survives_the_round_trip(text: str, data: st.DataObject) -> None:
    """Whatever is found in a text, where, and beside what: restoring what was put gives the text back exactly."""
    found = list(scan(text))
    for _ in range(data.draw(st.integers(0, 2))):
        start, end = sorted(data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        found.append(Finding("pii", data.draw(st.sampled_from([*VALUES, "PERSON"])), (start, end)))

    async def trip() -> str:
        pseudonyms, me = Pseudonyms(key=KEY), Scope(tenant="acme", user="eva")
        return await pseudonyms.restore(await pseudonyms.replace(text, found, scope=me, rules=EVERY), scope=me)

    assert anyio.run(trip) == text


@settings(max_examples=200)
@given(st.lists(PIECES, max_size=8), st.data())
def test_restoring_a_stream_is_restoring_the_whole(words: list[str], data: st.DataObject) -> None:
    """For every chunking the pieces add up to the whole restored, made-up ones and all, and little is held back."""

    async def both() -> tuple[str, str]:
        pseudonyms, me = Pseudonyms(key=KEY), Scope(tenant="acme", user="eva")
        known = {value: await put(pseudonyms, type_, value, me) for type_, value in PAIRS}
        text = "".join(known.get(word, word) for word in words)
        unknown = "[{}]".format
        restorer = Restorer(pseudonyms, scope=me, unknown=unknown)
        streamed = await restored(restorer, text, data, most=20)
        return streamed, await pseudonyms.restore(text, scope=me, unknown=unknown)

    streamed, whole = anyio.run(both)
    assert streamed == whole


async def test_what_was_released_still_tells_where_a_word_goes_on(scope: Scope) -> None:
    """A sign has gone out when its number comes: what is no number by itself hides no address behind it."""
    pseudonyms = Pseudonyms()
    address = await put(pseudonyms, "IP", "2001:db8:85a3::8a2e:370:7334", scope)
    text = f"1+9996468791-{address}"
    restorer = Restorer(pseudonyms, scope=scope)
    pieces = [await restorer.push(piece) for piece in (text[:5], text[5:-4], text[-4:])]
    assert "".join([*pieces, await restorer.finish()]) == await pseudonyms.restore(text, scope=scope)


PROSE = st.sampled_from(
    ["Write to {}. ", "It is {}, and ", "Call {} or\n\n", "{}\n", "Is it {}? Yes, ", "of the kind that " * 9]
)


@settings(max_examples=100)
@given(st.lists(st.tuples(PROSE, st.sampled_from(PAIRS)), max_size=8), st.data())
def test_a_checked_stream_is_the_whole_answer_restored(said: list[Any], data: st.DataObject) -> None:
    """Checks look at sentences as they come: they take nothing out of a shape, whatever piece of it has come."""

    async def both() -> tuple[str, str]:
        pseudonyms, me = Pseudonyms(key=KEY), Scope(tenant="acme", user="eva")
        guardrail = Guardrail(Policy.read(FORMED), pseudonyms=pseudonyms)
        known = {pair: await put(pseudonyms, *pair, me) for pair in PAIRS}
        text = "".join(prose.format(known[pair]) for prose, pair in said)

        async def chunks() -> AsyncIterator[str]:
            at = 0
            while at < len(text):
                step = data.draw(st.integers(1, 60))
                yield text[at : at + step]
                at += step

        return "".join([piece async for piece in guardrail.stream(chunks(), scope=me)]), "".join(
            prose.format(pair[1]) for prose, pair in said
        )

    streamed, meant = anyio.run(both)
    assert streamed == meant


CHANGES = {
    "EMAIL": (str.upper, str.title, "mailto:{}".format, "<{}>".format, "[{0}](mailto:{0})".format, "**{}**.".format),
    "URL": (str.upper, "({})".format, "{}/path?x=1".format, "{}.".format),
    "CARD": (
        *(lambda s, sign=sign: sign.join(s[at : at + 4] for at in range(0, 16, 4)) for sign in " -\u00a0\u202f\u2011"),
        "({}),".format,
    ),
    "IBAN": (
        str.lower,
        *(lambda s, sign=sign: sign.join(s[at : at + 4] for at in range(0, 22, 4)) for sign in " -\u00a0"),
        "`{}`".format,
    ),
    "PHONE": (
        "tel:{}".format,
        lambda s: s[1:],
        lambda s: f"00{s[1:]}",
        lambda s: f"{s[:4]} {s[4:7]} {s[7:11]} {s[11:]}",
        lambda s: f"{s[:4]}-{s[4:7]}-{s[7:]}",
        lambda s: f"{s[:4]} ({s[4:7]}) {s[7:]}",
    ),
    "IP": ("[{}]".format, "{}, ".format, "{}:\n".format, "{}/24".format, str.upper),
}


@pytest.mark.parametrize(("type_", "value"), PAIRS)
async def test_harmless_changes_are_restored(type_: str, value: str, scope: Scope) -> None:
    """Another case, other groups, brackets, a scheme in front, a full stop behind: the value comes back."""
    pseudonyms = Pseudonyms()
    shape = await put(pseudonyms, type_, value, scope)
    assert shape not in (value, find_tokens(shape)[0])
    for change in CHANGES[type_]:
        changed = change(shape)
        back = await pseudonyms.restore(f"It is {changed}", scope=scope)
        assert value in back, (changed, back)
        assert not find_tokens(back)


async def test_what_small_models_leave_out_is_restored(scope: Scope) -> None:
    """The end of the name, or all of it, is what the demo model drops; a word like it that is not known stays."""
    pseudonyms = Pseudonyms()
    shape = await put(pseudonyms, "EMAIL", "eva@example.org", scope)
    for short in (shape.removesuffix(".example"), shape.removesuffix("@pseudonym.example")):
        assert await pseudonyms.restore(f"Write to {short}.", scope=scope) == "Write to eva@example.org."
        assert await pseudonyms.restore(f"Write to {short}", scope=scope) == "Write to eva@example.org"
    other = "See email-000000 and email-20261126.pdf"
    assert await Guardrail(Policy.read(FORMED)).restore(other, scope=scope) == other


async def test_what_is_part_of_something_longer_is_no_pseudonym(scope: Scope) -> None:
    """A longer name, number or address that one stands in is left as it is: that would be a guess."""
    pseudonyms = Pseudonyms()
    made = {type_: await put(pseudonyms, type_, values[0], scope) for type_, values in VALUES.items()}
    for text in (
        *(f"x.{made['EMAIL']}", f"{made['EMAIL']}.org", f"{made['EMAIL']}s", f"7{made['CARD']}", f"{made['CARD']}0"),
        *(f"{made['IBAN']}A", f"A{made['IBAN']}", f"+{made['PHONE']}", f"1{made['IP']}", f"{made['IP']}.7"),
        f"{made['URL']}x1",
    ):
        assert await pseudonyms.restore(text, scope=scope) == text


async def test_one_id_is_read_in_both_forms(scope: Scope, tmp_path: Path) -> None:
    """A policy may change while cases run: a vault from before restores tokens and shapes, and gives no new ids."""
    before = Pseudonyms(tmp_path / "p.db", key=KEY)
    tokens = await before.tokens(PAIRS, scope=scope)
    await before.close()
    after = Pseudonyms(tmp_path / "p.db", key=KEY)
    for (type_, value), token in zip(PAIRS, tokens, strict=True):
        shape = await put(after, type_, value, scope)
        assert find_tokens(shape) == [token]
        assert await after.restore(f"{token} {shape}", scope=scope) == f"{value} {value}"
    assert await after.erase(scope=scope) == len(PAIRS)
    await after.close()


async def test_an_id_without_room_stays_a_token(scope: Scope) -> None:
    """Where a tenant's short ids are taken, an address of four numbers is a token again, and comes back."""
    pseudonyms = Pseudonyms(key=KEY)
    vault, address = pseudonyms._vault, "203.0.113.9"
    canonical = f"IP|{_canonical('IP', address)}"
    digests = [int.from_bytes(vault._digest(scope.tenant, f"stem{n}", canonical)) for n in range(_CROWDED)]
    with vault._rows(scope.tenant) as db:
        for stem in {f"{digest % 10**6:06}" for digest in digests}:
            db.execute(
                "INSERT INTO pseudonyms VALUES (?, ?, ?, ?, ?, ?)",
                (scope.tenant, f"EMAIL_{stem}", stem, b"another", stem.encode(), b""),
            )
    text = await put(pseudonyms, "IP", address, scope)
    assert re.fullmatch("<IP_[0-9]{7}>", text)
    assert await pseudonyms.restore(text, scope=scope) == address


# Whose they are.


@pytest.mark.parametrize(("type_", "value"), PAIRS)
async def test_a_shape_that_is_typed_comes_back_as_typed(type_: str, value: str, scope: Scope) -> None:
    """Also when it stands for the user's own value, however it is written, whether the policy keeps forms or not."""
    pseudonyms = Pseudonyms()
    shape = await put(pseudonyms, type_, value, scope)
    for policy in (FORMED, {"checks": {}}, {"checks": FORMED["checks"]}):
        guardrail = Guardrail(Policy.read(policy), pseudonyms=pseudonyms)
        for changed in (shape, *(change(shape) for change in CHANGES[type_])):
            text = f"What is {changed}"
            for where in ("input", "tool_result"):
                shown = await guardrail.check(text, where=where, scope=scope)
                assert find_tokens(shape)[0] not in find_tokens(shown.text), (text, shown.text)
                assert await guardrail.restore(shown.text, scope=scope) == text


async def test_what_becomes_a_shape_when_its_neighbour_is_replaced_comes_back_as_typed(scope: Scope) -> None:
    """A sign or a letter beside it that something else is put in place of no longer keeps it from being read."""
    pseudonyms = Pseudonyms()
    guardrail = Guardrail(Policy.read(FORMED), pseudonyms=pseudonyms)
    own = {type_: await put(pseudonyms, type_, values[0], scope) for type_, values in VALUES.items()}
    for text in (
        *(f"<PERSON_4243159990{own['PHONE']}", f"EMAIL_482139{own['PHONE']}", f"bob@example.org{own['PHONE']}"),
        *(f"{own['EMAIL']}.{own['CARD']}", f"{own['IP']}.{own['CARD']}", f"{own['EMAIL']}.{own['URL']}.{own['IBAN']}"),
    ):
        for policy in (guardrail, Guardrail(Policy(), pseudonyms=pseudonyms)):
            shown = await policy.check(text, scope=scope)
            assert await policy.restore(shown.text, scope=scope) == text


async def test_nobody_reads_with_somebody_elses(scope: Scope, other_scope: Scope) -> None:
    """Another user, another tenant: the shape stays, or says that it is unknown; the case decides about its id."""
    pseudonyms = Pseudonyms()
    guardrail = Guardrail(Policy.read(FORMED), pseudonyms=pseudonyms)
    for type_, value in PAIRS:
        shape = await put(pseudonyms, type_, value, scope)
        for stranger in (other_scope, Scope(tenant=scope.tenant, user="bob")):
            assert await pseudonyms.restore(shape, scope=stranger) == shape
            assert (await guardrail.restore(shape, scope=stranger)).startswith("[unknown ")
        case = Scope(tenant=scope.tenant, user=scope.user, case="17/2026")
        assert await put(pseudonyms, type_, value, case) != shape


async def test_a_made_up_or_damaged_one_is_not_guessed_at(scope: Scope) -> None:
    """A digit that was changed, lost or doubled makes nobody's of it, and the reader is told."""
    pseudonyms = Pseudonyms()
    guardrail = Guardrail(Policy.read(FORMED), pseudonyms=pseudonyms)
    for type_, word in (("CARD", "card number"), ("IBAN", "account number")):
        shape = await put(pseudonyms, type_, VALUES[type_][0], scope)
        for at in range(len(shape) - 8, len(shape)):
            for digits in (str((int(shape[at]) + 1) % 10), "", shape[at] * 2):
                damaged = f"It is {shape[:at]}{digits}{shape[at + 1 :]}."
                assert await guardrail.restore(damaged, scope=scope) == f"It is [unknown {word}]."
    phone = await put(pseudonyms, "PHONE", "+49 30 1234567", scope)
    assert await guardrail.restore(f"Call {phone[:-1]}.", scope=scope) == "Call [unknown phone number]."
    assert await guardrail.restore("Parcel 99912345678901", scope=scope) == "Parcel 99912345678901"
    made_up = "email-000000@pseudonym.example, 250.1.2.999"
    assert await guardrail.restore(made_up, scope=scope) == "[unknown e-mail address], [unknown IP address]"


@pytest.mark.parametrize(
    "text",
    [
        "Write to info@pseudonym.example or eva@example.org.",
        "The server is 250.7.7.7, or 240.0.0.1, or 2001:db8::1, or 2001:db8:999::1.",
        "Call +999 12 or +999 1234567890123456; pay 9990 1234 5678 9012 or 9990 1234 5678 9012 345.",
        "IBAN DE12 9990 0000 0000 0000 00, cost 999.00, id 99901234567890123456789",
    ],
)
async def test_real_values_near_the_reserved_spaces_behave_as_others(text: str, scope: Scope) -> None:
    """What a person wrote that lies in or beside these spaces goes to the model and comes back as it was written."""
    guardrail = Guardrail(Policy.read(FORMED))
    shown = await guardrail.check(text, scope=scope)
    assert not shown.blocked
    assert await guardrail.restore(shown.text, scope=scope) == text


# What looks for people's values.


async def test_no_check_takes_a_pseudonym_for_somebodys(scope: Scope) -> None:
    """Shapes and tokens in recalled text, in answers and in arguments are no findings, and are not replaced again."""
    pseudonyms = Pseudonyms()
    made = [await put(pseudonyms, type_, value, scope) for type_, value in PAIRS]
    made += await pseudonyms.tokens([("PERSON", "Eva Novak"), ("SSN", "123-45-6789")], scope=scope)
    text = "".join(f"My card, phone number, e-mail, name or IBAN is {one}. Call me at {one}.\n" for one in made)
    assert scan(text) == ()
    every = {name: dict.fromkeys(PLACES, "redact") for name in ("pii", "secrets", "links", "jailbreak")}
    guardrail = Guardrail(Policy.read({**FORMED, "checks": every}), pseudonyms=pseudonyms)
    for where in ("retrieved", "output", "tool_arguments"):
        verdict = await guardrail.check(text, where=where, scope=scope)
        assert verdict.text == text, verdict.findings
    beside = f"{made[0]} and bob@example.org"
    assert [found.span for found in scan(beside)] == [(len(made[0]) + 5, len(beside))]


@given(st.lists(PIECES, max_size=10).map("".join))
def test_what_is_masked_keeps_its_length(text: str) -> None:
    """Spans found in the masked text are spans of the text, and nothing but pseudonyms is masked."""
    hidden = masked(text)
    assert len(hidden) == len(text)
    assert (hidden == text) == (not find_tokens(text)) or "_" in text
    assert find_tokens(hidden) == []


@given(st.lists(PIECES, max_size=4).map("".join), st.data())
def test_no_spelling_in_json_hides_a_shape(text: str, data: st.DataObject) -> None:
    """However the characters of a text are written in JSON, what might hold a pseudonym is known by its bytes."""
    hidden = data.draw(st.sets(st.integers(0, max(0, len(text) - 1))))
    spell = data.draw(st.sampled_from(["\\u{:04x}", "\\u{:04X}"]))
    ascii_ = data.draw(st.booleans())
    written = "".join(
        spell.format(ord(char)) if at in hidden else json.dumps(char, ensure_ascii=ascii_)[1:-1]
        for at, char in enumerate(text)
    )
    written = written.replace("/", data.draw(st.sampled_from(["/", "\\/", "\\u002f"])))
    assert json.loads(f'"{written}"') == text
    assert json_might_hold_tokens(f'{{"content": "{written}"}}'.encode()) or not find_tokens(text)
    assert might_hold_tokens(text) or not find_tokens(text)


@pytest.mark.parametrize(
    "unit",
    [
        *("+99930202785641", "email-482139@pseudonym.example.9990302027856411.", "250.7.91.91."),
        *("PERSON_482139+99930202785641", "<EMAIL_482139>", "9990302027856411 "),
        "2001:db8:999:1828:1930:1202:1785:1641:9990302027856411",
    ],
)
def test_what_is_typed_is_made_safe_in_linear_time(unit: str) -> None:
    """However many look-alikes stand beside each other: all are found, and each costs no more among many."""

    def cost(times: int) -> float:
        text = unit * times
        spans = with_look_alikes(text, [])
        assert find_tokens(splice(text, [(start, end, "<>") for start, end, _ in spans])) == []
        return cpu_s(lambda: with_look_alikes(text, []))

    cost(100)
    assert cost(8_000) < 16 * 4 * cost(500) + 0.1


@pytest.mark.parametrize(
    "unit",
    ["9", "999 ", "9990", "+999(", "0099 9", "250.", "2001:db8:999:1", "email-1", "de99 9990 ", "https://", " (9"],
)
def test_looking_for_shapes_takes_linear_time(unit: str) -> None:
    """A text made of beginnings costs no more for each character when it is 16 times as long."""

    def cost(times: int) -> float:
        text = unit * times
        started = time.process_time()
        find_tokens(text)
        masked(text)
        json_might_hold_tokens(text.encode())
        return time.process_time() - started

    cost(1_000)
    assert cost(32_000) < 16 * 4 * cost(2_000) + 0.1


# Arguments, answers, and the door.


async def test_arguments_are_restored_in_json(scope: Scope) -> None:
    """In strings however they are spelled, in keys, and where a number was written as a number."""
    pseudonyms = Pseudonyms()
    guardrail = Guardrail(Policy.read(FORMED), pseudonyms=pseudonyms)
    card = await put(pseudonyms, "CARD", "4111 1111 1111 1111", scope)
    email = await put(pseudonyms, "EMAIL", "eva@example.org", scope)
    asked = {"card": int(card), "to": [email, {email.upper(): 7}], "n": 999, "on": True}
    text = json.dumps(asked).replace("@", "\\u0040")
    back = json.loads(await guardrail.restore_arguments(text, scope=scope))
    assert back == {"card": 4111111111111111, "to": ["eva@example.org", {"eva@example.org": 7}], "n": 999, "on": True}


async def test_an_answers_form_is_held_by_a_shape_and_not_by_a_token(scope: Scope) -> None:
    """The policy's schema looks at what the model wrote: a token is no address, and a shape is one."""
    schema = {"type": "object", "properties": {"to": {"type": "string", "pattern": r"^[\w.-]+@[\w.-]+\.[a-z]{2,}$"}}}
    for keeps in (True, False):
        policy = Policy.read(
            {
                "checks": {"pii": {"input": "redact"}, "form": {"output": "block"}},
                "form": {"output": schema},
                "pseudonyms": {"format_preserving": ["EMAIL"] if keeps else []},
            }
        )
        guardrail = Guardrail(policy)
        asked = (await guardrail.check("eva@example.org", scope=scope)).text
        verdict = await guardrail.check(json.dumps({"to": asked}), where="output", scope=scope)
        assert verdict.blocked == (not keeps)
        if keeps:
            assert await guardrail.restore(verdict.text, scope=scope) == '{"to": "eva@example.org"}'


async def test_what_leaves_keeps_its_form_through_both_layers(scope: Scope) -> None:
    """The guardrail's shape is disguised at the door by another of its form, and each layer gets back its own."""
    pseudonyms = Pseudonyms()
    policy = Policy.read(FORMED)
    guardrail, door = Guardrail(policy, pseudonyms=pseudonyms), Outgoing(PII(), pseudonyms=pseudonyms)
    for type_, value in PAIRS:
        inside = await put(pseudonyms, type_, value, scope)
        outside = await door.conceal(f"It is {inside}", scope=scope, policy=policy)
        written = outside.removeprefix("It is ")
        assert passes(type_, value, written)
        assert written != inside
        back = await door.restore(outside, scope=scope)
        assert back == f"It is {inside}"
        assert await guardrail.restore(back, scope=scope) == f"It is {value}"


async def test_what_leaves_is_concealed_as_the_policy_of_the_call_says(scope: Scope) -> None:
    """Where it keeps nothing of a type, or wants a token, so does the door, and the answer's reader is told."""
    policy = Policy.read({"pseudonyms": {"irreversible": ["CARD"], "format_preserving": ["EMAIL"]}})
    door = Outgoing(PII(), pseudonyms=Pseudonyms())
    text = "eva@example.org, 4111 1111 1111 1111"
    outside = await door.conceal(text, scope=scope, policy=policy)
    assert re.fullmatch(r"email-[0-9]{6}@pseudonym\.example, <CARD_[0-9]{8}zz>", outside)
    assert await door.restore(outside, scope=scope) == f"eva@example.org, {outside.partition(', ')[2]}"
    hidden = await door.conceal(text, scope=scope, policy=Policy.read(FORMED))
    assert "<" not in hidden
    assert await door.restore(hidden, scope=scope) == text


async def test_a_shape_that_is_for_good_is_never_turned_back(scope: Scope, tmp_path: Path) -> None:
    """It passes checkers, is the same for the same value, is in no vault, and a reader sees that it is withheld."""
    policy = Policy.read({**FORMED, "pseudonyms": {"format_preserving": ["*"], "irreversible": ["*"]}})
    pseudonyms = Pseudonyms(tmp_path / "p.db", key=KEY)
    guardrail = Guardrail(policy, pseudonyms=pseudonyms)
    card = "4111 1111 1111 1111"
    shown = (await guardrail.check(f"Card {card}", scope=scope)).text
    assert luhn.is_valid(shown.removeprefix("Card "))
    assert (await guardrail.check(f"Card {card}", scope=scope)).text == shown
    assert await guardrail.restore(shown, scope=scope) == "Card [withheld card number]"
    address = (await guardrail.check("203.0.113.9", scope=scope)).text
    assert re.fullmatch("<IP_[0-9]{8}zz>", address), "an address of four numbers has no room for it"
    assert (await guardrail.check(shown, where="retrieved", scope=scope)).text == shown
    assert await pseudonyms.erase(scope=scope) == 0
    await pseudonyms.close()


async def test_looking_behind_a_shape_is_as_with_a_token(scope: Scope) -> None:
    """The officer reads it, and the entry counts it; what was typed is what is told."""

    entries: list[dict[str, Any]] = []

    class Notes:
        async def append(self, kind: str, *, scope: Scope, detail: dict[str, Any]) -> None:
            entries.append(detail)

    policy = Policy.read({**FORMED, "pseudonyms": {"format_preserving": ["*"], "unmask": ["officer"]}})
    guardrail = Guardrail(policy)
    text = "Write to eva@example.org, email-482139@pseudonym.example or 4111 1111 1111 1111"
    shown = (await guardrail.check(text, scope=scope)).text
    officer = Scope(tenant=scope.tenant, user="officer")
    assert await guardrail.unmask(shown, scope=officer, reason="court order 7", audit=Notes()) == text  # type: ignore[arg-type]
    assert (entries[0]["count"], entries[0]["types"]) == (3, ["CARD", "EMAIL"])
