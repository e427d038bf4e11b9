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

build/parity/adapters/.done: $(PARITY)/.done bench/adapter_reference.py bench/parity_reference.py
	$(PARITY)/bin/python bench/adapter_reference.py build/parity/adapters
	touch $@

parity: $(VENV)/.dev build/parity/models/.done build/parity/adapters/.done $(PEERS)/.llama $(PEERS)/.ik
	$(BIN)/python -m bench.parity build/parity/models --out bench/results/parity.json
	$(BIN)/python -m bench.parity build/parity/models --invert
	$(BIN)/python -m bench.adapter_parity build/parity/adapters --out bench/results/adapters.json
	$(BIN)/python -m bench.parity_tokenizers --hf $(PARITY)/bin/python --llama $(PEERS)/bin/python \
	    --out bench/results/parity-tokenizers.json
	$(BIN)/python -m bench.export_families --hf $(PARITY)/bin/python --llama $(PEERS)/bin/python \
	    --out bench/results/export-families.json

fuzz-readers: $(VENV)/.dev
	for kind in safetensors gguf config adapter directory; do \
		$(BIN)/python -m bench.fuzz_readers $$kind --out bench/results/fuzz-$$kind.json || exit 1; \
	done
	for kind in spm gguf json llama2c; do \
		$(BIN)/python -m bench.fuzz_tokenizers $$kind --out bench/results/fuzz-tokenizer-$$kind.json || exit 1; \
	done
