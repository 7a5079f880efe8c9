"""A join of policies only restricts: the law, the profiles, the digest, and errors a person can act on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibox.errors import ConfigError
from aibox.execution import Limits
from aibox.policy.egress import EgressRules
from aibox.policy.judge import PRINCIPLES, JudgeRules, Measured
from aibox.policy.limits import TurnLimits
from aibox.policy.policy import PROFILES, SHIPPED, Policy
from aibox.policy.pseudonyms import PseudonymRules
from aibox.policy.rates import Rate, Rates
from aibox.policy.texts import SPOTLIGHTS, FormRules, TokenLimits, TopicRules
from aibox.policy.tools import ToolRules
from aibox.policy.traces import TraceRules
from aibox.types import PLACES, Decision, Label, Level

NAMES = ["search", "send", "read"]
MODELS = ["*", "outside/a", "outside/b"]
names = st.frozensets(st.sampled_from(NAMES))
thresholds = st.sampled_from(["0", "0.25", "0.5", "0.9", "1"])
ladders = st.dictionaries(thresholds, st.sampled_from([str(d) for d in Decision]), max_size=3)
label = st.builds(Label, st.sampled_from(Level), st.frozensets(st.sampled_from(["PHI", "MNPI"])))
phrases = st.lists(st.sampled_from(["buy", "sell*", "two words"]), max_size=2)
topics = st.fixed_dictionaries(
    {"banned": st.dictionaries(st.sampled_from(["money", "war"]), phrases, max_size=2), "allowed": phrases}
).map(TopicRules.model_validate)
schemas = st.sampled_from([{}, {"type": "object"}, {"minimum": 0.5}])
rate = st.builds(
    Rate, requests_per_minute=st.none() | st.integers(1, 9), tokens_per_minute=st.none() | st.integers(1, 99)
)
policies = st.builds(
    Policy,
    judge=st.builds(
        JudgeRules,
        places=st.frozensets(st.sampled_from(PLACES)),
        from_score=st.floats(0, 1),
        principles=st.frozensets(st.sampled_from(["No word of dragons.", PRINCIPLES[0]])),
        decision=st.sampled_from([Decision.FLAG, Decision.BLOCK]),
        measured=st.builds(Measured, found=st.floats(0.3, 1), false_alarms=st.floats(0, 0.2)),
    ),
    pseudonyms=st.builds(
        PseudonymRules,
        irreversible=st.frozensets(st.sampled_from(["*", "CARD"])),
        format_preserving=st.frozensets(st.sampled_from(["*", "CARD", "IBAN"])),
    ),
    spotlight=st.sampled_from(SPOTLIGHTS),
    topics=topics,
    tokens=st.builds(TokenLimits, input=st.none() | st.integers(1, 99), retrieved=st.none() | st.integers(1, 99)),
    form=schemas.map(lambda schema: FormRules.model_validate({"output": schema})),
    checks=st.dictionaries(
        st.sampled_from(["pii", "jailbreak"]), st.dictionaries(st.sampled_from(PLACES), ladders, max_size=3)
    ),
    on_check_failure=st.sampled_from(Decision),
    models=st.frozensets(st.sampled_from(MODELS)),
    tools=st.builds(ToolRules, allow=st.none() | names, deny=names, approve=names, approve_from=st.none() | label),
    egress=st.builds(
        EgressRules,
        models=st.frozensets(st.sampled_from(MODELS)),
        approve=st.frozensets(st.sampled_from(MODELS)),
        ceiling=label,
    ),
    limits=st.builds(TurnLimits, input_kib=st.integers(1, 99), turn_s=st.floats(0.5, 99)),
    traces=st.builds(TraceRules, content=st.booleans()),
    rates=st.builds(Rates, tenant=rate, user=rate, key=rate),
    sandbox=st.builds(Limits, pids=st.integers(1, 99), wall_s=st.floats(0.5, 99)),
    gpus=st.dictionaries(st.sampled_from(["acme", "rival"]), st.integers(1, 9)),
)


@settings(max_examples=100)
@given(policies, policies, st.sampled_from(PLACES), st.floats(0, 1), label)
def test_a_join_is_never_weaker_than_either(a: Policy, b: Policy, where: str, score: float, marked: Label) -> None:
    """For every event, `a & b` decides at least as strictly as a and as b."""
    both = a & b
    for one in (a, b):
        for check in ("pii", "jailbreak"):
            assert both.decide(check, where=where, score=score) >= one.decide(check, where=where, score=score)
        assert both.on_check_failure >= one.on_check_failure
        for name in NAMES:
            assert one.tools.allows(name) or not both.tools.allows(name)
            assert both.tools.needs_approval(name) or not one.tools.needs_approval(name)
        assert both.tools.asks_under(marked) or not one.tools.asks_under(marked)
        for model in MODELS[1:]:
            assert one.may_ask(model) or not both.may_ask(model)
            assert one.egress.allows(model) or not both.egress.allows(model)
            assert both.egress.asks(model) or not one.egress.asks(model)
        assert marked <= one.egress.ceiling or not marked <= both.egress.ceiling
        assert one.judge.told <= both.judge.told
        assert SPOTLIGHTS.index(both.spotlight) >= SPOTLIGHTS.index(one.spotlight)
        for topic, words in one.topics.banned.items():
            assert words <= both.topics.banned[topic]
        assert one.topics.allowed <= both.topics.allowed
        assert one.form.output <= both.form.output
        for place in ("input", "retrieved"):
            bound, mine = both.tokens.of(place), one.tokens.of(place)
            assert mine is None or (bound is not None and bound <= mine)
        assert both.limits.input_kib <= one.limits.input_kib
        assert both.limits.turn_s <= one.limits.turn_s
        assert one.traces.content or not both.traces.content
        assert both.sandbox.pids <= one.sandbox.pids
        assert all(both.gpus.get(tenant, 0) <= one.gpus.get(tenant, 0) for tenant in ("acme", "rival", "other"))


@settings(max_examples=100)
@given(policies, policies, st.sampled_from(PLACES), st.floats(0, 1))
def test_a_join_decides_exactly_the_stricter_of_both(a: Policy, b: Policy, where: str, score: float) -> None:
    """A join adds nothing of its own: its decision is the maximum of the two."""
    for check in ("pii", "jailbreak"):
        mine, theirs = (p.decide(check, where=where, score=score) for p in (a, b))
        assert (a & b).decide(check, where=where, score=score) == max(mine, theirs)


@settings(max_examples=100)
@given(policies, policies, policies)
def test_order_grouping_and_repetition_change_nothing(a: Policy, b: Policy, c: Policy) -> None:
    """Joins of the same policies have the same digest, however they are written."""
    assert (a & b).digest == (b & a).digest
    assert ((a & b) & c).digest == (a & (b & c)).digest
    assert (a & a).digest == a.digest


@given(policies)
def test_the_digest_survives_writing_and_reading(policy: Policy) -> None:
    """A policy read from its own JSON is the same policy."""
    assert Policy.read(policy.model_dump(mode="json")).digest == policy.digest


def test_the_name_is_for_people_only() -> None:
    """Two policies that decide alike have one digest, whatever they are called."""
    assert Policy(name="a").digest == Policy(name="b").digest


@pytest.mark.parametrize("name", SHIPPED)
def test_no_profile_opens_the_door(name: str) -> None:
    """Whatever profile is chosen, nothing leaves."""
    assert not Policy.profile(name).egress.open


def test_the_profiles_grow_stricter() -> None:
    """strict decides at least as strictly as balanced, and balanced as permissive, about everything."""
    permissive, balanced, strict = (Policy.profile(name) for name in PROFILES)
    for lower, higher in ((permissive, balanced), (balanced, strict)):
        assert (lower & higher).digest == higher.digest


def test_silence_shuts_the_door_and_leaves_tools_alone() -> None:
    """The door is open only where every level opens it; a level that does not speak of tools changes none."""
    platform = Policy(egress=EgressRules(models=frozenset({"*"}), ceiling=Label.parse("internal")))
    assert not (platform & Policy()).egress.open
    assert (platform & Policy()).tools.allows("search")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[toolz]\n", "did you mean 'tools'"),
        ("[checks.pii]\nimput = 'flag'\n", "checks.pii.imput: Input should be 'input'"),
        ("[tools]\nalow = []\n", "did you mean 'allow'"),
        ('[checks.pii]\ninput = "maybe"\n', r"checks\.pii\.input: not a decision: 'maybe'; one of allow, flag, redact"),
        ('[tools]\nlethal_three = "never"\n', r"tools\.lethal_three: not a decision"),
        ('[checks.pii]\ninput = { "2" = "flag" }\n', "from 0 to 1"),
        ("version = 2\n", "version"),
        ("[egress]\nceiling = 'secret'\n", "not a label"),
        ("[sandbox]\npids = 0\n", "above 0"),
        ('[checks.pii]\ninput = { "inf" = "flag" }\n', "from 0 to 1"),
        *((f"[sandbox]\nwall_s = {odd}\n", "sandbox.wall_s") for odd in ("nan", "inf")),
        *((f"[limits]\nusd = {odd}\n", "limits.usd") for odd in ("nan", "inf", "1e400")),
        ("[budgets.user]\nusd_per_day = inf\n", "budgets.user.usd_per_day"),
        (f"[limits]\nmodel_calls = {10**20}\n", "cannot be written down"),
        ("= nonsense", "is not TOML"),
        (f"[limits]\nmodel_calls = {'9' * 5000}\n", "is not TOML"),
    ],
)
def test_a_bad_policy_file_says_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    """A policy that cannot be read is refused with the file, the key and the likely fix; it is never half applied."""
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Policy.load(path)
    assert "policy.toml" in caught.value.message


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 0, -1])
def test_no_limit_of_code_lifts_another(odd: float) -> None:
    """What is neither smaller nor larger than a limit would take its place in a join."""
    with pytest.raises(ConfigError, match="a number above 0"):
        Limits(wall_s=odd)


def test_no_two_policies_have_one_digest() -> None:
    """Numbers that differ in their seventh digit make two policies; one that can be written in two ways makes one."""
    one, other, same = (Policy.read({"limits": {"usd": usd}}) for usd in (1_000_000.25, 1_000_000.5, "1000000.250"))
    assert one.digest == same.digest != other.digest
    free = [Policy.read({"budgets": {"user": {"usd_per_day": usd}}}).digest for usd in (0, 0.0, -0.0)]
    assert len(set(free)) == 1


def test_a_missing_policy_file_is_an_error(tmp_path: Path) -> None:
    """No file means no policy, and that is not the same as a policy that allows."""
    with pytest.raises(ConfigError, match="cannot read the policy"):
        Policy.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="permissive, balanced, strict"):
        Policy.profile("lenient")


def test_a_principle_of_one_level_does_not_take_the_place_of_the_shipped_ones() -> None:
    """A level that has texts judged and names none means those; another's are joined to them, in any order."""
    judged = JudgeRules(places=frozenset({"input"}))
    own = JudgeRules(principles=frozenset({"Every text is fine, and none breaks anything."}))
    for joined in (judged & own, own & judged, (judged & judged) & own, judged & (judged & own)):
        assert joined.principles == own.principles | frozenset(PRINCIPLES)
    assert (judged & judged).principles == frozenset()
    assert (own & own).principles == own.principles
