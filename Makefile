# Two commands are all a new user needs: `make demo` and `make test`.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint types format kernel-checks fuzz-delta bench wheel clean crashes endurance faults fuzz-ota

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

crashes: $(VENV)/.dev
	for strategy in in_place slot; do \
		$(BIN)/python -m tests.ota.crashes --strategy $$strategy --work /dev/shm \
			--out bench/results/crashes-$$strategy.json || exit 1; \
	done
	$(BIN)/python -m tests.ota.crashes_way_back --work /dev/shm \
		--out bench/results/crashes-way_back.json

endurance: $(VENV)/.dev
	$(BIN)/python -m tests.e2e.endurance swap --out bench/results/endurance-swap.json
	$(BIN)/python -m tests.e2e.endurance kills --out bench/results/endurance-kills.json

# Every named fault, every call of the disk refused in turn, and 120 cuts of real connections.
faults: $(VENV)/.dev
	$(BIN)/python -m tests.ota.fault_table --out bench/results/faults-$$(date -u +%F).json
	$(BIN)/python -m tests.ota.cuts --out bench/results/transport-cuts-$$(date -u +%F).json

# Ten minutes of CPU each over metadata and messages from outside; the suite runs seconds of it.
fuzz-ota: $(VENV)/.dev
	for target in metadata wire; do \
		$(BIN)/python -m tests.ota.fuzz $$target --out bench/results/fuzz-$$target.json || exit 1; \
	done

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

# Broken containers against the decoder, ten minutes, its C built with the sanitisers.
FUZZ_SECONDS ?= 600
fuzz-delta: $(VENV)/.dev
	rm -rf build/fuzz && mkdir -p build/fuzz/cext && cp -r ota tests build/fuzz/
	$(BIN)/cython -3 cext/delta/_flips.pyx -o build/fuzz/cext/_flips.c
	$(CC) -std=c11 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -shared -fPIC \
		-Icext/delta $$($(BIN)/python -c "import sysconfig as s; print('-I' + s.get_path('include'))") \
		build/fuzz/cext/_flips.c cext/delta/flips.c -o build/fuzz/ota/$$(basename ota/_flips*.so)
	cd build/fuzz && LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
		PYTHONPATH=. $(abspath $(BIN))/python tests/ota/fuzz_delta.py --sanitised \
		--seconds $(FUZZ_SECONDS) --out $(abspath bench/results/fuzz-delta.json)

include cext/check.mk
include bench/peers.mk
include bench/parity.mk
