"""The documents that the head for documents is to learn from are pairs, and nothing but an order tells them apart."""

from __future__ import annotations

from collections import Counter

import pytest


@pytest.fixture(scope="module")
def documents(programs):
    return programs("training", "documents")


@pytest.fixture(scope="module")
def found(documents):
    return list(documents.documents())


def test_each_planted_text_has_one_twin_that_differs_in_the_order_alone(found):
    """A pair is one text with an order for a model and one with another order in the same place, and nothing else."""
    pairs = {}
    for each in found:
        if each.pair:
            pairs.setdefault(each.pair, {})[each.version] = each
    assert pairs
    assert sum(len(pair) for pair in pairs.values()) == sum(bool(each.pair) for each in found)
    for name, pair in pairs.items():
        planted, twin = pair["planted"], pair["twin"]
        around = [each.text[: each.span[0]] + "\0" + each.text[each.span[1] :] for each in (planted, twin)]
        assert around[0] == around[1], name
        assert (planted.label, twin.label) == (1, 0), name
        assert (planted.act, planted.kind, planted.language) == (twin.act, twin.kind, twin.language), name


def test_the_two_orders_of_a_pair_are_about_as_long(found):
    """Neither length nor its lack gives an order away: over all pairs, and within three times in each."""
    lengths = {"planted": 0, "twin": 0}
    pairs = {}
    for each in found:
        if each.pair:
            pairs.setdefault(each.pair, []).append(each.span[1] - each.span[0])
            lengths[each.version] += each.span[1] - each.span[0]
    assert [name for name, (one, other) in pairs.items() if max(one, other) > 3 * min(one, other)] == []
    assert 0.8 < lengths["planted"] / lengths["twin"] < 1.25


def test_no_text_is_there_twice(found):
    """A text that turns up twice would count twice."""
    count = Counter(each.text for each in found)
    assert [text for text, times in count.items() if times > 1] == []


def test_every_language_has_pairs_and_honest_texts(found):
    """A language that had one label alone would be suspicious by itself."""
    versions = {}
    for each in found:
        versions.setdefault(each.language, set()).add(each.version)
    assert {"en"} <= versions.keys()
    assert all(have == {"planted", "twin", "plain", "honest"} for have in versions.values()), versions


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('kind = "letter"\ntext = "A {here}"\npairs = [["hide", "b", "c"]]', "'letter' is none of"),
        ('kind = "mail"\ntext = "A {here}"\npairs = [["dance", "b", "c"]]', "'dance' is none of"),
        ('kind = "mail"\ntext = "A"\npairs = [["hide", "b", "c"]]', "says {here} once"),
        ('kind = "mail"\ntext = "A {here}"\npairs = []', "needs `pairs`"),
    ],
)
def test_an_entry_that_is_not_as_the_reader_says_is_refused(documents, tmp_path, entry, said):
    """A misspelt kind or act, or a text without its place, stops the training and says which entry it is."""
    (tmp_path / "en.toml").write_text(f"[[document]]\n{entry}\n", "utf-8")
    with pytest.raises(ValueError, match="en/0") as error:
        list(documents.documents(tmp_path))
    assert said in str(error.value)
