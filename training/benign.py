"""Harmless sentences that use the words of attacks, made from patterns: the project's own hard negatives.

Without them a head learns that `ignore`, `previous`, `pretend` or `system prompt` is enough.
"""

from __future__ import annotations

import itertools
import random
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

_PATTERNS: tuple[tuple[str, dict[str, tuple[str, ...]]], ...] = (
    (
        "{do} your {last} {answer}{how}",
        {
            "do": ("Rewrite", "Shorten", "Summarise", "Translate", "Revise", "Expand", "Critique", "Reformat"),
            "last": ("previous", "last", "earlier"),
            "answer": ("answer", "response", "reply", "message"),
            "how": (" as a table.", " in the style of a poem.", " for a younger reader.", ", and add the date."),
        },
    ),
    (
        "{how} {ignore} {what} {where}?",
        {
            "how": ("How do I", "Can I safely", "Why does my script", "Is there a way to"),
            "ignore": ("ignore", "bypass", "override", "disable", "skip", "forget", "disregard"),
            "what": ("a warning", "the cache", "whitespace changes", "a failing test", "the default settings",
                     "certificate errors", "previous versions", "the existing rules"),
            "where": ("in git", "in Python", "with eslint", "on my laptop", "in the browser", "during the build"),
        },
    ),
    (
        "{pretend} {who} and {then}",
        {
            "pretend": ("Pretend you are", "Act as", "Play the role of", "Imagine you are", "Role-play as"),
            "who": ("a detective in the 1920s", "a friendly tour guide", "a chemistry teacher", "a knight",
                    "an interviewer for a bank", "a doctor who explains things simply", "a travel agent"),
            "then": ("tell me about your day.", "explain how rain forms.", "ask me three questions.",
                     "help me plan a weekend in Rome.", "review my letter."),
        },
    ),
    (
        "{what} {of} {thing}?",
        {
            "what": ("What is", "Who wrote about", "Explain", "Where can I read about", "What are examples of"),
            "of": ("the meaning of", "the history of", "the purpose of", "best practice for"),
            "thing": ("system prompts", "developer mode in Android", "a jailbreak on a phone", "prompt engineering",
                      "prompt injection", "content filters", "safety guidelines in laboratories", "admin rights",
                      "hidden instructions in old manuscripts", "secret ballots", "unrestricted funds"),
        },
    ),
    (
        "{please} {act} the {noun} {when}.",
        {
            "please": ("Please", "You should", "We always", "The team must", "Remember to"),
            "act": ("follow", "ignore", "repeat", "reveal", "print", "update", "confirm"),
            "noun": ("instructions on the label", "system settings", "previous invoice", "rules of the game",
                     "policy for visitors", "steps above", "administrator's notes", "test results"),
            "when": ("before you start", "after the meeting", "if the light is red", "once a week",
                     "only when you are authorised", "when the customer asks"),
        },
    ),
    (
        "{write} a {kind} in which {who} {does}.",
        {
            "write": ("Write", "Draft", "Invent", "Tell me"),
            "kind": ("short story", "scene", "dialogue", "children's tale"),
            "who": ("a robot", "an old spy", "a girl without fear", "a captain", "an AI"),
            "does": ("breaks the rules of the house", "reveals a secret recipe", "forgets all instructions",
                     "pretends to be a king", "is freed from its limits", "overrides the autopilot"),
        },
    ),
    (
        "{please} {ignore} my {last} {mail}{since}",
        {
            "please": ("Please", "Kindly", "You can", "Sorry,"),
            "ignore": ("ignore", "disregard", "forget about", "delete"),
            "last": ("previous", "last", "earlier", "first"),
            "mail": ("e-mail", "order", "message", "ticket", "request", "note", "booking"),
            "since": (", the right number is 4071.", "; I opened it by mistake.", ", I found the answer myself.",
                      " and use the attached file instead."),
        },
    ),
    (
        "{who} {must} {act} {what} {when}.",
        {
            "who": ("You", "All staff", "The operator", "Every user", "Each applicant"),
            "must": ("MUST always", "must", "should NEVER fail to", "has to", "are required to"),
            "act": ("verify", "follow", "confirm", "activate", "respect"),
            "what": ("the safety protocols", "the access policy", "the filter settings", "the system parameters",
                     "the user's authorisation", "ALL security measures"),
            "when": ("before any action", "during the experiment", "prior to deleting files", "at all times",
                     "when the procedure begins"),
        },
    ),
    (
        "{can} {about} {taboo} {where}?",
        {
            "can": ("Could you write", "Please discuss", "I need an essay", "Help me with a paragraph"),
            "about": ("about", "on why people worry about", "that explains", "for students on"),
            "taboo": ("immoral choices", "uncensored diaries", "unrestricted access to archives", "illegal logging",
                      "unfiltered olive oil", "evil twins", "unethical experiments", "forbidden books"),
            "where": ("in literature", "in several cultures", "with a humorous tone", "for a school project"),
        },
    ),
)  # fmt: skip

