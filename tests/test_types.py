"""Scope, Label and Decision: who, how secret, how strict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibox.errors import ConfigError
from aibox.types import Decision, Label, Level, Scope, join

labels = st.builds(
    Label,
    st.sampled_from(Level),
    st.frozensets(st.sampled_from(["PHI", "MNPI", "ITAR"])),
    st.lists(st.sampled_from(["a note", "a tool", "a file"]), max_size=2).map(tuple),
)


@given(labels, labels, labels)
def test_join_is_a_lattice_join(a: Label, b: Label, c: Label) -> None:
    """Order, grouping and repetition of joins change nothing, and the join is the least label above both."""
    assert a | b == b | a
    assert (a | b) | c == a | (b | c)
    assert a | a == a
    assert a <= a | b
    assert b <= a | b
    if a <= c and b <= c:
        assert a | b <= c


@given(labels, labels)
def test_meet_is_below_both(a: Label, b: Label) -> None:
    """A ceiling that two levels set is at most what each of them set."""
    assert a & b <= a
    assert a & b <= b
    assert a & b == b & a


@given(labels)
def test_a_label_reads_back_what_it_writes(label: Label) -> None:
    """The text form holds the whole label."""
    assert Label.parse(str(label)) == label


def test_why_names_only_what_raised_the_label() -> None:
    """A text that adds nothing to a label adds no reason to it."""
    turn = Label(Level.INTERNAL)
    turn = turn | Label(Level.PUBLIC).because("a web page")
    turn = turn | Label.parse("confidential/PHI").because("memory 1")
    turn = turn | Label.parse("internal").because("memory 2")
    assert turn.why == ("memory 1",)
    assert str(turn) == "confidential/PHI"


def test_compartments_keep_what_levels_alone_would_let_go() -> None:
    """Restricted text of one compartment may not go where only another compartment is cleared."""
    assert not Label.parse("confidential/PHI") <= Label.parse("restricted/MNPI")


def test_unlabelled_text_is_internal_and_nothing_joined_is_public() -> None:
    """The default is not the bottom: what nobody labelled does not leave by itself."""
    assert Label.of(None).level is Level.INTERNAL
    assert join([]).level is Level.PUBLIC


@pytest.mark.parametrize("text", ["", "secret", "confidential/phi", "internal/PHI,", "public/P HI"])
def test_a_bad_label_is_refused_with_the_known_ones(text: str) -> None:
    """A label that cannot be read is an error and never a lower label."""
    with pytest.raises(ConfigError, match="not a label"):
        Label.parse(text)


@pytest.mark.parametrize("tenant", ["", "../etc", "a/b", "a b", "-x", "x" * 129, "ten\x00ant", "аcme", "a\n"])
def test_tenant_names_that_could_be_something_else_are_refused(tenant: str) -> None:
    """A tenant's name is no path, no wildcard, no look-alike and no line of a log."""
    with pytest.raises(ConfigError, match="not a tenant name"):
        Scope(tenant=tenant, user="eva")


@pytest.mark.parametrize("user", ["", "a b", "a\n", "é", "x" * 256])
def test_user_names_are_printable_ascii(user: str) -> None:
    """OpenID Connect Core section 2 bounds `sub`; nothing longer or stranger passes."""
    with pytest.raises(ConfigError):
        Scope(tenant="acme", user=user)


def test_narrowing_keeps_tenant_and_user() -> None:
    """A scope can be narrowed to an agent and a session, never moved to somebody else."""
    scope = Scope(tenant="acme", user="eva").narrow(agent="books", session="s")
    assert (scope.tenant, scope.user, scope.agent, scope.session) == ("acme", "eva", "books", "s")


def test_decisions_are_ordered_by_strictness() -> None:
    """The strictest of several decisions is their maximum."""
    assert max(Decision.REDACT, Decision.FLAG, Decision.BLOCK, Decision.REQUIRE_APPROVAL) is Decision.BLOCK
    assert Decision.parse("require_approval") is Decision.REQUIRE_APPROVAL
    with pytest.raises(ConfigError):
        Decision.parse("maybe")
