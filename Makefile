# Every chore, the same on a laptop and in CI.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py native/build.py $(wildcard native/cpu/*)
# Where torch is fetched from; empty: where pip looks. PyTorch keeps an index of builds for CPUs: those that pip finds by
# itself bring gigabytes of CUDA.
TORCH_INDEX ?=
TORCH = $(shell sed -n 's/.*"\(torch>=[^"]*\)".*/\1/p' pyproject.toml)
# "compat" puts a plain path into site-packages, which type checkers follow.
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat

.PHONY: up venv check test test-slow clients bench gpu docs clean

up: $(VENV)/.installed  ## boot with the built-in model and serve until Ctrl-C; options: make up ARGS="--device cpu"
	@exec $(BIN)/llmos up $(ARGS)

venv: $(VENV)/.installed-dev  ## set up .venv with everything for development

check: $(VENV)/.installed-dev  ## lint, format, types, import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layering.py

test: $(VENV)/.installed-dev  ## the quick suite
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not gpu" $(ARGS)

test-slow: $(VENV)/.installed-dev  ## the long one
	$(BIN)/pytest -n 2 --dist loadfile -m "slow and not gpu" $(ARGS)

# These clients may want an older openai for Python than the newest: its tests run once more with that.
CLIENT_TESTS := tests/gateway/test_gateway_clients.py tests/gateway/test_gateway_openai_client.py \
	tests/gateway/test_gateway_node.py tests/gateway/test_gateway_node_clients.py tests/system/test_node.py
LIST_CLIENTS := import tomllib; \
	project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*project["optional-dependencies"]["clients"], sep="\n")
clients: $(VENV)/.installed-dev  ## install and test LangChain, LiteLLM, LlamaIndex, and openai, the AI SDK and Continue for Node
	@npm ci --prefix tests/gateway/node --ignore-scripts --no-audit --no-fund --silent || \
		echo "no npm, or no package: the tests of clients for Node are skipped" >&2
	@$(BIN)/python -c '$(LIST_CLIENTS)' | $(BIN)/pip install --quiet --disable-pip-version-check -r /dev/stdin || \
		echo "not installed: the tests of [clients] are skipped" >&2
	$(BIN)/pytest $(CLIENT_TESTS) $(ARGS)

bench: $(VENV)/.installed-dev  ## measure the kernel's cost
	$(BIN)/llmos bench kernel $(ARGS)

# The machine may have torch and no internet: nothing is installed. REHEARSE=1: tiny, without a GPU, no file.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:  ## check and measure a GPU, in 8 minutes: writes docs/benchmarks/gpu.jsonl as it goes, prints the table last
ifdef REHEARSE
	$(GPU_PYTHON) setup.py -q build_ext --inplace
	mkdir -p build
	$(CC) -shared -fPIC -O1 -Inative/cuda tests/fake_cuda.c -o build/libfakecuda.so -lpthread
	LLMOS_LIBCUDA=build/libfakecuda.so $(GPU_PYTHON) -m llmos.cli bench gpu --rehearse $(ARGS)
else
	began=$$(date +%s) && $(GPU_PYTHON) setup.py -q build_ext --inplace && \
		$(GPU_PYTHON) -m llmos.cli bench gpu --json docs/benchmarks/gpu.jsonl \
			--seconds $$((470 - $$(date +%s) + began)) $(ARGS)
endif

docs: $(VENV)/.installed-dev  ## generate what is generated
	$(BIN)/python -m syscalls.document > docs/abi.md
	$(BIN)/python -m shell.llmsh.write_manual > docs/llmsh.md
	$(BIN)/python -m llmos.bench.document > docs/benchmarks.md

clean:
	rm -rf $(VENV) build *.egg-info native/_cpu.*

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "llmos needs Python 3.11 or newer; set PYTHON=python3.12, say" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: $(VENV)/bin/pip
ifneq ($(TORCH_INDEX),)
	$(BIN)/pip install --quiet --disable-pip-version-check --index-url $(TORCH_INDEX) --no-deps '$(TORCH)'
else ifeq ($(wildcard /dev/nvidiactl),)
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' || \
		$(BIN)/pip install --no-index --no-deps --dry-run '$(TORCH)' >/dev/null 2>&1 || \
		echo "no GPU here, and pip may bring gigabytes of CUDA with torch: TORCH_INDEX=URL of PyTorch's builds for CPUs avoids it" >&2
endif
	@touch $@

$(VENV)/.installed: $(VENV)/bin/pip $(SOURCES) | $(VENV)/.torch
	@test -e $@ -o -e $@-dev || echo "installing llmos into $(VENV), a minute or two …"
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/pip $(SOURCES) | $(VENV)/.torch
	@test -e $@ || echo "installing llmos and its tests into $(VENV), a minute or two …"
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed
