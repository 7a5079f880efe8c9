"""Pseudonyms: reversible to the character, stable in a tenant, worthless to anybody else, and erasable."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pieces import restored

from aibox.errors import ConfigError, IntegrityError, StoreError
from aibox.guardrails.marks import find_tokens, json_might_hold_tokens, might_hold_tokens
from aibox.guardrails.pii import scan
from aibox.guardrails.pseudonyms import Pseudonyms, Restorer
from aibox.guardrails.vault import _of_case
from aibox.policy.pseudonyms import PseudonymRules
from aibox.types import Finding, Scope

pytestmark = pytest.mark.anyio

KEY = bytes(range(32))
TEXT = "My name is Eva Novak, write to eva@example.org."
TOKEN = re.compile(r"<[A-Z]+_[0-9]{6}[a-z]{0,2}>")


@given(st.text("PERSON_<>[]0123456789é\\u", max_size=24), st.data())
def test_no_spelling_in_json_hides_a_token(text: str, data: st.DataObject) -> None:
    """However the characters of a text are written in JSON, what might hold a token is known by its bytes."""
    text += data.draw(st.sampled_from(["", "<PERSON_482139>", "email_001122ab"]))
    hidden = data.draw(st.sets(st.integers(0, max(0, len(text) - 1))))
    spell = data.draw(st.sampled_from(["\\u{:04x}", "\\u{:04X}"]))
    written = "".join(
        spell.format(ord(char)) if at in hidden else json.dumps(char)[1:-1] for at, char in enumerate(text)
    )
    assert json.loads(f'"{written}"') == text
    found = json_might_hold_tokens(f'{{"content": "{written}"}}'.encode())
    assert found or not (might_hold_tokens(text) or find_tokens(text))


async def hide(pseudonyms: Pseudonyms, text: str, scope: Scope) -> str:
    return await pseudonyms.replace(text, scan(text), scope=scope)


async def test_a_round_trip_gives_the_text_back(scope: Scope) -> None:
    """Replacing takes every value out, and restoring puts every value back."""
    pseudonyms = Pseudonyms()
    hidden = await hide(pseudonyms, TEXT, scope)
    assert "Eva" not in hidden
    assert "example" not in hidden
    assert len(TOKEN.findall(hidden)) == 2
    assert await pseudonyms.restore(hidden, scope=scope) == TEXT


VALUES = ("Eva Novak", "eva novak", "EVA@example.org", "eva@example.org", "4111 1111 1111 1111", "4111111111111111")
LOOK_ALIKES = ("PERSON_482139", "<PERSON_482139>", "[EMAIL_001122]", "person_123456AB", "CARD_1234567890123")
PIECES = st.sampled_from([*VALUES, *LOOK_ALIKES, "My name is ", *" \n<>[]_xé\u200b"])


@given(st.lists(PIECES, max_size=12).map("".join), st.data())
def test_any_text_survives_the_round_trip(text: str, data: st.DataObject) -> None:
    """Whatever is in a text, tokens and all, and whatever spans are replaced, restoring gives it back exactly."""
    spans = sorted(data.draw(st.lists(st.tuples(st.integers(0, len(text)), st.integers(0, len(text))), max_size=4)))
    findings = [Finding("pii", "PERSON", (min(span), max(span))) for span in spans]

    async def trip() -> str:
        pseudonyms, me = Pseudonyms(key=KEY), Scope(tenant="acme", user="eva")
        return await pseudonyms.restore(await pseudonyms.replace(text, findings, scope=me), scope=me)

    assert anyio.run(trip) == text


async def test_equal_values_share_a_token_and_writings_share_its_stem(scope: Scope) -> None:
    """One value has one token; another writing of it differs in letters at the end, and both come back as written."""
    pseudonyms = Pseudonyms()
    once, again, other = await pseudonyms.tokens(
        [("EMAIL", "eva@example.org"), ("EMAIL", "eva@example.org"), ("EMAIL", "EVA@example.org")], scope=scope
    )
    assert once == again != other
    assert other[:-2] == once[:-1]
    assert await pseudonyms.restore(f"{once} {other}", scope=scope) == "eva@example.org EVA@example.org"


async def test_tenants_get_different_tokens(scope: Scope, other_scope: Scope) -> None:
    """The same value in two tenants has two tokens, and neither tenant restores the other's."""
    pseudonyms = Pseudonyms()
    mine, theirs = await hide(pseudonyms, TEXT, scope), await hide(pseudonyms, TEXT, other_scope)
    assert not set(TOKEN.findall(mine)) & set(TOKEN.findall(theirs))
    assert await pseudonyms.restore(mine, scope=other_scope) == mine


