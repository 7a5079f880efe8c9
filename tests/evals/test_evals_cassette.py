"""Record and replay at the model boundary: what is found again, what is refused, what never reaches the file."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aibox
from aibox.chat import ChatRequest, assemble
from aibox.errors import BackendError, ConfigError
from aibox.evals.cassette import Cassette, CassetteMissError, canonical_request
from aibox.evals.scrub import Names
from aibox.testing import ScriptedBackend, call
from aibox.testing.backend_contract import BackendContract
from aibox.types import Scope

pytestmark = pytest.mark.anyio
SECRETS = [
    "sk-proj-abcdefghijklmnop1234567890",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_abcdefghijklmnopqrstuvwxyz123456",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----",
]


def asked(text: str, **fields: Any) -> ChatRequest:
    return ChatRequest({"model": "m", "messages": [{"role": "user", "content": text}], **fields})


@aibox.tool
def owed(customer: str) -> float:
    """Open invoices of a customer, in EUR."""
    return 1240.5


async def turn(model: Any, question: str, *, instructions: str = "Books.") -> str:
    agent = aibox.Agent(
        instructions,
        router=aibox.Router(model),
        tools=[owed],
        guardrail=aibox.Guardrail(aibox.Policy.profile("balanced")),
    )
    return (await agent.run(question, scope=Scope(tenant=f"t{uuid.uuid4().hex[:8]}", user="u"))).text


async def test_a_turn_is_played_back_without_a_model(tmp_path: Path) -> None:
    """Tool calls with new ids, pseudonyms with new keys and a whole turn come out as they were recorded."""
    question = "What does Acme owe? Tell maria.keller@example.org, ticket 7c9e6679-7425-40de-944b-e07fc1f90ae7."

    def last(request: ChatRequest) -> str:
        return f"1240.5 EUR. You said: {request.messages[-3]['content']}"

    path = tmp_path / "turn.jsonl"
    async with Cassette(path, ScriptedBackend(call("owed", {"customer": "acme"}), last)) as recording:
        first = await turn(recording, question)
    assert "maria.keller@example.org" in first
    for _ in range(2):
        playing = Cassette(path, mode="none")
        assert await turn(playing, question) == first
        assert playing.unused == 0
    text = path.read_text("utf-8")
    assert "maria" not in text
    assert "7c9e6679" not in text


async def test_a_miss_fails_with_a_diff_of_the_prompt(tmp_path: Path) -> None:
    """A changed prompt is shown as people read a change, against the nearest request that is known."""
    path = tmp_path / "turn.jsonl"
    async with Cassette(path, ScriptedBackend("Paris.", "Rome.")) as recording:
        await turn(recording, "Capital of France?", instructions="Answer in one word.")
        await turn(recording, "Capital of Italy?", instructions="Answer in one word.")
    with pytest.raises(CassetteMissError) as caught:
        await turn(Cassette(path, mode="none"), "Capital of Italy?", instructions="Answer in two words.")
    assert "-  Answer in one word." in caught.value.diff
    assert "+  Answer in two words." in caught.value.diff
    assert "France" not in caught.value.diff


async def test_the_modes(tmp_path: Path, scope: Scope) -> None:
    """none plays, once records a new file only, new records what is missing, all records everything anew."""
    path = tmp_path / "a" / "b.jsonl"

    async def ask(mode: Any, text: str, *answers: str) -> str:
        async with Cassette(path, ScriptedBackend(*answers), mode=mode) as cassette:
            return (await cassette.complete(asked(text), scope=scope)).text

    with pytest.raises(CassetteMissError, match="empty"):
        await ask("none", "x")
    assert await ask("once", "x", "one") == "one"
    assert await ask("once", "x", "two") == "one"
    with pytest.raises(CassetteMissError):
        await ask("once", "y", "two")
    assert await ask("new", "y", "two") == "two"
    assert await ask("none", "x") == "one"
    assert await ask("none", "y") == "two"
    assert await ask("all", "x", "three") == "three"
    with pytest.raises(CassetteMissError):
        await ask("none", "y")
    with pytest.raises(ConfigError, match="no mode"):
        await ask("sometimes", "x")


async def test_equal_requests_get_their_answers_in_order(tmp_path: Path, scope: Scope) -> None:
    """A model that answers differently each time is played back as it was, and no answer twice."""
    path = tmp_path / "c.jsonl"
    async with Cassette(path, ScriptedBackend("a", "b")) as recording:
        assert [(await recording.complete(asked("x"), scope=scope)).text for _ in range(2)] == ["a", "b"]
    playing = Cassette(path, mode="none")
    assert [(await playing.complete(asked("x"), scope=scope)).text for _ in range(2)] == ["a", "b"]
    with pytest.raises(CassetteMissError, match="used up"):
        await playing.complete(asked("x"), scope=scope)


async def test_errors_are_played_back_too(tmp_path: Path, scope: Scope) -> None:
    """A server that failed fails again in the same way."""
    path = tmp_path / "c.jsonl"
    error = BackendError("429 for key sk-proj-abcdefghijklmnop1234567890", retryable=True, timeout=True)
    async with Cassette(path, ScriptedBackend(error)) as recording:
        with pytest.raises(BackendError):
            await recording.complete(asked("x"), scope=scope)
    with pytest.raises(BackendError, match="429") as caught:
        await Cassette(path, mode="none").complete(asked("x"), scope=scope)
    assert (caught.value.retryable, caught.value.timeout) == (True, True)
    assert "sk-proj" not in path.read_text("utf-8")


async def test_a_stream_and_a_whole_answer_are_one_recording(tmp_path: Path, scope: Scope) -> None:
    """How an answer is delivered does not count, neither when it is recorded nor when it is played."""
    path = tmp_path / "c.jsonl"
    async with Cassette(path, ScriptedBackend("A longer answer, in pieces.")) as recording:
        [chunk async for chunk in recording.stream(asked("x", stream=True), scope=scope)]
    whole = await Cassette(path, mode="none").complete(asked("x"), scope=scope)
    chunks = [chunk async for chunk in Cassette(path, mode="none").stream(asked("x", stream=True), scope=scope)]
    assert whole.text == assemble(chunks).text == "A longer answer, in pieces."
    assert len(chunks) > 3


@pytest.mark.parametrize("secret", SECRETS)
async def test_no_secret_reaches_the_file(tmp_path: Path, scope: Scope, secret: str) -> None:
    """Keys, tokens and personal data are taken out of request and answer; those of the request come back on replay."""
    path = tmp_path / "c.jsonl"
    text = f"Use {secret} and call eva.meyer@example.org"
    answer = f"I used {secret}; the password: hunter2222 is for eva.meyer@example.org"
    async with Cassette(path, ScriptedBackend(answer)) as recording:
        await recording.complete(asked(text), scope=scope)
    written = path.read_text("utf-8")
    for hidden in (secret.split("\n")[-1] if "\n" not in secret else "MIIEvQ", "eva.meyer", "hunter2222"):
        assert hidden not in written
    played = await Cassette(path, mode="none").complete(asked(text), scope=scope)
    assert secret in played.text
    assert "eva.meyer@example.org" in played.text
    assert "hunter2222" not in played.text


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format": "aibox/cassette/v0"}', '{"format": "aibox/cassette/v1"}\n{"a": 1}', "\x00"]
)
def test_what_is_no_cassette_is_refused(tmp_path: Path, text: str) -> None:
    """A broken file is named, and never taken for an empty one."""
    path = tmp_path / "c.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"not a cassette"):
        Cassette(path)


def test_ids_and_times_do_not_count_and_words_do() -> None:
    """Two runs of one conversation have one canonical form; a date that was asked about stays in it."""

    def form(call_id: str, moment: str, date: str) -> Any:
        calls = [{"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}]
        messages = [
            {"role": "user", "content": f"It is {moment}. What happened on {date}?"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": call_id, "content": "x"},
        ]
        return canonical_request(ChatRequest({"model": "m", "messages": messages, "stream": True}))[0]

    first = form("call_0123456789abcdef", "2026-01-02T03:04:05Z", "2020-05-06")
    assert first == form("Kd93jfL0a", "2026-11-12 13:14:15.5+01:00", "2020-05-06")
    assert first != form("Kd93jfL0a", "2026-11-12 13:14:15.5+01:00", "2020-05-07")


pieces = st.lists(
    st.sampled_from(
        [
            "eva@example.org",
            "bob@example.org",
            "⟪email 1⟫",
            "⟪id 7⟫",
            SECRETS[0],
            "7c9e6679-7425-40de-944b-e07fc1f90ae7",
            "2026-01-02T03:04:05Z",
            "<PERSON_3f9a2c>",
            " and ",
            "\n",
            '"',
        ]
    )
    | st.text(max_size=6),
    max_size=8,
)


@given(pieces.map(" ".join))
def test_what_was_hidden_can_be_shown_again(text: str) -> None:
    """Showing undoes hiding for any text, also one that holds names like ours; hiding twice adds nothing."""
    names = Names()
    hidden = names.hide(text)
    assert names.show(hidden) == text
    assert "@example.org" not in hidden
    assert Names().hide(hidden) == hidden


async def test_a_cassette_of_an_external_model_still_meets_the_door(tmp_path: Path, scope: Scope) -> None:
    """A replay is external when the recording was: a policy that shuts the door refuses it."""
    path = tmp_path / "c.jsonl"
    async with Cassette(path, ScriptedBackend("ok", external=True)) as recording:
        await recording.complete(asked("x"), scope=scope)
    assert Cassette(path, mode="none").external
    with pytest.raises(ConfigError, match="external"):
        aibox.Router(Cassette(path, mode="none"))


async def test_the_file_is_lines_of_json_that_diff_well(tmp_path: Path, scope: Scope) -> None:
    """One call a line, without times, numbers of processes or anything else that changes by itself."""
    texts = []
    for name in ("a", "b"):
        async with Cassette(tmp_path / name, ScriptedBackend("one", "two")) as recording:
            for text in ("x", "y"):
                await recording.complete(asked(text), scope=scope)
        texts.append((tmp_path / name).read_text("utf-8"))
    assert texts[0] == texts[1]
    assert [json.loads(line).get("request", {}).get("model") for line in texts[0].splitlines()] == [None, "m", "m"]


class TestACassetteThatRecordsIsABackend(BackendContract):
    """Whoever holds a cassette holds a Backend."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Cassette:
        return Cassette(tmp_path / "c.jsonl", ScriptedBackend(*[lambda _: "One two three four five six seven."] * 40))
