"""The official `openai` package against a server: `python with_openai.py URL KEY`; prints what it got, as JSON."""

from __future__ import annotations

import json
import sys

import openai
from pydantic import BaseModel


class City(BaseModel):
    name: str
    people: int


URL, KEY = sys.argv[1:]
HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
got: dict[str, object] = {"models": [model.id for model in client.models.list()]}

whole = client.chat.completions.create(model="m", messages=HI)
got["whole"] = [whole.choices[0].message.content, whole.usage.total_tokens]
chunks = client.chat.completions.create(model="m", messages=HI, stream=True, stream_options={"include_usage": True})
pieces = list(chunks)
got["stream"] = ["".join(p.choices[0].delta.content or "" for p in pieces if p.choices), pieces[-1].usage.total_tokens]

asked = client.chat.completions.create(model="m", messages=HI, tools=TOOLS).choices[0].message
(call,) = asked.tool_calls
told = [*HI, asked, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
got["tool"] = [call.function.name, client.chat.completions.create(model="m", messages=told).choices[0].message.content]

parsed = client.chat.completions.parse(model="m", messages=HI, response_format=City).choices[0].message.parsed
got["parsed"] = [parsed.name, parsed.people]
got["completion"] = client.completions.create(model="m", prompt="hi").choices[0].text
got["response"] = client.responses.create(model="m", input="hi").output_text
got["embedding"] = client.embeddings.create(model="m", input=["a", "b"]).data[1].embedding
got["agent"] = client.chat.completions.create(model="agent:default", messages=HI).choices[0].message.content

errors = []
for model, key in (("nobody", KEY), ("m", "wrong")):
    try:
        client.with_options(api_key=key).chat.completions.create(model=model, messages=HI)
    except openai.APIStatusError as error:
        errors.append([type(error).__name__, error.status_code, error.code])
got["errors"] = errors

waiting = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "wait"}], stream=True)
with waiting:
    first = next(piece for piece in waiting if piece.choices[0].delta.content).choices[0].delta.content
asked = [{"role": "user", "content": "who waits?"}]
got["left"] = [first, client.chat.completions.create(model="m", messages=asked).choices[0].message.content]
print(json.dumps(got))
