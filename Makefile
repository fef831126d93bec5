# Every target sets up what it needs, so that each works in a fresh clone.
PYTHON ?= python3
# Machines with a GPU: make setup TORCH="torch>=2.6" CONSTRAINTS=
TORCH ?= torch==2.13.0
CONSTRAINTS ?= -c constraints-cpu.txt

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS)

.PHONY: setup demo check test docs notebooks bench format clean

setup: $(VENV)/.dev

$(VENV)/.user: pyproject.toml constraints-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) -e '.[langchain]'
	touch $@

$(VENV)/.dev: $(VENV)/.user
	$(PIP) -e '.[langchain,train,dev]'
	touch $@

demo: $(VENV)/.user
	$(BIN)/python examples/demo.py

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m mplus.training.talk check

# Tests marked default_model run on real weights, where they can be had. Two processes of one thread each: a small model
# gains little from a second.
test: $(VENV)/.dev
	-$(BIN)/mplus pull smol-135m
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Runs them from top to bottom and stores what they print; a cell that raises, or asserts what is not so, fails.
notebooks: $(VENV)/.dev
	$(BIN)/mplus pull smol-135m
	OMP_NUM_THREADS=1 $(BIN)/python examples/notebooks/run.py

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/core.py

$(VENV)/.docs: $(VENV)/.user
	$(PIP) -e '.[docs]'
	touch $@

# build/site, self-contained. The variable silences an advertisement of the theme's.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV)
