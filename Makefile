# One command each: demo, test, lint, bench. Everything is made in .venv and build; nothing outside the checkout is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := $(wildcard examples/phi3-nano/* csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.c cmake/* third_party/*.json) CMakeLists.txt pyproject.toml

# What pyproject.toml requires for a build, and the CMake that pip would bring: all builds here use the same.
BUILD_REQUIREMENTS := "scikit-build-core>=1.1,<2" "pybind11>=3.1,<4" "cmake>=3.25" "ninja>=1.10"

# git's own patterns: a star stands for folders, too.
FORMATTED = $$(git ls-files 'csrc/*.[ch]' 'csrc/*.cpp' 'fuzz/*.cpp' 'tests/*.cpp' 'examples/*.cpp')

.PHONY: demo test test-slow check-kernels tsan lint format bench fuzz fuzz-parser fuzz-python stock reference nano clean
.PHONY: sdist wheel installed test-installed test-installed-slow plugins test-plugins check-install

QUICK := not slow and not plugins
SLOW := slow and not plugins

demo: $(INSTALLED)
	$(BIN)/phiggml demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "$(QUICK)" --numprocesses 2

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "$(SLOW)" --numprocesses 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)
	$(BIN)/mypy
	$(BIN)/python tools/check_stubs.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

# What a stranger gets. The source distribution carries the third-party tree: a wheel is made from it without an index.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
SDIST := dist/phiggml-$(VERSION).tar.gz
WHEELS := build/wheels
PIP_WHEEL := PIP_NO_INDEX=1 $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(WHEELS)

sdist: $(INSTALLED)
	rm -f dist/phiggml-*.tar.gz
	$(BIN)/python -m build --sdist --outdir dist .

# The base wheel with all CPU variants, repaired, in dist.
wheel: sdist
	tools/build_wheel.sh $(SDIST)

# A wheel with the one CPU module that fits here, in a new environment: the tests run against what was installed.
installed: sdist
	rm -rf build/sdist build/installed $(WHEELS)/phiggml-*
	mkdir -p build/sdist
	tar -xzf $(SDIST) -C build/sdist
	$(PIP_WHEEL) build/sdist/phiggml-$(VERSION)
	$(call environment,build/installed,)

# A new environment with the wheel, what the tests need, and further wheels.
define environment
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check "$$(ls $(WHEELS)/phiggml-$(VERSION)-*.whl)[test]" $(2)
	$(1)/bin/python -c "import pathlib, sys, phiggml; assert pathlib.Path(phiggml.__file__).is_relative_to(sys.prefix)"
endef

test-installed:
	build/installed/bin/python -m pytest -m "$(QUICK)" --numprocesses 2

test-installed-slow:
	build/installed/bin/python -m pytest -m "$(SLOW)" --numprocesses 2

# The two backends that run without a GPU: Vulkan on Mesa's lavapipe, and RPC on the loopback interface.
plugins: $(INSTALLED)
	rm -rf $(WHEELS)/phiggml_*
	$(PIP_WHEEL) backends/rpc
	$(PIP_WHEEL) backends/vulkan

test-plugins:
	rm -rf build/plugins
	$(call environment,build/plugins,$(WHEELS)/phiggml_*.whl)
	build/plugins/bin/python -m pytest -m plugins tests/test_offload.py tests/test_doctor.py
	PHIGGML_TEST_DEVICE=RPC build/plugins/bin/python -m pytest -m plugins tests/test_device.py
	PHIGGML_TEST_DEVICE=RPC build/plugins/bin/python -m pytest -m plugins tests/test_offload_placement.py
	GGML_VK_VISIBLE_DEVICES=0 PHIGGML_TEST_DEVICE=Vulkan0 \
		build/plugins/bin/python -m pytest -m plugins tests/test_offload_placement.py

# What a user without a compiler and without an index does with those wheels.
check-install:
	PYTHON=$(PYTHON) WHEELS=$(WHEELS) tools/check_install.sh vulkan

# Quick figures of this machine; benchmarks/README.md says what each script measures.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/bench_import.py
	$(BIN)/python benchmarks/bench_arrays.py
	$(BIN)/python benchmarks/bench_gguf.py
	$(BIN)/python benchmarks/bench_heldout.py

# The vectorised kernels against ggml's own functions, with the address and undefined-behaviour sanitizers.
KERNEL_ROUNDS ?= 20
check-kernels: $(INSTALLED)
	libraries=$$($(BIN)/python -c "from phiggml.runtime import library_folder; print(library_folder())"); \
	$(BIN)/cmake -S tests/kernels -B build/kernels -DPHIGGML_LIBRARIES=$$libraries
	$(BIN)/cmake --build build/kernels --parallel 2
	build/kernels/check_kernels --rounds $(KERNEL_ROUNDS)

# What threads share, with the thread sanitizer: first without Python, whose lock puts much in order, then the tests in an
# environment of their own. All that is compiled is compiled for it; Python is not, but the sanitizer sees its locks. It
# cannot follow a child of a fork that starts threads.
TSAN := build/tsan
TSAN_TESTS := tests/test_threading.py tests/test_threading_process.py tests/test_session.py tests/test_adapter.py \
	tests/test_process.py --deselect tests/test_process.py::test_a_session_does_not_pass_a_fork
# Older sanitizers do not know the addresses that newer kernels choose.
WITHOUT_ASLR = $$(setarch -R true 2>/dev/null && echo setarch -R)
TSAN_OPTIONS := suppressions=$(abspath tests/tsan.supp) ignore_noninstrumented_modules=1 die_after_fork=0 report_thread_leaks=0

