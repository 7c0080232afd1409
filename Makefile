PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: run test test-fast lint bench soak install

run: install
	$(BIN)/bootpig run configs/toy.yaml

test: install
	$(BIN)/python -m pytest -q

test-fast: install
	$(BIN)/python -m pytest -q -m "not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks

soak: install
	BOOTPIG_KILLS=100 $(BIN)/python -m pytest -q tests/flows/test_kill.py

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("bootpig needs Python 3.11 or 3.12: make PYTHON=python3.11") if not (3, 11) <= sys.version_info < (3, 13) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,s3]'
	touch $@
