"""Tests against real servers; `make test-live` installs them and says where they are. Elsewhere none is collected."""

from __future__ import annotations

import os

NEEDS = {"test_live_vllm.py": "AIBOX_TEST_VLLM_PYTHON", "test_live_oidc.py": "AIBOX_TEST_NODE_MODULES"}
collect_ignore = [name for name, variable in NEEDS.items() if not os.environ.get(variable)]
