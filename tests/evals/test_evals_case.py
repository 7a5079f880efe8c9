"""Cases from files: three formats, one meaning, errors that name the case."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibox.errors import ConfigError
from aibox.evals.case import Case, Dataset

YAML = """
cases:
  - id: owed
    input: What does Acme owe?
    expected: 1240.5
    tools: [owed]
  - input: "Hello\u2028there"
    label: confidential/PHI
    tags: [small]
"""
JSONL = """{"id": "owed", "input": "What does Acme owe?", "expected": 1240.5, "tools": ["owed"]}

{"input": "Hello\u2028there", "label": "confidential/PHI", "tags": ["small"]}
"""
CSV = """id,input,expected,tools,label,tags
owed,What does Acme owe?,1240.5,"[""owed""]",,
,Hello\u2028there,,,confidential/PHI,"[""small""]"
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_three_formats_say_the_same(tmp_path: Path) -> None:
    """The digest is of the cases and not of the file."""
    read = [
        Dataset.load(write(tmp_path, name, text))
        for name, text in (("a.yaml", YAML), ("a.jsonl", JSONL), ("a.csv", CSV))
    ]
    assert len({dataset.digest for dataset in read}) == 1
    assert [case.id for case in read[0]] == ["owed", "case-2"]
    assert read[0].tagged("small")[0].label == "confidential/PHI"


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(
    st.lists(
        st.builds(
            Case,
            id=st.uuids().map(str),
            input=texts,
            expected=st.none() | texts | st.floats(allow_nan=False) | st.integers() | st.lists(texts, max_size=3),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda c: c.id,
    )
)
def test_what_was_saved_is_what_is_read(tmp_path_factory: pytest.TempPathFactory, cases: list[Case]) -> None:
    """Any text and any number survives the file, and so does the digest."""
    path = tmp_path_factory.mktemp("cases") / "cases.jsonl"
    dataset = Dataset(tuple(cases))
    dataset.save(path)
    assert Dataset.load(path).digest == dataset.digest


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"input": "x"}\n{"input": ', "line 2 is not JSON"),
        ("a.jsonl", '{"input": "x", "expct": 1}', "did you mean 'expected'"),
        ("a.jsonl", '{"input": ""}', "case 1"),
        ("a.jsonl", '{"id": "a/b", "input": "x"}', "no space, slash"),
        ("a.jsonl", '{"input": "x", "label": "top secret"}', "label"),
        ("a.jsonl", '{"id": "a", "input": "x"}\n{"id": "a", "input": "y"}', "two cases are called a"),
        ("a.jsonl", "", "holds no cases"),
        ("a.jsonl", "[1]\n", "case 1 is no mapping"),
        ("a.yaml", "a: [", "not YAML"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "not YAML"),
        ("a.yaml", "- input: &a hi\n- input: *a", "aliases are not read"),
        ("a.yaml", "other: 1", "a list of cases"),
        ("a.csv", "input\nx,y\n", "line 2"),
        ("a.txt", "x", "no file of cases"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence(tmp_path: Path, name: str, text: str, says: str) -> None:
    """The file, the case and the fault are named; nothing in a file is run."""
    with pytest.raises(ConfigError, match=says):
        Dataset.load(write(tmp_path, name, text))


def test_a_changed_case_changes_the_digest_and_its_source_does_not() -> None:
    """What a report is bound to is what was asked, not where it came from."""
    case = Case(id="a", input="x", expected=1)
    assert case.model_copy(update={"source": "turn 7"}).digest == case.digest
    assert case.model_copy(update={"expected": 2}).digest != case.digest
    assert case.model_copy(update={"expected": 1.0}).digest != case.digest
