"""What deserves to be kept of a user's message, found by rules and without a model. English only.

A rule knows a form of sentence that says something durable, and everything else is left: questions, requests, quotes,
code, secrets, and whatever tries to change the rules that the assistant works under.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from aibox.memory.record import RecordType

MAX_MESSAGE_CHARS = 20_000
MAX_SENTENCE_CHARS = 400
MAX_CANDIDATES = 16


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence worth keeping, as it will be kept. `slot` names what has one value only, such as `"my name"`."""

    text: str
    type: RecordType
    confidence: float
    slot: str = ""


def extract(message: str) -> list[Candidate]:
    """The candidates of a message in its order, each text once; at most 16.

    Only the first 20,000 characters are read, and no sentence above 400 is kept. Code blocks and quoted lines (`>`) are
    not the user's own words and are skipped.
    """
    found: dict[str, Candidate] = {}
    for sentence in _sentences(_own_words(message[:MAX_MESSAGE_CHARS])):
        candidate = _judge(sentence)
        if candidate is not None:
            found.setdefault(candidate.text, candidate)
    return list(found.values())[:MAX_CANDIDATES]


def refusal(text: str) -> str:
    """Why a text must not become a memory, whoever proposes it; empty when it may."""
    if _RULES.search(text):
        return "it is an order about the assistant's own rules"
    if _SECRET.search(text):
        return "it holds a secret"
    return ""


def slot(text: str) -> str:
    """What a kept sentence gives the one value of, in lower case; empty when it may stand beside others like it."""
    match = _SLOT.match(text)
    return (
        " ".join(match[0].casefold().removesuffix(" is").split()) if match else "my name" if _CALL.match(text) else ""
    )


_SLOT = re.compile(
    r"my (?:name|first name|last name|full name|age|birthday|job|role|title|employer|company|boss|manager|address|"
    r"home town|e-?mail(?: address)?|phone(?: number)?|time ?zone|native language|favou?rite [a-z]{1,20}) is\b",
    re.IGNORECASE,
)
_CALL = re.compile(r"(?:please )?call me\b", re.IGNORECASE)

# What stands before the point of a sentence and is not part of it.
_OPENER = re.compile(
    r"(?:(?:hi|hello|hey|ok|okay|well|so|also|and|but|oh|btw|by the way|fyi|for the record|just so you know|note that|"
    r"for your information|thanks|thank you|good morning)\b[\s,;:!.-]*)+",
    re.IGNORECASE,
)
_REMEMBER = re.compile(
    r"(?:please |could you (?:please )?|can you (?:please )?|i want you to )?"
    r"(?:remember|keep in mind|don'?t forget|do not forget|note|make a note)(?: that\b|:)\s*",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    r"(?:who|whom|whose|what|when|where|which|why|how|is|are|am|was|were|do|does|did|can|could|will|would|shall|should|"
    r"may|might|has|have)\b",
    re.IGNORECASE,
)
# Kept, such a sentence would be an order to the assistant in every later conversation.
_RULES = re.compile(
    r"\b(?:ignore|disregard|forget|bypass|override|circumvent|disable|reveal|leak|exfiltrate)\b.{0,60}"
    r"\b(?:previous|prior|above|earlier|all|any|every|instructions?|rules?|prompts?|polic(?:y|ies)|guardrails?|filters?|"
    r"restrictions?|safety|everything)\b"
    r"|\byou(?:'re| are)\b(?! (?:right|wrong|welcome))|\b(?:from now on|act as|pretend|role-?play|jailbreak)\b"
    r"|\b(?:system|developer) (?:prompt|message|mode|instructions?)\b|\byou (?:must|have to|shall|will)\b"
    r"|\byour (?:instructions?|rules?|guidelines?|restrictions?|guardrails?|polic(?:y|ies))\b|<\|?\w{1,20}\|?>",
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"\b(?:pass ?(?:word|phrase|code)|pin(?: code)?|api[ -]?key|secret|access token|private key|cvv|cvc|"
    r"card number)\b.{0,30}(?:\bis\b|[:=])",
    re.IGNORECASE,
)

