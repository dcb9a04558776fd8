# Every target makes .venv and installs what it needs the first time; nothing must be activated.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export MPLBACKEND ?= Agg
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test lint bench docs

demo: .venv/ready
	$(BIN)/python examples/digits.py

test: .venv/ready
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/ready
	$(BIN)/python -m benchmarks.exactness
	$(BIN)/python -m benchmarks.fused
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.sparsity
	$(BIN)/python -m benchmarks.low_memory
	$(BIN)/python -m benchmarks.checkpoint
	$(BIN)/python -m benchmarks.faults

docs: .venv/ready
	$(BIN)/mkdocs build --strict

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