tsan: $(INSTALLED)
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/cmake -G Ninja -S . -B $(TSAN)/build -DCMAKE_BUILD_TYPE=Release \
		-DCMAKE_C_FLAGS=-fsanitize=thread -DCMAKE_C_FLAGS_RELEASE="-O1 -g1 -DNDEBUG" \
		-DCMAKE_CXX_FLAGS=-fsanitize=thread -DCMAKE_CXX_FLAGS_RELEASE="-O1 -g1 -DNDEBUG" \
		-DPython_EXECUTABLE=$(abspath $(BIN))/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build $(TSAN)/build --target _core --parallel 2
	$(CXX) -std=c++17 -O1 -g1 -fsanitize=thread -Wall -Wextra -Wpedantic -Werror -Icsrc tests/threading.cpp \
		$$(find $(TSAN)/build/CMakeFiles -name '*.cpp.o' ! -name 'bind_*' ! -name 'module.cpp.o') -L$(TSAN)/build/bin \
		-Wl,-rpath,$(abspath $(TSAN))/build/bin -lphiggml-llama -lphiggml-ggml -lphiggml-ggml-base -o $(TSAN)/threading
	$(BIN)/python -m phiggml convert examples/phi3-nano -o $(TSAN)/nano.gguf --overwrite > $(TSAN)/converted
	TSAN_OPTIONS="$(TSAN_OPTIONS)" $(WITHOUT_ASLR) $(TSAN)/threading $(TSAN)/build/bin $(TSAN)/nano.gguf
	rm -rf $(TSAN)/environment $(TSAN)/reports
	mkdir -p $(TSAN)/reports
	$(BIN)/python -m venv --without-pip $(TSAN)/environment
	site=$$($(TSAN)/environment/bin/python -c "import site; print(site.getsitepackages()[0])"); \
	cp -r python/phiggml $$site; \
	$(BIN)/cmake --install $(TSAN)/build --component phiggml --prefix $$site > $(TSAN)/installed; \
	$(BIN)/python -c "import sys; print(*(p for p in sys.path if p.endswith('-packages')), sep='\n')" > $$site/others.pth
	TSAN_OPTIONS="$(TSAN_OPTIONS) log_path=$(abspath $(TSAN))/reports/report" \
	LD_PRELOAD=$$($(CXX) -print-file-name=libtsan.so) $(WITHOUT_ASLR) \
	$(TSAN)/environment/bin/python -m pytest -p no:cacheprovider $(TSAN_TESTS) || { cat $(TSAN)/reports/*; exit 1; }
	! cat $(TSAN)/reports/* 2>/dev/null

# Looks for bytes that break the GGUF reader; fuzz/README.md says how. What it finds is kept in build/fuzz/crashes.
# fuzz-python writes files, durably: to memory where there is /dev/shm, which spares the disk that.
FUZZ_SECONDS ?= 600
CLANGXX ?= clang++
FUZZ := build/fuzz
FUZZ_SOURCES := fuzz/fuzz_gguf.cpp $(addprefix csrc/,$(addsuffix .cpp,\
	gguf gguf_parser gguf_text byte_source byte_window quant_type))

fuzz: fuzz-parser fuzz-python

fuzz-parser: $(FUZZ)/fuzz_gguf $(FUZZ)/seeds/.made
	mkdir -p $(FUZZ)/crashes $(FUZZ)/corpus/parser
	$(FUZZ)/fuzz_gguf -dict=fuzz/gguf.dict -max_total_time=$(FUZZ_SECONDS) -max_len=16384 -timeout=2 \
		-malloc_limit_mb=100 -use_value_profile=1 -print_final_stats=1 -artifact_prefix=$(FUZZ)/crashes/ \
		$(FUZZ)/corpus/parser $(FUZZ)/seeds

fuzz-python: $(INSTALLED) $(FUZZ)/.atheris $(FUZZ)/seeds/.made
	mkdir -p $(FUZZ)/crashes $(FUZZ)/corpus/python
	folder=$$(mktemp -d -p /dev/shm || mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	TMPDIR="$$folder" PYTHONPATH=tests $(BIN)/python fuzz/fuzz_python.py -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=20 \
		-print_final_stats=1 -artifact_prefix=$(FUZZ)/crashes/ $(FUZZ)/corpus/python $(FUZZ)/seeds

$(FUZZ)/fuzz_gguf: $(FUZZ_SOURCES) $(wildcard csrc/*.h) | $(INSTALLED)
	mkdir -p $(FUZZ)
	libraries=$$($(BIN)/python -c "from phiggml.runtime import library_folder; print(library_folder())"); \
	$(CLANGXX) -std=c++17 -g -O1 -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
		-Icsrc -isystem third_party/llama.cpp/ggml/include $(FUZZ_SOURCES) \
		-L$$libraries -Wl,-rpath,$$libraries -lphiggml-ggml-base -pthread -o $@

$(FUZZ)/seeds/.made: fuzz/make_corpus.py $(wildcard tests/hostile_*.py) tests/gguf_bytes.py | $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python fuzz/make_corpus.py $(FUZZ)/seeds
	touch $@

$(FUZZ)/.atheris: fuzz/requirements.txt | $(INSTALLED)
	mkdir -p $(FUZZ)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(BUILD_REQUIREMENTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[test,lint]"
	touch $@

clean:
	rm -rf $(VENV) build dist