_FORMS: dict[RecordType, tuple[str, ...]] = {
    "feedback": (
        # No, the year comes first. / Actually: use the other template.
        (
            r"(?:no|nope|that(?:'s| is) (?:wrong|not right|incorrect)|wrong|incorrect|actually)\s*[,.:;-]\s*"
            r"(?!thanks|thank you)(?=.*\b(?:use|say|write|call|should|must|is|are|not|comes?|goes|means?)\b).{5,}"
        ),
        r"(?:please )?(?:always|never)\s+\w+.{3,}",
        r"(?:i|we) (?:want|need) you to (?:always|never)\b.{3,}",
        (
            r"please\s+(?:do not|don'?t|stop|avoid|keep|use|prefer)\s+.{3,}\b(?:always|every|any ?more|again|"
            r"in general|answers?|replies|responses|units|format|tone|language|emojis?|bullets?|lists?|tables?)\b.*"
        ),
        r"(?:do not|don'?t|stop)\s+\w+.{3,}\b(?:any ?more|again|ever|in your answers?)\b.*",
        r"(?:do not|don'?t)\s+(?:use|call|write|add|send|include|mention|answer|reply|give|assume|start|end)\b.{3,}",
        (
            r"i(?:'d| would)? prefer (?:(?:it )?(?:when|if) (?:you|answers?|replies)|(?:short|long|brief|detailed|"
            r"concise|formal|informal)\w* (?:\w+ )?(?:answers?|replies|responses|explanations?)).*"
        ),
    ),
    "project": (
        r"we(?:'ve| have)? (?:decided|chosen|chose|agreed|settled|picked|adopted|migrated|moved)\b.{3,}",
        r"we (?:are using|will use|use|run|deploy|host|store|ship|release|launch)\b.{3,}",
        # The deadline of the audit is ... / Our new project uses ...
        (
            r"(?:the|our) (?:[\w-]+ ){0,4}?(?:deadline|due date|milestone|release|launch|kick-?off|budget|inspection|"
            r"audit|go-?live|project|product|customer|client|team|code ?base|repository|database|stack|sprint|"
            r"roadmap)\b.{0,120}?\b(?:is|are|was|will|has|have|uses?|runs?|starts?|ends?|must|needs?|moved|falls)\b.{2,}"
        ),
        r"i(?:'m| am) (?:currently )?working on\b.{3,}",
    ),
    "user": (
        r"my (?:[\w-]+ ){0,3}?[\w-]+ (?:is|are|was|has|lives?|works?|speaks?|likes?|hates?)\b.+",
        r"(?:please )?call me (?!back|later|when|if|at|tomorrow|on )\w.*",
        (
            r"i(?:'m| am) (?:an?|the|from|based|allergic|married|single|divorced|vegetarian|vegan|left-handed|"
            r"colou?r-?blind|deaf|blind|diabetic|pregnant|retired|responsible|in charge|\d{1,3} years?|called|named|"
            r"afraid|learning)\b.*"
        ),
        (
            r"i (?:work|live|study|teach|prefer|like|love|enjoy|hate|dislike|speak|play|drive|own|use|avoid|drink|eat|"
            r"was born|grew up|moved|usually|always|never|can(?:not|'t) (?:eat|drink|see|hear|use)|"
            r"do(?: not|n'?t) (?:eat|drink|like|drive|smoke|use|speak|work))\b"
            r"(?! (?:it|that|this|to know|for you)\b).{2,}"
        ),
        (
            r"i(?:'ve| have) (?:got )?(?!(?:an? |\d+ |two |three )?(?:\w+ )?(?:questions?|problems?|issues?|doubts?|"
            r"bugs?|errors?|tasks?|ideas?|feeling|look|favou?r|requests?|meeting|call|minutes?|moment|seconds?|to)\b)"
            r"(?:an?|one|two|three|four|five|\d+|celiac|diabetes|asthma|kids|children)\b.{2,}"
        ),
    ),
}
_PATTERNS = tuple((re.compile(form, re.IGNORECASE), kind) for kind, forms in _FORMS.items() for form in forms)
_CONFIDENCE: dict[RecordType, float] = {"feedback": 0.8, "project": 0.8, "user": 0.9, "reference": 0.8}

_REFERENCE = re.compile(
    r"https?://\S{4,}|\b[A-Z][A-Z0-9]{1,9}-\d{1,8}\b|(?<!\w)(?:/[\w.-]+){2,}|\b[\w.-]+@[\w-]+\.[a-z]{2,}\b"
    r"|\b(?:10\.\d{4,9}/\S+|ISBN[ -]?[\d-]{10,})",
)
_LOCATES = re.compile(
    r"\b(?:is|are|lives?|lie|lies|kept|stored|found|documented|tracked|described|ticket|wiki|link|docs?|documentation|"
    r"runbook|repository|repo|dashboard|board|page|see)\b",
    re.IGNORECASE,
)
_FIRST_PERSON = re.compile(r"(?:i|i'm|i've|i'd|my|we|our|call)\b", re.IGNORECASE)
_ABBREVIATION = re.compile(r"(?:\b(?:dr|mr|mrs|ms|prof|st|no|nr|vs|etc|approx|e\.g|i\.e|[a-z])\.)$", re.IGNORECASE)
_FENCE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)", re.DOTALL)


def _own_words(message: str) -> str:
    lines = _FENCE.sub("\n", message.replace("’", "'")).splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(">"))


def _sentences(text: str) -> Iterator[str]:
    for line in text.splitlines():
        pending = ""
        for piece in re.split(r"(?<=[.!?])\s+", line.strip().lstrip("-*•# \t")):
            pending = f"{pending} {piece}".strip()
            if not _ABBREVIATION.search(pending):
                yield pending
                pending = ""
        if pending:
            yield pending


def _judge(sentence: str) -> Candidate | None:
    if len(sentence) > MAX_SENTENCE_CHARS:
        return None
    body = sentence
    if opener := _OPENER.match(body):
        body = body[opener.end() :]
    told = _REMEMBER.match(body)
    if told is not None:
        body = body[told.end() :]
    body = " ".join(body.split())
    if len(body) < 6 or refusal(sentence) or refusal(body):
        return None
    if body.endswith("?") or (told is None and _QUESTION.match(body)):
        return None
    kind = _classify(body)
    confidence = _CONFIDENCE[kind] if kind else 0.0
    if told is not None:
        kind, confidence = kind or ("user" if _FIRST_PERSON.match(body) else "project"), 1.0
    if kind is None:
        return None
    text = _finished(body)
    return Candidate(text, kind, confidence, slot(text))


def _classify(body: str) -> RecordType | None:
    """The first form that fits; a link or an identifier that something is said about makes a reference."""
    kind = next((kind for pattern, kind in _PATTERNS if pattern.match(body)), None)
    if kind in {None, "project"} and _REFERENCE.search(body) and _LOCATES.search(body):
        return "reference"
    return kind


def _finished(body: str) -> str:
    """The sentence with a capital and a full stop."""
    text = body[0].upper() + body[1:]
    if text[-1] in ".!":
        text = text.rstrip(".!")
    return f"{text}."
