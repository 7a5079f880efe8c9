"""What only the holder of all keys could forge: entries with right tags and links that break one rule, each named."""

from __future__ import annotations

import pytest
from audit_pen import BROKEN, NAME, OTHER, SIGNER, Pen, broken_log, good_log, rotation

from aibox.audit import kinds
from aibox.audit.record import SEALED, TERMINAL
from aibox.audit.rotation import KeyLine
from aibox.audit.signer import public_key
from aibox.audit.walk import Walk


def test_a_log_that_keeps_every_rule_is_walked_to_its_end() -> None:
    """All kinds of acts in one log, in their places: nothing is refused, and what they say is known afterwards."""
    pen = good_log()
    walk = pen.walk()
    assert (walk.tagged, walk.restored, walk.ends, len(walk.acts)) == (8, 1, {2: "t"}, 5)
    assert walk.line.at(4) == public_key(SIGNER)
    assert walk.line.at(5) == public_key(OTHER)
    assert "entries 6 to 8 were given up" in walk.lost_before(8)
    assert walk.lost_before(6) == walk.lost_before(10) == ""
    assert pen.walk(None).has_key is False


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_is_held(rule: str) -> None:
    """One entry breaks one rule and is right in all else, links and tags included; the reason is given."""
    pen, says = broken_log(rule)
    with pytest.raises(ValueError, match=says):
        pen.walk()


def test_rows_that_do_not_stand_in_line() -> None:
    """A row whose number is not the next one is named as a gap, whatever its header says."""
    pen = Pen()
    pen.write()
    pen.write()
    pen.rows[1] = pen.rows[1]._replace(seq=5)
    with pytest.raises(ValueError, match="it is missing, and entry 5 follows"):
        pen.walk()


def test_tags() -> None:
    """A tag of another length or key is refused, in later epochs too; before the key's none is checked."""
    pen = Pen()
    pen.write()
    pen.write(kinds.RATCHETED)
    pen.write()
    assert pen.walk(pen.key).tagged == 1
    good = list(pen.rows)
    for changed, says in ((good[2]._replace(tag=bytes(32)), "does not fit"), (good[2]._replace(tag=b""), "length")):
        pen.rows = [*good[:2], changed]
        with pytest.raises(ValueError, match=says):
            pen.walk()


def test_missing_bodies() -> None:
    """A body may be missing whole, and then is listed; half a body, or an act's, may not."""
    pen = Pen()
    pen.write("turn.sealed", {"entries": []}, flags=SEALED | TERMINAL)
    pen.write(kinds.ERASED, {"subjects": []})
    good = list(pen.rows)
    pen.rows = [good[0]._replace(open=None, sealed=None), good[1]]
    walk = pen.walk()
    assert (walk.missing, walk.ends) == ({0}, {0: ""})
    for rows, says in (
        ([good[0]._replace(open=None)], "one part"),
        ([good[0], good[1]._replace(open=None, sealed=None)], "the body of an act"),
    ):
        pen.rows = rows
        with pytest.raises(ValueError, match=says):
            pen.walk()


def test_a_log_under_a_name_that_is_not_its_own() -> None:
    """The id in the table must be the hash of the origin beside it."""
    with pytest.raises(ValueError, match="its name is not the one"):
        Walk(NAME._replace(origin="p"), None)


def test_keys_in_line() -> None:
    """A key line answers who may sign at each size, and knows the keys that were ever in force."""
    line = KeyLine(public_key(SIGNER))
    line.rotate(rotation(5), NAME.log, 5)
    assert (line.at(5), line.at(6)) == (public_key(SIGNER), public_key(OTHER))
    assert public_key(SIGNER) in line
    assert "nothing" not in line
