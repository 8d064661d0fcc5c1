# Outrider: draft on the device, decide in the cloud. `make` lists what there is.

PYTHON ?= python3
VENV ?= .venv
# On Linux PyPI's torch brings some gigabytes of CUDA. For the CPU build set, before the first `make`:
#   export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

# Two OpenMP pools that spin on one machine starve each other: a step of 20 ms then takes most of a second.
export OMP_WAIT_POLICY = PASSIVE
export PIP_CONSTRAINT = constraints.txt
export PIP_BUILD_CONSTRAINT = constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# llama.cpp, for `make test` only. Without -U__AMX_INT8__, gcc 12 optimises away the stores that fill ggml's tile
# configuration, and every process that loads the library on an Intel CPU with AMX dies of SIGILL (llama.cpp, pull request 26954).
export CFLAGS += -U__AMX_INT8__
export CXXFLAGS += -U__AMX_INT8__
export CMAKE_ARGS ?= -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF \
	-DLLAMA_BUILD_TOOLS=OFF -DLLAMA_CURL=OFF
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell getconf _NPROCESSORS_ONLN)
# pip caches a wheel that it built by name and version alone. Ours is kept by everything that decides its machine code.
LLAMA_BUILD := $(shell { echo '$(CMAKE_ARGS) $(CFLAGS) $(CXXFLAGS)'; cat constraints.txt; $(PYTHON) --version; $(or $(CC),cc) --version; \
	grep -m2 -E 'model name|flags|Features' /proc/cpuinfo || sysctl -n machdep.cpu.brand_string; } 2>&1 | cksum | cut -d' ' -f1)
LLAMA_WHEELS = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/outrider/llama.cpp-builds/$(LLAMA_BUILD)

BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet
PROTO = outrider/v1/verifier.proto
PROTOC = PATH="$(CURDIR)/$(BIN):$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto
PINNED = pyproject.toml constraints.txt

.DEFAULT_GOAL = help
.DELETE_ON_ERROR:
.PHONY: help demo test check format proto breaking clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-15s %s\n", $$1, $$2 }'

demo: $(VENV)/.demo $(if $(MODEL),$(VENV)/.export) ## Race three ways of decoding over an emulated link; MODEL=smollm2: with a real model; options in DEMO_ARGS
	@$(BIN)/python -m netlab.demo $(if $(MODEL),--model $(MODEL)) $(DEMO_ARGS)

# Tests of one file share models, so they stay together. More processes than four would need much memory.
TEST_PROCESSES = --numprocesses logical --maxprocesses 4 --dist loadfile
test: $(VENV)/.test ## Run every test; options in TEST_ARGS. The first time it compiles llama.cpp, some minutes
	$(BIN)/python -m pytest $(TEST_PROCESSES) $(TEST_ARGS)

check: $(VENV)/.check ## Formatting, lint, types, contract, generated code, dead code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/vulture
	$(BIN)/buf lint
	@generated=$$(mktemp -d) && trap 'rm -rf "$$generated"' EXIT \
		&& $(MAKE) --no-print-directory --silent proto STUBS="$$generated" \
		&& for file in "$$generated"/outrider/v1/*; do \
			diff -u "proto/outrider/v1/$$(basename "$$file")" "$$file" \
				|| { echo "The generated code is stale: run 'make proto'."; exit 1; }; \
		done && echo "The generated code is current."

format: $(VENV)/.check ## Format the code and fix what lint can fix
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

STUBS = proto
proto: $(VENV)/.check ## Generate the Python code of the contract
	$(PROTOC) --python_out=$(STUBS) --pyi_out=$(STUBS) --grpc_python_out=$(STUBS) --mypy_grpc_out=quiet:$(STUBS) $(PROTO)

breaking: $(VENV)/.check ## Compare the contract with branch AGAINST (main): would old devices still be understood?
	$(BIN)/buf breaking --against '.git#branch=$(or $(AGAINST),main)'

clean: ## Remove the environment and everything generated, except what is checked in
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ----------------------------------------------------------------------------------------------------------------------
# One environment, grown by sets of packages. A stamp says that a set is there.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Outrider needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
			"Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Making the environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Python could not make an environment. On Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/.demo: $(PINNED) | $(BIN)/python
	@echo "Installing verifier and edge client into $(VENV)"
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.export: $(VENV)/.demo
	@echo "Installing what makes a drafter of a model into $(VENV)"
	@$(INSTALL) -e '.[demo,export]'
	@touch $@

$(VENV)/.check: $(PINNED) | $(BIN)/python
	@echo "Installing the tools for development into $(VENV)"
	@$(INSTALL) -e '.[demo,train,dev]'
	@touch $@

# Built apart, for pip's cache would hand out a wheel that was built with other flags. --force-reinstall for the same reason.
$(VENV)/.llama-$(LLAMA_BUILD): $(VENV)/.check
	@ls "$(LLAMA_WHEELS)"/llama_cpp_python-*.whl >/dev/null 2>&1 || { \
		echo "Compiling llama.cpp for its drafter's tests: about 5 minutes on 2 cores, the first time only"; \
		partial=$$(mktemp -d) && trap 'rm -rf "$$partial"' EXIT \
			&& $(BIN)/python -m pip wheel --quiet --no-cache-dir --no-deps --wheel-dir "$$partial" llama-cpp-python \
			&& mkdir -p "$(LLAMA_WHEELS)" && mv "$$partial"/*.whl "$(LLAMA_WHEELS)"; }
	@$(INSTALL) --force-reinstall --no-deps "$(LLAMA_WHEELS)"/llama_cpp_python-*.whl
	@rm -f $(VENV)/.llama-* && touch $@ # another build that was here before is not any more

$(VENV)/.test: $(VENV)/.llama-$(LLAMA_BUILD)
	@$(INSTALL) -e '.[demo,train,dev,llama]'
	@touch $@
