# The engines that ours is measured beside, compiled for this CPU, in a virtual environment of their own.
#
#   make peers       llama.cpp and ik_llama.cpp: ten minutes on two cores, once
#
# llama.cpp comes as its Python package, built from source.  The source package of ik_llama.cpp lacks
# a file that only its command line programs need, so its library is built alone and put in the place
# of the one in the ready-made package, which is compiled for AVX2.

PEERS         := .venv-peers
LLAMA_VERSION := 0.3.36
IK_VERSION    := 0.1.5
IK            := $(PEERS)/ik
IK_CMAKE      := -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON \
                 -DGGML_IQK_FA_ALL_QUANTS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
                 -DLLAMA_BUILD_SERVER=OFF -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
                 -DCMAKE_INSTALL_RPATH='$$ORIGIN'

.PHONY: peers

peers: $(PEERS)/.llama $(PEERS)/.ik

$(PEERS)/bin/python:
	$(PYTHON) -m venv $(PEERS)

$(PEERS)/.llama: $(PEERS)/bin/python
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(PEERS)/bin/pip install --disable-pip-version-check \
	    --no-binary llama-cpp-python llama-cpp-python==$(LLAMA_VERSION)
	touch $@

$(PEERS)/.ik: $(PEERS)/bin/python
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check \
	    cmake ninja ik-llama-cpp-python==$(IK_VERSION)
	$(PEERS)/bin/pip download --quiet --disable-pip-version-check --no-deps \
	    --no-binary ik-llama-cpp-python --dest $(IK) ik-llama-cpp-python==$(IK_VERSION)
	tar -C $(IK) --strip-components=1 -xzf $(IK)/ik_llama_cpp_python-$(IK_VERSION).tar.gz
	PATH="$(CURDIR)/$(PEERS)/bin:$$PATH" cmake -S $(IK)/vendor/ik_llama.cpp -B $(IK)/build $(IK_CMAKE)
	PATH="$(CURDIR)/$(PEERS)/bin:$$PATH" cmake --build $(IK)/build --target llama
	cp $(IK)/build/src/libllama.so $(IK)/build/ggml/src/libggml.so \
	    $(PEERS)/lib/python3.*/site-packages/ik_llama_cpp/lib/
	touch $@