async def test_a_user_cannot_read_with_somebody_elses_token(scope: Scope) -> None:
    """Within a tenant a token is restored for those who gave the value, and for nobody else."""
    pseudonyms = Pseudonyms()
    hidden = await hide(pseudonyms, TEXT, scope)
    bob = Scope(tenant=scope.tenant, user="bob")
    assert await pseudonyms.restore(hidden, scope=bob) == hidden
    assert await hide(pseudonyms, TEXT, bob) == hidden
    assert await pseudonyms.restore(hidden, scope=bob) == TEXT


async def test_a_smuggled_token_stays_text(scope: Scope) -> None:
    """A token typed by the same user is escaped on the way in and comes out as it was typed, not as its value."""
    pseudonyms = Pseudonyms()
    token = TOKEN.findall(await hide(pseudonyms, TEXT, scope))[0]
    for typed in (token, token.strip("<>"), token.lower(), f"[{token.strip('<>')}]"):
        hidden = await hide(pseudonyms, f"What is {typed}?", scope)
        assert token.strip("<>").lower() not in hidden.lower()
        assert await pseudonyms.restore(hidden, scope=scope) == f"What is {typed}?"


async def test_forged_tokens_stay_as_they_are(scope: Scope) -> None:
    """A token that was never made is left alone."""
    pseudonyms = Pseudonyms()
    await hide(pseudonyms, TEXT, scope)
    forged = "Dear <PERSON_000000>, <EMAIL_999999> and <NOBODY_123456>"
    assert await pseudonyms.restore(forged, scope=scope) == forged


async def test_a_type_and_an_id_that_were_mixed_up_stand_for_nothing(scope: Scope) -> None:
    """The id of an e-mail address under the name of another type is neither the address nor any other value."""
    pseudonyms = Pseudonyms()
    person, email = await pseudonyms.tokens([("PERSON", "Eva Novak"), ("EMAIL", "eva@example.org")], scope=scope)
    mixed = f"<PERSON_{email.split('_')[1]}"
    assert mixed != person
    assert await pseudonyms.restore(mixed, scope=scope) == mixed


async def test_ids_outgrow_six_digits_before_they_run_out(scope: Scope) -> None:
    """When the short ids of a tenant are taken the next value gets a longer one, which is found and restored."""
    pseudonyms = Pseudonyms(key=KEY)
    await pseudonyms.tokens([("PERSON", "Eva Novak")], scope=scope)
    with pseudonyms._vault._rows(scope.tenant) as db:
        taken = ((scope.tenant, f"EMAIL_{n:06}", f"{n:06}", b"other", n.to_bytes(4), b"") for n in range(10**6))
        db.executemany("INSERT OR IGNORE INTO pseudonyms VALUES (?, ?, ?, ?, ?, ?)", taken)
    (token,) = await pseudonyms.tokens([("PERSON", "Jan Novak")], scope=scope)
    assert re.fullmatch("<PERSON_[0-9]{7}>", token)
    assert await pseudonyms.restore(f"Dear {token}!", scope=scope) == "Dear Jan Novak!"


async def test_harm_done_by_models_is_undone(scope: Scope) -> None:
    """Another case, missing or square brackets do not keep a token from being restored."""
    pseudonyms = Pseudonyms()
    (token,) = await pseudonyms.tokens([("PERSON", "Eva Novak")], scope=scope)
    name = token.strip("<>")
    for damaged in (name, f"<{name}", f"{name}>", f"[{name}]", token.lower(), token.upper()):
        assert await pseudonyms.restore(f"Dear {damaged}, hello", scope=scope) == "Dear Eva Novak, hello"


async def test_what_is_part_of_a_longer_word_is_no_token(scope: Scope) -> None:
    """A token's letters inside another word are not touched: that would be a guess."""
    pseudonyms = Pseudonyms()
    (token,) = await pseudonyms.tokens([("PERSON", "Eva Novak")], scope=scope)
    for text in (f"MY{token[1:-1]}", f"{token[1:-1]}0", f"{token[1:-1]}_x", token[:-2]):
        assert await pseudonyms.restore(text, scope=scope) == text


