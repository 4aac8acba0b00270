# `make help` lists the targets. Each one makes .venv first where it is missing.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-all lint types

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/installed ## train the default translation model, score it, show what it does
	$(BIN)/attention-zoo train

test: .venv/installed ## run the tests, without the slow and the exhaustive ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow and not exhaustive'

test-all: .venv/installed ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/installed ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed ## check types
	$(BIN)/mypy

# Made anew when what is to be installed changes.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "attention-zoo needs Python 3.11 or newer, got $$($(PYTHON) --version). Remedy: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
