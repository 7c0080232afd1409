# the newest Python that works: a pyenv shim may exist for a missing version, and Debian's python3 may lack ensurepip
PYTHON ?= $(shell for python in python3.14 python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && command -v $$python && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
EXTRAS := dev,s3,ray,dask,heif,8bit
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: run demo-server test test-fast lint bench soak science install install-dev

run: install
	$(BIN)/bootpig run configs/toy.yaml

demo-server: install
	$(BIN)/python -m bootpig.flows.demo_server

test: install-dev
	$(PYTEST)

test-fast: install-dev
	$(PYTEST) -m "not slow"

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install-dev
	$(BIN)/python -m benchmarks

science: install
	$(BIN)/python -m science

soak: install-dev
	BOOTPIG_FUZZ_SECONDS=60 $(BIN)/python -m pytest -q tests/outside/test_fuzz.py tests/outside/test_picture_fuzz.py
	BOOTPIG_KILLS=100 $(BIN)/python -m pytest -q tests/flows/test_kill.py

install: .venv/installed

install-dev: .venv/installed-dev

.venv/installed: pyproject.toml constraints.txt
	@$(or $(PYTHON),python3) -c 'import sys; sys.exit("bootpig needs Python 3.11 to 3.14: make PYTHON=python3.11") if not (3, 11) <= sys.version_info < (3, 15) else 0'
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e '.[$(EXTRAS)]'
	touch $@