@given(
    st.lists(st.sampled_from(["Eva Novak", "<", "[", "]", ">", "PERSON_", "x" * 30, "a", " ", "_", "é"]), max_size=10),
    st.data(),
)
def test_restoring_a_stream_is_restoring_the_whole(words: list[str], data: st.DataObject) -> None:
    """For every chunking the pieces add up to the whole text restored, and little is held back."""

    async def both() -> tuple[str, str]:
        pseudonyms, me = Pseudonyms(key=KEY), Scope(tenant="acme", user="eva")
        (token,) = await pseudonyms.tokens([("PERSON", "Eva Novak")], scope=me)
        text = "".join(token if word == "Eva Novak" else word for word in words) + token[1:-1]
        streamed = await restored(Restorer(pseudonyms, scope=me), text, data, most=12)
        return streamed, await pseudonyms.restore(text, scope=me)

    streamed, whole = anyio.run(both)
    assert streamed == whole


async def test_a_stream_of_chunks_is_restored(scope: Scope) -> None:
    """`restore_stream` turns an async iterator of pieces into one of restored pieces."""
    pseudonyms = Pseudonyms()
    hidden = await hide(pseudonyms, TEXT, scope)

    async def letters() -> AsyncIterator[str]:
        for letter in hidden:
            yield letter

    assert "".join([piece async for piece in pseudonyms.restore_stream(letters(), scope=scope)]) == TEXT


async def test_erasing_a_user_forgets_what_only_they_gave(scope: Scope, tmp_path: Path) -> None:
    """Values of one user are gone, also from the file; a value that another user gave too stays for that one."""
    path = tmp_path / "p.db"
    pseudonyms = Pseudonyms(path, key=KEY)
    bob = Scope(tenant=scope.tenant, user="bob")
    shared = await hide(pseudonyms, "mail bob@example.org", scope)
    await hide(pseudonyms, "mail bob@example.org", bob)
    own = await hide(pseudonyms, "mail eva@example.org", scope)
    assert await pseudonyms.erase(scope=scope, subject=scope.user) == 1
    assert await pseudonyms.restore(own, scope=scope) == own
    assert await pseudonyms.restore(shared, scope=scope) == shared
    assert await pseudonyms.restore(shared, scope=bob) == "mail bob@example.org"
    token = own.removeprefix("mail <")[:-1].encode()
    assert not any(token in file.read_bytes() for file in tmp_path.iterdir())
    await pseudonyms.close()


async def test_erasing_a_tenant_leaves_the_others(scope: Scope, other_scope: Scope) -> None:
    """Without a subject everything of the scope's tenant goes, and nothing of another."""
    pseudonyms = Pseudonyms()
    mine, theirs = await hide(pseudonyms, TEXT, scope), await hide(pseudonyms, TEXT, other_scope)
    assert await pseudonyms.erase(scope=scope) == 2
    assert await pseudonyms.restore(mine, scope=scope) == mine
    assert await pseudonyms.restore(theirs, scope=other_scope) == TEXT


async def test_a_file_outlives_its_process_and_tells_nothing(scope: Scope, tmp_path: Path) -> None:
    """What was written is restored after reopening; neither value nor user can be read in the file, which is 0600."""
    path = tmp_path / "p.db"
    first = Pseudonyms(path, key=KEY)
    hidden = await hide(first, TEXT, scope)
    raw = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"Novak" not in raw
    assert b"eva" not in raw
    assert path.stat().st_mode & 0o777 == 0o600
    await first.close()
    second = Pseudonyms(path, key=KEY)
    assert await second.restore(hidden, scope=scope) == TEXT
    await second.close()
    await second.close()


