# Every target first makes .venv, or renews it after pyproject.toml or constraints.txt changed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp

.PHONY: setup demo test test-all bench lint format schema docs

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tats needs Python 3.11 or newer; name one: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# A small labelled set of movements, through every stage: about three minutes on two cores.
demo: $(STAMP)
	$(BIN)/tats demo

# Two processes, each with whole files: the tensors of tests are too small to be worth a second
# thread. Bytecode is kept even where the machine forbids it: tests start hundreds of processes.
# `make test JOBS=0` is one process, in which a debugger stops.
JOBS ?= 2
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadfile

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: $(STAMP)
	$(PYTEST)

bench: $(STAMP)
	@for file in tests/benchmarks/bench_*.py; do \
		echo "== $$file"; PYTHONPATH=. $(BIN)/python "$$file" || exit 1; done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The schema by which editors check recipes; a test fails where it is out of date.
schema: $(STAMP)
	$(BIN)/tats recipes schema > recipes/schema.json

# The pages that are written from help texts and schema, and the recorded list of options; tests
# fail where they are out of date.
docs: schema
	PYTHONPATH=. $(BIN)/python docs/command_pages.py
	PYTHONPATH=. $(BIN)/python docs/recipe_keys.py
	PYTHONPATH=. $(BIN)/python tests/test_cli.py
