# Needs Python 3.11 or newer and make; everything else comes from the locks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo coverage quick test test-fault check bench format lock clean help

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(RUNTIME) ## a cluster, a router and a simulated fleet; Ctrl-C ends everything
	@$(BIN)/voltroute demo

coverage: $(DEV) ## branch coverage of the pure core by unit and property tests
	@$(BIN)/python -m pytest tests/unit tests/property --cov --cov-report=term-missing:skip-covered

quick: $(DEV) ## unit and property tests: no servers, under 20 s
	@$(BIN)/python -m pytest tests/unit tests/property tests/docs

test: $(DEV) ## all tests but the long proofs, about 10 minutes
	@$(BIN)/python -m pytest -n 3 --dist loadfile

test-fault: $(DEV) ## fault tests with the long proofs: every step of a move, large buckets; about half an hour
	@$(BIN)/python -m pytest tests/fault -m "long or not long"

check: $(DEV) ## lint, types, layers, SQL
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/squawk migrations/catalog/*.sql migrations/shard/*.sql

bench: $(DEV) ## a quick run of the bench suite on a cluster of its own, under three minutes
	@$(BIN)/python -m bench run single batch --rounds 2 --seconds 2

format: $(DEV) ## format, and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# The locks name no index: pip uses the one it is configured for. Needs uv.
lock: ## resolve the locks anew
	echo 'setuptools>=77' | uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-header --quiet pyproject.toml - -o requirements.lock
	echo 'setuptools>=77' | uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-header --quiet --extra dev -c requirements.lock pyproject.toml - -o requirements-dev.lock
	echo 'setuptools>=77' | uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-header --quiet --extra archive --extra otel --extra redis -c requirements-dev.lock pyproject.toml - -o requirements-image.lock

clean: ## remove what was made here
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

# The locks are complete. Asked for dependencies too, pip takes the newest release of a name[extra], whatever is locked.
$(RUNTIME): requirements.lock pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV) ..."
	@$(PIP) install --no-deps --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --no-index -e .
	@touch $@

$(DEV): requirements-dev.lock $(RUNTIME)
	@$(PIP) install --no-deps --require-hashes -r requirements-dev.lock
	@touch $@