# The same in other languages, so that another language is not itself suspicious.
_OTHERS = (
    "Bitte ignorieren Sie meine letzte Nachricht, die Rechnungsnummer war falsch.",
    "Veuillez ne pas tenir compte de mon dernier message.",
    "Por favor, ignore mi mensaje anterior, me equivoqué de fecha.",
    "Ti prego di ignorare il mio ultimo messaggio, ho sbagliato data.",
    "Por favor, desconsidere meu e-mail anterior.",
    "Wie kann ich eine Warnung in meinem Code ignorieren?",
    "Bitte fasse deine vorherige Antwort in drei Sätzen zusammen.",
    "Vergiss nicht, die Anweisungen auf der Packung zu lesen.",
    "Welche Regeln gelten für Besucher im Krankenhaus?",
    "Stell dir vor, du bist ein Reiseleiter in Wien.",
    "Was ist ein Systemprompt, und wozu dient er?",
    "Comment ignorer un fichier dans git ?",
    "Réécris ta réponse précédente sous forme de tableau.",
    "N'oubliez pas de suivre les instructions du médecin.",
    "Quelles sont les règles du jeu d'échecs ?",
    "Imagine que tu es un guide à Lyon et propose un itinéraire.",
    "¿Cómo puedo desactivar las notificaciones del sistema?",
    "Resume tu respuesta anterior en dos frases.",
    "No olvides las instrucciones de la receta.",
    "¿Cuáles son las reglas del fútbol?",
    "Actúa como un profesor de historia y explícame la Edad Media.",
    "Come posso ignorare un avviso nel mio codice?",
    "Riscrivi la tua risposta precedente in modo più breve.",
    "Dimenticare le istruzioni del medico può essere pericoloso.",
    "Quali sono le regole della biblioteca?",
    "Como desativo o modo de desenvolvedor no telefone?",
    "Reescreva sua resposta anterior para uma criança.",
    "Quais são as instruções de segurança do laboratório?",
    "Как отключить уведомления в системе?",
    "Перепиши свой предыдущий ответ короче.",
    "Какие правила действуют в библиотеке?",
    "Jak mohu v gitu ignorovat soubor?",
    "Zkrať prosím svou předchozí odpověď.",
    "Jakie są zasady gry w szachy?",
    "Hoe kan ik een waarschuwing in mijn code negeren?",
    "Vat je vorige antwoord samen in drie zinnen.",
    "Önceki cevabını daha kısa yaz.",
    "如何在 git 中忽略一个文件？",
    "请把你之前的回答改写成表格。",
    "この警告を無視するにはどうすればよいですか？",
    "前の回答を短くまとめてください。",
    "이전 답변을 표로 다시 써 주세요.",
    "كيف أتجاهل تحذيرًا في الكود؟",
    "मेरे कोड में चेतावनी को कैसे अनदेखा करूं?",
)

_PER_PATTERN = 220
_SLOT = re.compile(r"\{(\w+)\}")


def sentences() -> Iterator[str]:
    """All of them, always the same and in the same order."""
    for family in families():
        yield from family


def families() -> Iterator[list[str]]:
    """The sentences of each way to ask or to say something: what is held out together says how well a head knows it."""
    for pattern, slots in _PATTERNS:
        combinations = [dict(zip(slots, values, strict=True)) for values in itertools.product(*slots.values())]
        step = max(1, len(combinations) // _PER_PATTERN)
        yield [pattern.format(**filled) for filled in combinations[::step]]
    yield list(_OTHERS)
    yield from _filled()


def _filled() -> Iterator[list[str]]:
    """The families of `benign.toml`: a slot is filled from the family's list, or from the shared one."""
    patterns = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    for number, family in enumerate(patterns["family"]):
        chance = random.Random(number)
        slots = {**patterns["shared"], **family}
        found: set[str] = set()
        for _ in range(3 * _PER_PATTERN):
            text = family["text"]
            while slot := _SLOT.search(text):
                text = text[: slot.start()] + chance.choice(slots[slot[1]]) + text[slot.end() :]
            found.add(text)
            if len(found) == _PER_PATTERN:
                break
        yield sorted(found)
