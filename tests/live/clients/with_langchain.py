"""LangChain's `langchain-openai` against a server: `python with_langchain.py URL KEY`; prints what it got, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class City(BaseModel):
    name: str
    people: int


@tool
def weather() -> str:
    """What it is like."""
    return "rain"


URL, KEY = sys.argv[1:]
model = ChatOpenAI(model="m", base_url=URL, api_key=KEY, max_retries=0)
agent = ChatOpenAI(model="agent:default", base_url=URL, api_key=KEY, max_retries=0)
got: dict[str, object] = {}
whole = model.invoke("hi")
got["whole"] = [whole.content, whole.usage_metadata["total_tokens"]]
got["stream"] = "".join(chunk.content for chunk in model.stream("hi"))
got["batch"] = [one.content for one in model.batch(["hi", "hi"])]
got["async"] = asyncio.run(model.ainvoke("hi")).content
asked = model.bind_tools([weather]).invoke("hi")
(call,) = asked.tool_calls
told = [HumanMessage("hi"), asked, ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])]
got["tool"] = [call["name"], model.invoke(told).content]
parsed = model.with_structured_output(City).invoke("hi")
got["parsed"] = [parsed.name, parsed.people]
got["agent"] = agent.invoke("hi").content
got["agent_stream"] = "".join(chunk.content for chunk in agent.stream("hi"))
# As texts: by default it sends the numbers of tokens, which no check can read.
embeddings = OpenAIEmbeddings(model="m", base_url=URL, api_key=KEY, check_embedding_ctx_length=False)
got["embedding"] = embeddings.embed_documents(["a", "b"])[1]
print(json.dumps(got))
