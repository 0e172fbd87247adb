#!/usr/bin/env bash
# Builds upstream's own tools, untouched, in build/stock: what every "stock" figure is measured with. The whole
# verified archive is unpacked; Release defaults (native, OpenMP), but for the two flags without which GCC 12 makes
# every quantized product fault on a CPU with AMX (docs/decisions.md).
#   tools/build_stock.sh             tools only
#   tools/build_stock.sh converter   also convert_hf_to_gguf.py's requirements, in build/stock/venv (large: torch)
set -euo pipefail
cd "$(dirname "$0")/.."

tree=build/stock/llama.cpp
out=build/stock/build
python=${PYTHON:-python3}

if [ ! -f "$tree/CMakeLists.txt" ]; then
    rm -rf "$tree.new"
    "$python" third_party/fetch.py --all "$tree.new"
    mv "$tree.new" "$tree"
fi
if ! command -v cmake >/dev/null || ! command -v ninja >/dev/null; then
    [ -x build/stock/tools/bin/cmake ] || { "$python" -m venv build/stock/tools && build/stock/tools/bin/pip install -q cmake ninja; }
    PATH="$PWD/build/stock/tools/bin:$PATH"
fi

# Upstream's version comes from git; it must not be given that of this repository.
export GIT_CEILING_DIRECTORIES=$PWD/build/stock
# The flags reach the one file through a compiler launcher, since upstream's CMakeLists stays as it is.
launcher=$PWD/build/stock/launcher
cat >"$launcher" <<'SCRIPT'
#!/bin/sh
case "$*" in
    *ggml-cpu/amx/mmq.cpp*) exec "$@" -fno-tree-dse -fno-dse ;;
    *) exec "$@" ;;
esac
SCRIPT
chmod +x "$launcher"

cmake -S "$tree" -B "$out" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_CCACHE=OFF -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_NUMBER=11549 -DLLAMA_BUILD_COMMIT=b11549 -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_USE_PREBUILT_UI=OFF -DCMAKE_C_COMPILER_LAUNCHER="$launcher" -DCMAKE_CXX_COMPILER_LAUNCHER="$launcher" >"$PWD/build/stock/configure.log"
cmake --build "$out" --target llama-bench llama-quantize llama-imatrix llama-perplexity llama-server llama-cli

if [ "${1:-}" = converter ]; then
    "$python" -m venv build/stock/venv
    build/stock/venv/bin/pip install -q torch==2.13.0 transformers sentencepiece numpy protobuf "$tree/gguf-py"
fi
ls -l "$out"/bin/llama-bench "$out"/bin/llama-quantize "$out"/bin/llama-imatrix "$out"/bin/llama-perplexity "$out"/bin/llama-server
