"""A vLLM server: OpenAI-compatible, with a health route of its own and a model list that says more."""

from __future__ import annotations

from aibox.chat import Weights
from aibox.inference.openai_compatible import OpenAICompatible


class VLLM(OpenAICompatible):
    """A vLLM server at `base_url`, such as `http://10.0.0.7:8000/v1`. Options are those of OpenAICompatible.

    A tool is enforced by constrained decoding when `tool_choice` is `"required"` or names one; for `"auto"` the server
    must have been started with `--enable-auto-tool-choice` and a parser. vLLM's key guards `/v1` only: nobody but the
    router should reach the port.
    """

    def _health_url(self) -> str:
        # /health lies at the root, and says 503 when the engine is dead though the process answers.
        return self.base_url.removesuffix("/v1") + "/health"

    def _weights(self) -> Weights:
        return Weights(known="declared")
