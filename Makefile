# Two commands do everything, set-up included:  make demo   and   make test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := pyproject.toml constraints.txt src/vitquant/version.py
CPP := $(shell find $(addprefix runtime/,src tests examples include) -name '*.[ch]' -o -name '*.[ch]pp')
RUNTIME := $(shell find runtime -name '*.cpp' -o -name '*.hpp' -o -name 'CMakeLists.txt' -o -path 'runtime/python/*.py')

.PHONY: demo fast test test-slow test-native test-lowest check bench clean

demo: $(VENV)/installed
	$(BIN)/vitquant demo --out out

# Lint, types, and the tests that are quick and need neither timm nor the native executor, which they cannot import.
fast: check
	$(BIN)/python -m pytest --fast --numprocesses 2

test: check $(VENV)/installed-runtime
	$(BIN)/python -m pytest
	cd runtime && ../$(BIN)/python -m pytest
	$(BIN)/python tests/test_quant_attn.py
	$(BIN)/python tests/test_embed_to_attn.py

# Tens of thousands of spoiled files of every kind that is read, each in bounded time and memory; an hour or so.
test-slow: $(VENV)/installed-runtime
	$(BIN)/python -m pytest -m slow
	cd runtime && ../$(BIN)/python -m pytest -m slow

# The fast tests with the lowest versions that pyproject.toml promises, and without timm and the native executor.
test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest --fast --numprocesses 2

# The native executor with sanitizers, with hostile files, and for Arm where its compiler and emulator are installed.
test-native: $(VENV)/installed-native
	runtime/tests/native/run.sh $(BIN)

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

# Each benchmark is a command of its own; see docs/results.md. WEIGHTS and PHOTOS name a DINOv2 ViT-S/14 checkpoint in
# timm's naming and a folder of photographs. OpenMP's threads must not spin for long: docs/results.md tells why.
bench: export GOMP_SPINCOUNT = 10000
bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.accuracy --weights $(WEIGHTS) --photos $(PHOTOS)
	$(BIN)/python -m benchmarks.calibration --weights $(WEIGHTS) --photos $(PHOTOS)
	$(BIN)/python -m benchmarks.memory --weights $(WEIGHTS) --photos $(PHOTOS)
	$(BIN)/python -m benchmarks.speed_beside_peers --weights $(WEIGHTS) --photos $(PHOTOS)
	$(BIN)/python -m benchmarks.profile_cost --weights $(WEIGHTS) --photos $(PHOTOS)
	$(BIN)/python -m benchmarks.integer --weights $(WEIGHTS) --photos $(PHOTOS)
	$(BIN)/python -m benchmarks.exports --weights $(WEIGHTS) --photos $(PHOTOS)
	$(BIN)/python -m benchmarks.native --weights $(WEIGHTS) --photos $(PHOTOS)
	$(BIN)/python -m benchmarks.native_inside --weights $(WEIGHTS) --photos $(PHOTOS)
	$(BIN)/python -m benchmarks.repair --weights $(WEIGHTS) --photos $(PHOTOS)
	$(BIN)/python -m benchmarks.weight_groups --weights $(WEIGHTS) --photos $(PHOTOS)
	$(BIN)/python -m benchmarks.startup

clean:
	rm -rf $(VENV) $(LOWEST) out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

# timm and torchvision come without their dependencies: the tests need no more of them than their models.
$(VENV)/installed-test: $(VENV)/installed
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps timm torchvision
	$(PIP) huggingface_hub
	touch $@

$(LOWEST)/installed: $(SOURCES) constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt --editable '.[test]'
	touch $@

# The native executor is compiled here, which takes a C++17 compiler and about a minute.
$(VENV)/installed-runtime: $(VENV)/installed-test $(RUNTIME)
	$(PIP) ./runtime
	touch $@

$(VENV)/installed-native: $(VENV)/installed-runtime
	$(PIP) cmake ninja
	touch $@

$(VENV)/installed-bench: $(VENV)/installed-runtime
	$(PIP) --editable '.[bench]'
	touch $@
