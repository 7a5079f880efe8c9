"""PII: valid forms are found in any disguise, invalid ones are not, and names need a sign."""

from __future__ import annotations

import pytest
from growth import cpu_s
from hypothesis import given
from hypothesis import strategies as st

from aibox.guardrails.formats import luhn
from aibox.guardrails.pii import PII, TYPES, scan
from aibox.protocols import Check
from aibox.testing.check_contract import CheckContract


class TestPIIKeepsTheContract(CheckContract):
    found = "My name is Eva Novak and my card is 4111 1111 1111 1111."
    clean = "The train leaves at noon."

    @pytest.fixture
    def check(self) -> Check:
        return PII()


def seen(text: str) -> list[tuple[str, str]]:
    return [(finding.rule, text[slice(*finding.span)]) for finding in scan(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to eva.novak+tag@mail.example.co.uk.", [("EMAIL", "eva.novak+tag@mail.example.co.uk")]),
        ("<eva@example.org>", [("EMAIL", "eva@example.org")]),
        ("call +49 (0)151 234 56 789 now", [("PHONE", "+49 (0)151 234 56 789")]),
        ("or (202) 555-0143 x12", [("PHONE", "(202) 555-0143 x12")]),
        ("Tel. 01.84.17.61.18", [("PHONE", "01.84.17.61.18")]),
        ("Phone: 72 128 827", [("PHONE", "72 128 827")]),
        ("phone: ٧٢ ١٢٨ ٨٢٧", [("PHONE", "٧٢ ١٢٨ ٨٢٧")]),
        ("card 4111-1111-1111-1111, 12/27", [("CARD", "4111-1111-1111-1111")]),
        ("card 4111 1111 1111 1111 12 27", [("CARD", "4111 1111 1111 1111")]),
        ("amex 378282246310005", [("CARD", "378282246310005")]),
        ("IBAN DE89 3704 0044 0532 0130 00 please", [("IBAN", "DE89 3704 0044 0532 0130 00")]),
        ("gb82west12345698765432", [("IBAN", "gb82west12345698765432")]),
        ("SSN 123-45-6789", [("SSN", "123-45-6789")]),
        ("from 192.168.10.7, then", [("IP", "192.168.10.7")]),
        ("at 2001:db8::8a2e:370:7334.", [("IP", "2001:db8::8a2e:370:7334")]),
        ("postgres://eva:s3cret@db.example.com:5432/x", [("URL", "postgres://eva:s3cret@db.example.com:5432")]),
        ("born on 3 May 1980 in Brno", [("BIRTHDATE", "3 May 1980")]),
        ("DOB: 1980-05-03", [("BIRTHDATE", "1980-05-03")]),
        ("My name is Eva Novak.", [("PERSON", "Eva Novak")]),
        ("my name is eva novak and", [("PERSON", "eva novak")]),
        ("I am Jiří Dvořák", [("PERSON", "Jiří Dvořák")]),
        ("ask Dr. van Helsing or Mrs. O'Neil", [("PERSON", "van Helsing"), ("PERSON", "O'Neil")]),
        ("Best regards,\nOluwaseun Adeyemi", [("PERSON", "Oluwaseun Adeyemi")]),
        ("we met Maria de la Cruz yesterday", [("PERSON", "Maria de la Cruz")]),
        ("Contact Anna Kowalska's office", [("PERSON", "Anna Kowalska")]),
    ],
)
def test_personal_data_is_found(text: str, expected: list[tuple[str, str]]) -> None:
    """Each form is found whole, under its type, and nothing else is."""
    assert seen(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "order 4111 1111 1111 1112",  # fails the checksum
        "number 1234567890123456",
        "IBAN DE88370400440532013000",  # wrong check digits
        "SSN 000-12-3456 or 666-12-3456 or 923-45-6789 or 123-00-4567",
        "256.300.1.2 and version 1.2.3.4",
        "at 12:30:45, std::vector, a[::2]",
        "on 2024-01-02 at 10:00",
        "eva@localhost",
        "https://example.com/@eva",
        "between 1000 and 2000 units, 3.14159",
        "I am happy. This is New York. My name is not important.",
        "The Grand Hotel in Paris, on Monday Morning",
        "Hi there, Dear customer",
        "<PERSON_482139> wrote to <EMAIL_001122>",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    """Numbers that fail their checks, code, dates, places and pseudonyms are not personal data."""
    assert seen(text) == []


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("４１１１ １１１１ １１１１ １１１１", "CARD"),
        ("4111\u200b1111\u200b1111\u200b1111", "CARD"),
        ("eva\u2060@exam\u200bple.com", "EMAIL"),
        ("ｅｖａ＠ｅｘａｍｐｌｅ．ｃｏｍ", "EMAIL"),
        ("DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000", "IBAN"),
    ],
)
def test_disguise_does_not_hide_it(text: str, type_: str) -> None:
    """Full-width digits, no-break spaces and zero-width joints are seen through, and the span covers the original."""
    assert seen(f"so: {text}!") == [(type_, text)]


@given(st.text(alphabet="0123456789 -+()@.aEv:/x\n", max_size=80))
def test_findings_are_disjoint_and_in_order(text: str) -> None:
    """Whatever the text, findings follow one another, lie inside it and carry a known type."""
    at = 0
    for finding in scan(text):
        assert at <= finding.span[0] < finding.span[1] <= len(text)
        assert finding.rule in TYPES
        at = finding.span[1]


@given(st.text(alphabet="0123456789", min_size=15, max_size=15).filter(lambda digits: len(set(digits)) > 1))
def test_luhn_accepts_exactly_one_check_digit(digits: str) -> None:
    """Of the ten digits that can end a number, one is right."""
    assert sum(luhn(digits + last) for last in "0123456789") == 1


@pytest.mark.parametrize("unit", ["1 ", "01 ", "a@", "@", "Aa ", "A'", "+1 ", "DE89 ", "::", "my name is ", "://a:b"])
def test_time_is_linear_on_hostile_texts(unit: str) -> None:
    """Ten times as much of what begins a form everywhere takes about ten times as long."""
    scan(unit)

    def seconds(size: int) -> float:
        text = (unit * (size // len(unit) + 1))[:size]
        return cpu_s(lambda: scan(text))

    assert seconds(200_000) < 30 * seconds(20_000) + 0.1
