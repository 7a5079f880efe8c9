"""The texts written whole that the head for users' messages is to learn from: none is lost, doubled or one-sided."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from aibox.guardrails import names

TRAINING = Path(__file__).parents[2] / "training"
AUTHORS = [*"bcdfghijlmnqrstuvxyz", *(f"a{letter}" for letter in "abcdefghijklmno")]


@pytest.fixture(scope="module")
def attacks(programs):
    return programs("training", "attacks")


@pytest.fixture(scope="module")
def made(attacks):
    return [each for each in attacks.direct() if each.author != "own"]


def test_every_text_of_every_file_is_made_once_and_says_whose_it_is(attacks, made):
    """Also in languages that have no patterns; the file's name says the language and the author."""
    written = Counter(
        (name.partition("_")[0], " ".join(["whole", *name.split("_")[1:]]), label, intent, text)
        for name, parts in attacks.whole().items()
        for label, key in enumerate(("harmless", "attack"))
        for intent, texts in parts.get(key, {}).items()
        for text in texts
    )
    assert set(attacks.languages()) > set(attacks.files())
    assert Counter((each.language, each.author, each.label, each.intent, each.text) for each in made) == written


def test_no_text_is_there_twice_or_under_both_labels(made):
    """A text that turns up twice would count twice, and one that is both would teach nothing."""
    assert [text for text, times in Counter(each.text.strip() for each in made).items() if times > 1] == []


def test_every_author_wrote_attacks_and_harmless_texts_in_each_of_their_languages(made):
    """A language or an author that had one label alone would be suspicious by itself."""
    labels = {}
    for each in made:
        labels.setdefault((each.language, each.author), set()).add(each.label)
    assert {author for _, author in labels} == {"whole", *(f"whole {letters}" for letters in AUTHORS)}
    assert [who for who, have in labels.items() if have != {0, 1}] == []


def test_the_card_is_of_the_texts_that_are_here(attacks):
    """Weights that were trained on other languages than these would not be the ones that the recipe makes."""
    card = (TRAINING.parent / "aibox" / "guardrails" / "weights" / "card.json").read_text("utf-8")
    assert json.loads(card)["heads"]["direct"]["languages_made"] == attacks.languages()


def test_the_common_words_are_those_of_the_texts_that_are_here(programs):
    """The list that the check `entities` reads is the one that the recipe makes, and no given name is on it."""
    common_words = programs("training", "common_words")
    assert common_words.OUT.read_text("utf-8") == common_words.written(), "run training/common_words.py"
    assert [word for word in names.common_words() if names.is_given(word)] == []
    assert {"boiler", "invoice", "factura"} < names.common_words()
