# Each target works in a fresh clone on a machine that has only Python 3.11 or newer; it installs what it needs
# into .venv first. On a machine with a GPU: `make setup TORCH=torch` takes the newest build of the package index.

PYTHON ?= python3
TORCH ?= torch==2.13.0
EXTRAS ?= langchain,dev
WORKERS ?= auto
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WHAT_IS_NEEDED := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo check format test bench clean

help: ## Show the targets.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  \1\t/' | expand -t 12

setup: $(VENV)/.stamp-setup ## Install everything that developing needs into .venv.

demo: $(VENV)/.stamp-demo ## Write a document into memory and ask about it, with the default model.
	$(BIN)/python examples/demo.py

check: $(VENV)/.stamp-setup ## Formatting, lint, types, import layers.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.stamp-setup ## Format, and fix what ruff can fix.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One thread per process: the tests' models are so small that more threads only wait for each other.
test: $(VENV)/.stamp-setup ## All tests, in parallel, without a network. PYTEST_ARGS is passed on.
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

bench: $(VENV)/.stamp-setup ## One script per published number.
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

clean: ## Remove .venv and what tools left behind.
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11. Say which to use: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch by itself first, so that nothing else decides which build of it is taken.
$(VENV)/.stamp-demo: $(WHAT_IS_NEEDED) | $(BIN)/python
	$(PIP) "$(TORCH)"
	$(PIP) "$(TORCH)" --editable .
	@touch $@

$(VENV)/.stamp-setup: $(WHAT_IS_NEEDED) | $(BIN)/python
	$(PIP) "$(TORCH)"
	$(PIP) "$(TORCH)" --editable ".[$(EXTRAS)]"
	@touch $@ $(VENV)/.stamp-demo
