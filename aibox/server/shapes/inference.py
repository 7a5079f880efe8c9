"""The OpenAI routes as far as aibox reads them: every other field goes on as it came, and comes back so."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


Filled = Annotated[str, Field(min_length=1)]


class Message(_Open):
    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatCompletionRequest(_Open):
    """OpenAI's Chat Completions. `model` is a model's id or `agent:NAME`."""

    messages: list[Message] = Field(min_length=1)
    model: str = "default"
    stream: bool | None = False


class CompletionRequest(_Open):
    prompt: str | list[str]
    model: str = "default"
    stream: bool | None = False


class EmbeddingRequest(_Open):
    input: Filled | Annotated[list[Filled], Field(min_length=1)]
    model: str = "embedding"


class ResponseRequest(_Open):
    """OpenAI's Responses. Nothing is kept between calls: `store` is sent as false."""

    input: str | list[dict[str, Any]]
    model: str = "default"
    stream: bool | None = False


class Choice(_Open):
    index: int
    message: Message
    finish_reason: str | None


class ChatCompletion(_Open):
    """One whole answer. An agent's has `aibox` beside it: the run, the label, and the questions that it waits for."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]


class ChatChunk(_Open):
    """A piece of a streamed answer: what is new stands in the `delta` of each choice."""

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]


class Completion(_Open):
    object: str
    choices: list[dict[str, Any]]


class Embeddings(_Open):
    object: str
    data: list[dict[str, Any]]


class Response(_Open):
    id: str
    object: str


class ResponseEvent(_Open):
    """An event of a streamed response, such as `response.output_text.delta`."""

    type: str


class Model(_Open):
    id: str
    object: str
    created: int
    owned_by: str


class Models(_Open):
    object: str
    data: list[Model]


class Health(_Open):
    ok: bool
    version: str


class Readiness(_Open):
    """Whether requests may be sent here, and of each part whether it is there: `ok` or `missing`."""

    ok: bool
    parts: dict[str, str]
