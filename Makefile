# `make help` lists the targets. Each works as the first command on a fresh clone: it makes .venv where it is missing or
# older than what it is made from.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# More arguments for torch's own installation, for a build other than the index's default one.
TORCH_ARGS ?=
# More arguments for the command of a target: `make serve ARGS="tree_budget=16"`, `make test ARGS="-k trees"`.
ARGS ?=

INPUTS := pyproject.toml constraints.txt
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed

.PHONY: help
help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: serve
serve: $(RUNTIME) ## Starts the whole cluster on this machine: HTTP on port 8000, gRPC on port 9000
	RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_HAPROXY_BINARY_PATH=$(abspath $(BIN))/dflash-haproxy \
		$(BIN)/serve run deployments:app $(ARGS)

.PHONY: test
test: $(DEV) ## Runs the tests, but for those that take minutes or need a GPU
	scripts/run_tests $(BIN)/python "not slow and not fuzz and not gpu and not namespaces" $(ARGS)

.PHONY: test-all
test-all: $(DEV) ## Runs every test that needs neither GPU nor root and is the same each time
	scripts/run_tests $(BIN)/python "not fuzz and not gpu and not namespaces" $(ARGS)

.PHONY: fuzz
fuzz: $(DEV) ## Hostile messages to every method and endpoint, other ones each time: DFLASH_FUZZ_EXAMPLES=5000 make fuzz
	$(BIN)/python -m pytest -m fuzz $(ARGS)

.PHONY: test-namespaces
test-namespaces: $(DEV) ## Runs the tests with nodes in network namespaces, a slow wire between them; needs root on Linux
	$(BIN)/python -m pytest -m namespaces $(ARGS)

.PHONY: test-gpu
test-gpu: $(DEV) ## Runs the tests that need a GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

.PHONY: chaos
chaos: $(DEV) ## Kills processes of a cluster under load, twenty seeded runs, and compares every token
	$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: soak
soak: $(DEV) ## Load, cancellations and kills for half an hour; fails where memory, blocks or descriptors grow
	$(BIN)/python -m tests.soak $(ARGS)

.PHONY: check
check: $(DEV) ## Lint, format, types, generated stubs and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/generate_protos.py --check
	$(BIN)/python -m pytest -q tests/tooling/test_import_rules.py

.PHONY: format
format: $(DEV) ## Formats the code and applies the linter's safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: protos
protos: $(DEV) ## Generates the stubs of protos/*.proto
	$(BIN)/python scripts/generate_protos.py

.PHONY: bench
bench: $(RUNTIME) ## Measures plain decoding, chains and trees against Hugging Face generate
	$(BIN)/dflash bench $(ARGS)

.PHONY: bench-sweep
bench-sweep: $(RUNTIME) ## Measures how well the router chooses, from 1 to 32 requests at a time
	$(BIN)/dflash bench --references published --max-prompts 8 --max-tokens 64 --repeats 3 \
		$(foreach n,1 2 4 8 16 32,--concurrency $(n)) $(ARGS)

.PHONY: constraints
constraints: ## Resolves the newest versions that pyproject.toml allows into constraints.txt
	PYTHON="$(PYTHON)" scripts/resolve_constraints

.PHONY: clean
clean: ## Removes the environment, caches and build results
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}: run make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# Torch goes first and by itself: with it in place nothing else asks for another build of it.
$(RUNTIME): $(INPUTS) | $(VENV)/bin/python
	$(PIP) setuptools
	$(PIP) torch==2.13.0 $(TORCH_ARGS)
	$(PIP) --no-build-isolation --editable .
	@touch $@

$(DEV): $(INPUTS) $(RUNTIME)
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
