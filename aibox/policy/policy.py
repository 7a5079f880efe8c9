"""One object for everything that may be restricted. Joining two policies only ever restricts.

The law: for every event, `(a & b)` decides at least as strictly as a and as b; order, grouping and repetition of joins
change nothing. It holds because each part merges by an operation of a lattice: decisions and ladders by the maximum,
deny-lists by union, allow-lists and ceilings by the meet, limits by the minimum. There is no construct that relaxes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from aibox.audit import canonical
from aibox.errors import ConfigError
from aibox.execution import Limits
from aibox.policy import files
from aibox.policy.artifacts import ArtifactRules
from aibox.policy.budgets import Budgets
from aibox.policy.egress import EgressRules, meet, universe
from aibox.policy.fields import DecisionField, Ladder, Part, join_ladders
from aibox.policy.judge import JudgeRules
from aibox.policy.limits import TurnLimits
from aibox.policy.pseudonyms import PseudonymRules
from aibox.policy.rates import Rates
from aibox.policy.retention import Retention
from aibox.policy.reuse import ReuseRules
from aibox.policy.texts import SPOTLIGHTS, FormRules, Spotlight, TokenLimits, TopicRules
from aibox.policy.tools import ToolRules
from aibox.policy.traces import TraceRules
from aibox.types import PLACES, Decision, Where
from aibox.validation import explain_validation

PROFILES = ("permissive", "balanced", "strict")
WORKED = ("clinic", "bank", "defence")
SHIPPED = (*PROFILES, *WORKED)

Rules = dict[Where, Ladder]


class Policy(Part):
    """What is allowed, for a platform, a tenant or an agent. Immutable; `a & b` is the stricter of both everywhere.

    A check that a policy names must exist, or the guardrail refuses to be built. What a policy does not mention: checks
    allow, tools are allowed, the door is shut.
    """

    version: Literal[1] = 1
    name: str = ""
    """For people; it takes no part in decisions and none in the digest."""
    checks: dict[str, Rules] = Field(default_factory=dict)
    """Check name -> place (input, tool_arguments, tool_result, retrieved, output) -> decision or ladder."""
    on_check_failure: DecisionField = Decision.BLOCK
    """What a check counts as that raises or is too slow. Of several levels the strictest holds."""
    judge: JudgeRules = JudgeRules()
    pseudonyms: PseudonymRules = PseudonymRules()
    spotlight: Spotlight = "off"
    """How results of tools that bring other people's text are shown to a model. Of several levels the strictest."""
    topics: TopicRules = TopicRules()
    tokens: TokenLimits = TokenLimits()
    form: FormRules = FormRules()
    models: Annotated[frozenset[str], AfterValidator(universe)] = frozenset({"*"})
    """Models that may be asked, as `backend/model` the way the router names them, or `"*"`. Lists of several levels
    intersect. One behind the door needs `egress.models` besides."""
    tools: ToolRules = ToolRules()
    artifacts: ArtifactRules = ArtifactRules()
    egress: EgressRules = EgressRules()
    limits: TurnLimits = TurnLimits()
    reuse: ReuseRules = ReuseRules()
    retention: Retention = Retention()
    budgets: Budgets = Budgets()
    rates: Rates = Rates()
    traces: TraceRules = TraceRules()
    sandbox: Limits = Limits()
    gpus: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    """Tenant -> how many GPUs a sandbox session of it may ask for. Who is not named has none, at each level."""

    @classmethod
    def load(cls, path: str | Path, *, key: str | None = None) -> Policy:
        """Read a TOML or YAML file. With a verifier `key` it must be signed: `FILE.sig` lies beside it.

        Raises ConfigError that names the file, the key and, for a mistyped one, the likely key; IntegrityError for a
        file that the verifier key has not signed.
        """
        path = Path(path)
        return cls.read(files.read(path, key=key), source=str(path))

    @classmethod
    def profile(cls, name: str) -> Policy:
        """One of the shipped policies: permissive, balanced or strict, or a worked one: clinic, bank or defence.

        None of them opens the door.
        """
        if name not in SHIPPED:
            raise ConfigError(f"no policy profile is called {name!r}", hint=f"one of {', '.join(SHIPPED)}")
        data = resources.files("aibox").joinpath("policy", "profiles", f"{name}.toml").read_bytes()
        return cls.read(files.parse(data, source=f"{name}.toml"), source=f"{name}.toml")

    @classmethod
    def read(cls, data: Mapping[str, Any], *, source: str = "policy") -> Policy:
        """From parsed TOML, YAML or JSON."""
        try:
            policy = cls.model_validate(data)
            _ = policy.digest, policy.name.encode()  # what has neither cannot be named, nor kept
        except ValidationError as error:
            raise ConfigError(f"{source}: {explain_validation(error, cls)}") from None
        except ConfigError as error:
            raise ConfigError(f"{source}: {error.message}", hint=error.hint) from None
        except ValueError as error:
            hint = "numbers below 2^53, and text that is Unicode"
            raise ConfigError(f"{source} cannot be written down: {error}", hint=hint) from None
        return policy

    def __and__(self, other: Policy) -> Policy:
        checks = {
            check: _join_rules(self.checks.get(check, {}), other.checks.get(check, {}))
            for check in sorted({*self.checks, *other.checks})
        }
        return Policy(
            name=" & ".join(dict.fromkeys(n for n in (self.name, other.name) if n)),
            checks=checks,
            on_check_failure=max(self.on_check_failure, other.on_check_failure),
            judge=self.judge & other.judge,
            pseudonyms=self.pseudonyms & other.pseudonyms,
            spotlight=max(self.spotlight, other.spotlight, key=SPOTLIGHTS.index),
            topics=self.topics & other.topics,
            tokens=self.tokens & other.tokens,
            form=self.form & other.form,
            models=meet(self.models, other.models),
            tools=self.tools & other.tools,
            artifacts=self.artifacts & other.artifacts,
            egress=self.egress & other.egress,
            limits=self.limits & other.limits,
            reuse=self.reuse & other.reuse,
            retention=self.retention & other.retention,
            budgets=self.budgets & other.budgets,
            rates=self.rates & other.rates,
            traces=self.traces & other.traces,
            sandbox=self.sandbox & other.sandbox,
            gpus={tenant: min(self.gpus[tenant], other.gpus[tenant]) for tenant in self.gpus if tenant in other.gpus},
        )

    def may_ask(self, model: str) -> bool:
        """Whether a model, as `backend/model`, may be asked."""
        return "*" in self.models or model in self.models

    def decide(self, check: str, *, where: Where, score: float) -> Decision:
        """What follows when `check` found something with `score` (0 to 1) in a text of that place."""
        decision = Decision.ALLOW
        for threshold, step in self.checks.get(check, {}).get(where, ()):
            if score * 1000 >= threshold:
                decision = max(decision, step)
        return decision

    def checks_for(self, where: Where) -> tuple[str, ...]:
        """Names of the checks that this policy asks for at a place."""
        return tuple(name for name, rules in self.checks.items() if rules.get(where))

    @cached_property
    def digest(self) -> str:
        """`sha256:` and the SHA-256, in hex, of the policy's canonical JSON (RFC 8785) without its name."""
        body = self.model_dump(mode="json", exclude={"name"})
        # Sets have no order and floats no canonical text in our subset of JSON: both are made definite here.
        return "sha256:" + hashlib.sha256(canonical.dumps(_definite(body))).hexdigest()


def _join_rules(a: Rules, b: Rules) -> Rules:
    return {where: join_ladders(a.get(where, ()), b.get(where, ())) for where in PLACES if where in a or where in b}


def _definite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _definite(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted((_definite(item) for item in value), key=str)
    return _number(value) if isinstance(value, float) else value


def _number(value: float) -> str:
    """No two numbers are written alike, and none in two ways: six digits where they are enough."""
    value += 0.0  # which has no sign
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
