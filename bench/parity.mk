# Comparisons with the reference libraries, in an environment of their own; and long fuzzing.

PARITY := build/parity/venv

.PHONY: parity fuzz-readers

$(PARITY)/.done: bench/parity-requirements.txt
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

build/parity/models/.done: $(PARITY)/.done bench/parity_reference.py
	$(PARITY)/bin/python bench/parity_reference.py build/parity/models
	touch $@

parity: $(VENV)/.dev build/parity/models/.done
	$(BIN)/python -m bench.parity build/parity/models --out bench/results/parity.json
	$(BIN)/python -m bench.parity build/parity/models --invert

fuzz-readers: $(VENV)/.dev
	for kind in safetensors gguf config; do \
		$(BIN)/python -m bench.fuzz_readers $$kind --seconds 600 || exit 1; \
	done
