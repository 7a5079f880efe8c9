"""What every Tool keeps to. A tool of your own runs this suite by subclassing it and overriding what is marked."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from aibox.protocols import Tool
from aibox.types import Scope

SCOPE = Scope(tenant="contract", user="somebody")


class ToolContract:
    """Override the fixture `tool`, and give `arguments` that it can be called with more than once."""

    arguments: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def tool(self) -> Tool:
        raise NotImplementedError("override the fixture `tool` and return the tool under test")

    def test_a_model_can_be_told_of_it(self, tool: Tool) -> None:
        """The name is one that model servers take (OpenAI: 64 letters, digits, `_`, `-`), and it says what it does."""
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", tool.name)
        assert tool.description.strip()

    def test_its_arguments_are_an_object(self, tool: Tool) -> None:
        """The schema is JSON and describes an object that has every argument of the example."""
        schema = json.loads(json.dumps(dict(tool.schema)))
        assert schema["type"] == "object"
        assert set(self.arguments) <= set(schema.get("properties", {}))
        assert set(schema.get("required", ())) <= set(self.arguments)

    @pytest.mark.anyio
    async def test_it_answers_with_text_and_leaves_its_arguments(self, tool: Tool) -> None:
        """A model reads text; and what it was called with is still the record of what it was called with."""
        arguments = copy.deepcopy(dict(self.arguments))
        assert isinstance(await tool.call(arguments, scope=SCOPE), str)
        assert arguments == dict(self.arguments)
