# Two commands are all a new user needs: `make demo` and `make test`.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint types format kernel-checks bench wheel clean

demo: $(VENV)/.demo
	$(BIN)/edgeagent demo --out build/demo.json

test: $(VENV)/.dev
	$(BIN)/python tests/everything.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(BIN):$$PATH" cython-lint --max-line-length 100 cext/_core.pyx cext/*.pxi cext/engine.pxd \
		cext/delta/_flips.pyx

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench
	$(BIN)/python bench/run.py

wheel: $(VENV)/.dev
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf build dist $(VENV) $(PEERS) edgeagent/_core*.so ota/_flips*.so cext/_core.c *.egg-info

SOURCES := pyproject.toml setup.py $(wildcard cext/*.py[xd] cext/*.pxi cext/src/* cext/include/* \
	cext/delta/*)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[demo]'
	touch $@

$(VENV)/.dev: $(BIN)/python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.demo

$(VENV)/.bench: $(BIN)/python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@

include cext/check.mk
include bench/peers.mk
include bench/parity.mk
