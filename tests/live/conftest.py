"""Tests against real servers; `make test-live` installs them and says where they are. Elsewhere none is collected."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("AIBOX_TEST_VLLM_PYTHON") else ["test_*.py"]
