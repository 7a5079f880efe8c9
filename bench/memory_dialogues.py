"""Conversations over many sessions, made by a script, and questions about them: what a memory of a year must answer.

As large as LoCoMo (ten conversations of some 300 turns), with its kinds of questions, and drawn by a seed: nothing has
to be downloaded. No model is the judge: the record that answers is known, and is found or is not.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from report import Report

from aibox.memory.memory import Memory
from aibox.types import Scope

Kind = Literal["one fact", "two facts", "dates", "changed", "forgotten", "never told"]
LIMIT = 8

RELATIONS = ("sister", "brother", "cousin", "uncle", "aunt", "neighbour", "colleague", "friend", "teacher", "doctor")
NAMES = ("Anna", "Ben", "Clara", "David", "Elif", "Farid")
CITIES = ("Oslo", "Lisbon", "Graz", "Turin", "Leeds", "Bergen", "Porto", "Ghent", "Malmo", "Cork", "Basel", "Lyon",
          "Kyoto", "Quito", "Perth", "Dakar")  # fmt: skip
# What is told of a person, what it is drawn from, and how it is asked for, in other words than it was told in.
TOLD_OF_PEOPLE: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("My {who} lives in {}.", CITIES, "In which town is the home of my {who}?"),
    (
        "My {who} works as a {}.",
        ("baker", "pilot", "nurse", "judge", "tailor", "farmer", "welder", "dentist", "painter", "librarian"),
        "What does my {who} do for a living?",
    ),
    (
        "My {who} speaks {}.",
        ("Finnish", "Swahili", "Korean", "Polish", "Arabic", "Welsh", "Hindi", "Greek", "Danish", "Basque"),
        "Which foreign language does my {who} know?",
    ),
    (
        "My {who} likes {}.",
        ("chess", "sailing", "pottery", "climbing", "opera", "baking", "fencing", "gardening", "cycling", "poetry"),
        "What does my {who} enjoy in spare time?",
    ),
)
# What has one value, which a later one replaces.
ONE_VALUE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("job", ("nurse", "pilot", "baker", "judge")),
    ("address", ("Elm Road 4", "Oak Street 9", "Mill Lane 2", "Bay Avenue 7")),
    ("manager", ("Mrs Hall", "Mr Berg", "Ms Ortiz", "Dr Klein")),
    ("time zone", ("CET", "EST", "JST", "UTC")),
    ("employer", ("Northwind", "Lakeside Clinic", "Harbour Bank", "Atlas Rail")),
    ("favourite colour", ("green", "blue", "red", "black")),
    ("favourite dish", ("risotto", "goulash", "ramen", "paella")),
    ("favourite drink", ("mint tea", "cider", "espresso", "lemonade")),
    ("favourite band", ("the Herons", "Silver Tide", "Low Lamps", "the Foundry")),
    ("favourite sport", ("rowing", "tennis", "judo", "curling")),
    ("favourite season", ("spring", "summer", "autumn", "winter")),
    ("favourite animal", ("otter", "owl", "lynx", "hare")),
    ("favourite fruit", ("quince", "mango", "plum", "fig")),
    ("favourite editor", ("Vim", "Emacs", "Nano", "Kate")),
    ("favourite game", ("Catan", "Go", "Azul", "Hive")),
    ("favourite flower", ("peony", "iris", "dahlia", "tulip")),
    ("favourite museum", ("the Prado", "the Louvre", "the Uffizi", "the Tate")),
    ("favourite poet", ("Rilke", "Neruda", "Keats", "Basho")),
    ("favourite cheese", ("Gouda", "Brie", "Feta", "Manchego")),
    ("favourite tree", ("birch", "cedar", "oak", "willow")),
)
EVENTS = ("appointment with the dentist", "flight to Lisbon", "exam in statistics", "interview at the bank",
          "visit to the notary", "concert with Clara", "course in first aid", "meeting with the landlord",
          "hearing at the court", "marathon in Graz", "eye test", "driving test", "piano recital", "tax review",
          "house viewing", "blood test", "book club", "car inspection", "boat trip", "school reunion")  # fmt: skip
NEVER_TOLD = ("What is the blood group of my {who}?", "Which car does my {who} drive?",
              "What is the shoe size of my {who}?", "Which university did my {who} attend?",
              "How tall is my {who}?")  # fmt: skip
STRANGERS = ("godmother Xenia", "tenant Bertil", "barber Osman", "coach Imre", "vet Solveig")
# What is said too, and tells nothing that lasts.
SMALL_TALK = ("Thanks, that helps a lot!", "What is the weather like tomorrow?", "Can you sum that up in two lines?",
              "How do I boil an egg?", "Hm, let me think about it.", "Could you translate that into French?",
              "Sounds good.", "What is 17 times 23?")  # fmt: skip
OPENERS = ("", "", "By the way, ", "Oh, and ", "For the record, ", "Just so you know, ")


@dataclass(frozen=True, slots=True)
class Question:
    """`answers` are the records that answer it; `wrong` what must not be found."""

    kind: Kind
    text: str
    answers: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


@dataclass(slots=True)
class Dialogue:
    """`sessions` of what the user says, in order; after the last, `forgotten` is asked to be forgotten."""

    sessions: list[list[str]]
    forgotten: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    @property
    def turns(self) -> int:
        """The user's, and an answer to each."""
        return 2 * sum(map(len, self.sessions))


