"""What every Recorder keeps to. A recorder of your own runs this suite by subclassing it and overriding the fixture."""

from __future__ import annotations

import anyio
import pytest

from aibox.errors import AIBoxError
from aibox.protocols import Recorder
from aibox.types import Entry, Scope

SCOPE = Scope(tenant="contract", user="somebody")
OTHER = Scope(tenant="another", user="somebody")
KIND = "contract.tried"


class RecorderContract:
    """Override the fixture `recorder` with one whose logs are empty."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def recorder(self) -> Recorder:
        raise NotImplementedError("override the fixture `recorder` and return the recorder under test")

    @pytest.mark.anyio
    async def test_entries_stand_in_the_order_of_their_calls(self, recorder: Recorder) -> None:
        """What was noted has its place before what is appended after it."""
        first = await recorder.append(KIND, scope=SCOPE, detail={"n": 1})
        recorder.note(KIND, scope=SCOPE, detail={"n": 2})
        recorder.note(KIND, scope=SCOPE, detail={"n": 3})
        last = await recorder.append(KIND, scope=SCOPE, detail={"n": 4})
        assert last.seq == first.seq + 3
        assert last.ts_us >= first.ts_us

    @pytest.mark.anyio
    async def test_many_at_once_get_a_place_each(self, recorder: Recorder) -> None:
        """A hundred callers are a hundred entries, without a gap and without a place given twice."""
        entries: list[Entry] = []

        async def one(number: int) -> None:
            entries.append(await recorder.append(KIND, scope=SCOPE, detail={"n": number}))

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(one, number)
        places = sorted(entry.seq for entry in entries)
        assert places == list(range(places[0], places[0] + 100))
        assert len({entry.leaf for entry in entries}) == 100

    @pytest.mark.anyio
    async def test_each_tenant_has_a_log_of_its_own(self, recorder: Recorder) -> None:
        """An entry of one tenant takes no place in the log of another."""
        mine = await recorder.append(KIND, scope=SCOPE, detail={})
        theirs = await recorder.append(KIND, scope=OTHER, detail={})
        again = await recorder.append(KIND, scope=SCOPE, detail={})
        assert (mine.tenant, theirs.tenant) == ("contract", "another")
        assert again.seq == mine.seq + 1

    @pytest.mark.anyio
    @pytest.mark.parametrize("detail", [{"x": 0.5}, {"x": 2**60}, {"x": "\ud800"}, {"x": object()}, {"ключ": 1}])
    async def test_what_has_no_canonical_form_is_refused(self, recorder: Recorder, detail: dict[str, object]) -> None:
        """A fraction, a number beyond 2^53, half a character: a clear error, and the next entry is written."""
        with pytest.raises(AIBoxError):
            await recorder.append(KIND, scope=SCOPE, detail=detail)
        assert (await recorder.append(KIND, scope=SCOPE, detail={})).kind == KIND
