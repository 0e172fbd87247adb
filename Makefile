# One command each: demo, test, lint, bench. Everything is made in .venv; nothing outside the checkout is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := $(wildcard examples/phi3-nano/* csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h cmake/* third_party/*.json) CMakeLists.txt pyproject.toml

.PHONY: demo test test-slow lint format bench stock reference nano clean

demo: $(INSTALLED)
	$(BIN)/phiggml demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h')
	$(BIN)/mypy
	$(BIN)/python tools/check_stubs.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h')

# Quick figures of this machine; benchmarks/README.md says what each script measures.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/bench_import.py
	$(BIN)/python benchmarks/bench_quant.py
	$(BIN)/python benchmarks/bench_heldout.py

# Upstream's own tools, untouched, in build/stock: what "stock" means in every comparison.
stock:
	tools/build_stock.sh

# The demo model and the tests' reference data, made anew, with torch in an environment of its own.
nano: build/tools/bin/python
	build/tools/bin/python tools/train_nano.py examples/phi3-nano
reference: build/tools/bin/python
	build/tools/bin/python tools/make_reference.py
build/tools/bin/python:
	$(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip install --quiet -r tools/requirements.txt

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(VENV)/bin/python $(SOURCES)
	@echo "Building phiggml; the first time llama.cpp is compiled too, which takes some minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,lint]"
	touch $@

clean:
	rm -rf $(VENV) build dist