def dialogue(seed: int, *, share: float = 1.0) -> Dialogue:
    """One person's conversations; `share` of the full size."""
    draw = random.Random(seed)
    # Of few names, so that a sister, a cousin and a colleague are called Anna, and only all of a question tells whom.
    people = draw.sample([f"{who} {name}" for who in RELATIONS for name in NAMES], max(2, round(20 * share)))
    told: dict[tuple[str, int], str] = {}
    questions: list[Question] = []
    for who in people:
        for number, (form, values, asked) in enumerate(TOLD_OF_PEOPLE):
            told[who, number] = form.format(draw.choice(values), who=who)
            questions.append(Question("one fact", asked.format(who=who), (told[who, number],)))
    forgotten = draw.sample(sorted(told.values()), round(15 * share))
    questions = [q for q in questions if q.answers[0] not in forgotten] + [
        Question("forgotten", q.text, wrong=q.answers) for q in questions if q.answers[0] in forgotten
    ]
    for _ in range(round(25 * share)):
        one, other = draw.sample(people, 2)
        both = told[one, 0], told[other, 0]
        if not {*both} & {*forgotten}:
            questions.append(Question("two facts", f"Do my {one} and my {other} live in the same town?", both))
    events = {
        event: f"My {event} is on {draw.randrange(1, 28)} {draw.choice(('March', 'June', 'July', 'October'))} 2026."
        for event in draw.sample(EVENTS, round(20 * share))
    }
    questions += [Question("dates", f"On which day do I have the {event}?", (text,)) for event, text in events.items()]
    former, latter = [], []
    for name, values in draw.sample(ONE_VALUE, max(2, round(20 * share))):
        old, new = draw.sample(values, 2)
        former.append(f"My {name} is {old}.")
        latter.append(f"My {name} is {new}.")
        questions.append(Question("changed", f"What is my {name}?", (latter[-1],), (former[-1],)))
    for who in draw.sample(people, min(len(people), round(20 * share))):
        questions.append(Question("never told", draw.choice(NEVER_TOLD).format(who=who)))
    questions += [Question("never told", draw.choice(TOLD_OF_PEOPLE)[2].format(who=who)) for who in STRANGERS]

    early, late = [*told.values(), *former], [*events.values(), *latter]
    said = []
    for part in (early, late):
        draw.shuffle(part)
        said += [opened(draw.choice(OPENERS), text) for text in part]
    for _ in range(max(1, len(said) // 9)):
        said.insert(draw.randrange(len(said)), draw.choice(SMALL_TALK))
    size = -(-len(said) // 25)
    return Dialogue([said[i : i + size] for i in range(0, len(said), size)], forgotten, questions)


def opened(opener: str, text: str) -> str:
    return f"{opener}{text[0].lower()}{text[1:]}" if opener else text


async def dialogues(report: Report, folder: Path, *, conversations: int, share: float) -> None:
    """What is learned of each conversation by rules, and which questions are answered from it afterwards."""
    right: Counter[Kind] = Counter()
    first: Counter[Kind] = Counter()
    asked: Counter[Kind] = Counter()
    turns = kept = chatter = 0
    async with Memory(folder / "dialogues") as memory:
        for number in range(conversations):
            made = dialogue(number, share=share)
            turns += made.turns
            user = f"person{number}"
            for session, messages in enumerate(made.sessions):
                for message in messages:
                    scope = Scope(tenant="dialogues", user=user, session=f"s{session}")
                    learned = len(await memory.learn(message, scope=scope))
                    kept += learned
                    chatter += learned if message in SMALL_TALK else 0
            scope = Scope(tenant="dialogues", user=user, session="last")
            gone = [record.id for record in await memory.list(scope=scope) if record.text in made.forgotten]
            await memory.forget(scope=scope, ids=gone)
            for question in made.questions:
                found = [hit.record.text for hit in await memory.recall(question.text, scope=scope, limit=LIMIT)]
                asked[question.kind] += 1
                right[question.kind] += answered(question, found)
                first[question.kind] += bool(question.answers) and found[:1] == [question.answers[0]]
    report.row(
        "conversations over many sessions",
        f"{conversations} of {turns // conversations} turns",
        f"{sum(asked.values()):,} questions; {kept} facts learned by rules, {chatter} of them small talk; made by this "
        "script, as large as LoCoMo when not --quick; no model judges",
    )
    for kind, says in SAYS.items():
        at_first = f"; first in {first[kind]}" if kind in ("one fact", "dates", "changed") else ""
        report.row(f"questions about: {kind}", f"{right[kind]} of {asked[kind]}", says + at_first)
    report.goal(
        "memory.contradictions_resolved",
        right["changed"] / asked["changed"],
        unit="of 1",
        against=f"{asked['changed']} facts that were told anew in a later session",
        note="of what has one value, such as an address: what the rules know to replace",
    )


SAYS: dict[Kind, str] = {
    "one fact": f"the record that answers is among the {LIMIT} recalled",
    "two facts": "both records that the answer needs are",
    "dates": "the record with the day is",
    "changed": "the newer record is, and the older one is not",
    "forgotten": "what was forgotten is not",
    "never told": "nothing is recalled at all; else a model must see that what is near does not answer",
}


def answered(question: Question, found: Sequence[str]) -> bool:
    if question.kind == "never told":
        return not found
    return {*question.answers} <= {*found} and not {*question.wrong} & {*found}