async def test_two_processes_share_a_place(scope: Scope, shared_place: Path | str) -> None:
    """Two processes that write at the same time agree on every token."""
    path = shared_place
    code = (
        "import anyio, sys; from aibox.guardrails.pseudonyms import Pseudonyms; from aibox.types import Scope\n"
        "async def main():\n"
        "    p = Pseudonyms(sys.argv[1], key=bytes(range(32))); me = Scope(tenant='acme', user='eva')\n"
        "    for n in range(40): print(*await p.tokens([('EMAIL', f'user{n}@example.org')], scope=me))\n"
        "anyio.run(main)"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    one, two = (run.communicate(timeout=300)[0].split() for run in runs)
    assert len(one) == 40
    assert one == two


async def test_servers_share_a_database_and_tenants_do_not(scope: Scope, other_scope: Scope, postgres_url: str) -> None:
    """One restores what the other hid; another tenant or user gets nothing back; erasing forgets it for both."""
    one, two = (Pseudonyms(postgres_url, key=KEY) for _ in range(2))
    hidden = await hide(one, TEXT, scope)
    assert await two.restore(hidden, scope=scope) == TEXT
    for stranger in (other_scope, Scope(tenant=scope.tenant, user="tom")):
        assert await two.restore(hidden, scope=stranger) == hidden
    assert "writer" not in repr(one)
    await one.erase(scope=scope, subject=scope.user)
    assert await two.restore(hidden, scope=scope) == hidden
    await one.close()
    await two.close()


async def test_a_moved_value_is_noticed(scope: Scope, tmp_path: Path) -> None:
    """A sealed value put under another token does not decrypt: IntegrityError, never somebody else's value."""
    path = tmp_path / "p.db"
    pseudonyms = Pseudonyms(path, key=KEY)
    hidden = await hide(pseudonyms, TEXT, scope)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE pseudonyms SET sealed = (SELECT sealed FROM pseudonyms ORDER BY token LIMIT 1)")
    db.close()
    with pytest.raises(IntegrityError):
        await pseudonyms.restore(hidden, scope=scope)
    await pseudonyms.close()


async def test_a_wrong_key_is_refused(scope: Scope, shared_place: Path | str) -> None:
    """A place opened with another key, without one, or with a short one is a ConfigError."""
    path = shared_place
    first = Pseudonyms(path, key=KEY)
    await hide(first, TEXT, scope)
    await first.close()
    wrong = Pseudonyms(path, key=bytes(32))
    with pytest.raises(ConfigError, match="another key"):
        await wrong.restore("<PERSON_000000>", scope=scope)
    await wrong.close()
    with pytest.raises(ConfigError, match="need a key"):
        Pseudonyms(path)
    with pytest.raises(ConfigError, match="needs 32"):
        Pseudonyms(path, key=b"short")


async def test_a_file_that_cannot_be_used_is_a_store_error(scope: Scope, tmp_path: Path) -> None:
    """A folder that cannot be and a file that is no database say so as StoreError."""
    (tmp_path / "junk.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError):
        await hide(Pseudonyms(tmp_path / "junk.db" / "p.db", key=KEY), TEXT, scope)
    with pytest.raises(StoreError):
        await hide(Pseudonyms(tmp_path / "junk.db", key=KEY), TEXT, scope)


async def test_values_that_share_a_stem_stay_apart(scope: Scope) -> None:
    """Two values whose digests begin alike get the same token when alone, and two tokens when together."""
    one, other = ("PERSON", "n756"), ("PERSON", "n1135")
    assert await Pseudonyms(key=KEY).tokens([one], scope=scope) == await Pseudonyms(key=KEY).tokens(
        [other], scope=scope
    )
    pseudonyms = Pseudonyms(key=KEY)
    first, second = await pseudonyms.tokens([one, other], scope=scope)
    assert first != second
    assert await pseudonyms.restore(f"{first} {second}", scope=scope) == "n756 n1135"


async def test_cases_of_a_tenant_are_apart(scope: Scope) -> None:
    """A value has one token in a case, whoever gives it, and another in every other case; both come back."""
    pseudonyms = Pseudonyms()
    one, two = replace(scope, case="17/2026"), replace(scope, case="18/2026")
    hidden = {s.case: await hide(pseudonyms, TEXT, s) for s in (scope, one, two)}
    tokens = [token for text in hidden.values() for token in TOKEN.findall(text)]
    assert len(set(tokens)) == 6
    assert await hide(pseudonyms, TEXT, Scope(tenant=scope.tenant, user="bob", case=one.case)) == hidden[one.case]
    for other in (one, two):
        assert await pseudonyms.restore(hidden[other.case], scope=other) == TEXT


@given(*[st.text("0123456789:|ABC", max_size=4)] * 4)
def test_no_case_reads_like_another(case: str, value: str, other: str, else_: str) -> None:
    """Whatever a case is called, two pairs of case and value are digested alike only when they are equal."""
    pairs = {(case, value), (other, else_)}
    assert len({_of_case(of, f"PERSON|{what}") for of, what in pairs}) == len(pairs)


async def test_what_is_not_kept_differs_by_case_too(scope: Scope) -> None:
    """A pseudonym that nothing is kept of says in one case nothing about another."""
    rules = PseudonymRules(irreversible=frozenset({"CARD"}))
    card = [("CARD", "4111 1111 1111 1111")]
    tokens = {
        case: await Pseudonyms(key=KEY).tokens(card, scope=replace(scope, case=case), rules=rules)
        for case in ("", "17/2026", "18/2026")
    }
    assert len({token for (token,) in tokens.values()}) == 3
