"""Keys, tokens and passwords in a text, by the forms that their issuers give them, and by what they are called.

A secret without a known form and without a name beside it is not found. Every pattern is bounded: time is linear.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from aibox.guardrails.normalise import normalise
from aibox.guardrails.reading import flagged
from aibox.types import Finding, Label, Scope, Verdict, Where

# Rule, strings of which one must stand in a text for the pattern to be tried, the pattern. Prefixes are as issuers
# document them.
_FORMS: tuple[tuple[str, str, re.Pattern[str]], ...] = (
    ("private-key", "-----BEGIN", re.compile(
        r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
        r"(?:[^-]{0,8192}-----END [A-Z0-9 ]{1,40}-----)?")),
    ("aws-key", "AKIA ASIA ABIA ACCA", re.compile(r"(?<![A-Z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Z0-9])")),
    ("github-token", "ghp_ gho_ ghu_ ghs_ ghr_", re.compile(r"(?<!\w)gh[pousr]_[A-Za-z0-9]{36,255}")),
    ("github-token", "github_pat_", re.compile(r"(?<!\w)github_pat_\w{22,255}")),
    ("gitlab-token", "glpat- glptt- gldt- glrt- glsoat- glcbt-", re.compile(
        r"(?<!\w)gl(?:pat|ptt|dt|rt|soat|cbt)-[\w-]{20,64}")),
    ("slack-token", "xox", re.compile(r"(?<!\w)xox[abeoprs]-[A-Za-z0-9-]{10,255}")),
    ("slack-hook", "hooks.slack", re.compile(r"hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/+]{20,80}")),
    ("stripe-key", "k_live_ k_test_", re.compile(r"(?<!\w)(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,120}")),
    ("google-key", "AIza", re.compile(r"(?<!\w)AIza[\w-]{35}(?![\w-])")),
    ("google-token", "ya29.", re.compile(r"(?<!\w)ya29\.[\w-]{20,512}")),
    ("model-key", "sk-", re.compile(r"(?<!\w)sk-(?:ant-|proj-|svcacct-|or-v1-)?[\w-]{24,200}")),
    ("hub-token", "hf_", re.compile(r"(?<!\w)hf_[A-Za-z0-9]{30,64}")),
    ("npm-token", "npm_", re.compile(r"(?<!\w)npm_[A-Za-z0-9]{36}")),
    ("pypi-token", "pypi-", re.compile(r"(?<!\w)pypi-[\w-]{50,300}")),
    ("mail-key", "SG.", re.compile(r"(?<!\w)SG\.[\w-]{16,32}\.[\w-]{32,64}")),
    ("telephony-key", "SK", re.compile(r"(?<!\w)SK[0-9a-f]{32}(?!\w)")),
    ("storage-key", "AccountKey=", re.compile(r"AccountKey=[A-Za-z0-9+/]{40,100}={0,2}")),
    ("vault-token", "hvs. hvb. hvr.", re.compile(r"(?<!\w)hv[sbr]\.[\w-]{24,200}")),
    ("web-token", "eyJ", re.compile(r"(?<!\w)eyJ[\w-]{8,1024}\.eyJ[\w.-]{8,3000}")),
    ("aibox-key", "aibox", re.compile(r"(?<!\w)aibox[_-][\w-]{24,200}")),
)  # fmt: skip

_SIGNED = tuple((rule, signs.split(), pattern) for rule, signs, pattern in _FORMS)
_SIGNS = tuple(sign for _, signs, _ in _SIGNED for sign in signs)

_NAMED = re.compile(
    r"(?i)(?<![a-z])(?:pass(?:word|wd|phrase)|secret|api[ _-]?key|access[ _-]?key|auth[ _-]?token|access[ _-]?token|"
    r"client[ _-]?secret|private[ _-]?key|bearer)(?:\"|')?\s{0,3}(?:is|:=|=>|[:=])?\s{0,3}[\"'`]?([^\s\"'`,;<>]{8,200})"
)
_BITS = 3.0
"""Shannon entropy, in bits a character, from which on a named value counts as random rather than as a word."""


class Secrets:
    """Finds keys and tokens: a Check. `Finding.rule` says whose.

    Scores are 1.0 for a private key, 0.95 for another known form, 0.7 for a value that is only called a secret.
    """

    @property
    def name(self) -> str:
        return "secrets"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with findings in order, or ALLOW. The text is never changed."""
        return await flagged(text, scan, where=where)

    def __repr__(self) -> str:
        return "Secrets()"


def scan(text: str) -> tuple[Finding, ...]:
    """All secrets, in order; what a form has found is not found again by its name."""
    normal = normalise(text, fold=False)
    found: list[tuple[int, int, str, float]] = []
    for item in sorted((*_formed(normal.text), *_named(normal.text))):
        if not found or item[0] >= found[-1][1]:
            found.append(item)
        elif item[3] > found[-1][3]:
            found[-1] = item
    return tuple(
        Finding("secrets", rule, normal.span(start, end), score, f"a secret: {rule.replace('-', ' ')}")
        for start, end, rule, score in found
    )


def _formed(text: str) -> Iterator[tuple[int, int, str, float]]:
    there = {sign for sign in _SIGNS if sign in text}
    if not there:
        return
    for rule, signs, pattern in _SIGNED:
        if not there.isdisjoint(signs):
            for match in pattern.finditer(text):
                # A private key goes over many lines: while it streams, only its first line tells.
                yield *match.span(), rule, 1.0 if rule == "private-key" else 0.95


def _named(text: str) -> Iterator[tuple[int, int, str, float]]:
    for match in _NAMED.finditer(text):
        value = match[1]
        mixed = sum(any(kind(char) for char in value) for kind in (str.isdigit, str.isupper, str.islower))
        if mixed >= 2 and any(map(str.isdigit, value)) and entropy(value) >= _BITS:
            yield *match.span(1), "named-value", 0.7


def entropy(value: str) -> float:
    """Shannon entropy of the characters, in bits a character."""
    count = Counter(value)
    return -sum(n / len(value) * math.log2(n / len(value)) for n in count.values())
