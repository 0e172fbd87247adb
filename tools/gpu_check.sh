#!/usr/bin/env bash
# What phiggml does on a machine with a GPU: builds it and its plugin, runs the device tests, measures, prints a table.
# Works without a package index and in short calls: what a stage has done stays in the work folder, and a call that was
# cut off goes on where it ended. docs/gpu.md says how to run it.
#
#   tools/gpu_check.sh [build] [test] [bench] [report] [options] [-- options of tools/gpu_check.py bench]
#
#   --device NAME    as `phiggml devices` names it (CUDA0); its letters say which plugin is built
#   --plugin NAME    another than that: cuda13, cuda12 (else by nvcc's version), vulkan, rocm, sycl, rpc
#   --work FOLDER    what is kept between calls (build/gpu)
#   --wheels FOLDER  wheels to install first, where Python lacks what the build or the tests need
#   --arch LIST      CUDA architectures (native)
#   --jobs N         compilers at a time (all cores)
#   --write PAGE     let report write its table there, between its marker lines
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "gpu_check: $*" >&2; exit 2; }

device=CUDA0 plugin="" work=build/gpu wheels="" arch=native jobs=$(nproc) write="" stages=()
while [ $# -gt 0 ]; do
    case "$1" in
        build | test | bench | report) stages+=("$1") ;;
        --) shift; break ;;
        --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
        --device | --plugin | --work | --wheels | --arch | --jobs | --write)
            [ $# -gt 1 ] || fail "$1 wants a value."
            declare "${1#--}=$2"
            shift ;;
        *) fail "$1 is no stage and no option. See --help." ;;
    esac
    shift
done
[ ${#stages[@]} -gt 0 ] || stages=(build test bench report)
mkdir -p "$work"
work=$(realpath "$work")
python=$work/venv/bin/python

nvcc_major() {
    local nvcc
    nvcc=$(command -v "${CUDACXX:-nvcc}" || echo /usr/local/cuda/bin/nvcc)
    [ -x "$nvcc" ] || fail "there is no nvcc here. Put it on PATH, or name it in CUDACXX."
    "$nvcc" --version | sed -n 's/.*release \([0-9]*\).*/\1/p'
}

plugin_of_device() {
    case "$1" in
        CUDA*) echo "cuda$(nvcc_major)" ;;
        Vulkan*) echo vulkan ;;
        ROCm*) echo rocm ;;
        SYCL*) echo sycl ;;
        RPC*) echo rpc ;;
        *) fail "which plugin drives $1? Name it with --plugin." ;;
    esac
}

# An environment of our own that sees what the calling Python has, be that an environment itself.
make_environment() {
    local caller=${PYTHON:-python3} packages
    [ -x "$python" ] || "$caller" -m venv --without-pip "$work/venv"
    packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$caller" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' >"$packages/caller.pth"
    "$python" -m pip --version >/dev/null || fail "$caller has no pip."
    if [ -n "$wheels" ]; then
        "$python" -m pip install --quiet --no-index --no-deps --find-links "$wheels" "$wheels"/*.whl
    fi
    "$python" - <<'PY' || fail "install what is missing for $caller, or give wheels of it with --wheels."
import importlib.util, sys
needed = "scikit_build_core pybind11 cmake ninja numpy jinja2 tqdm pytest hypothesis".split()
missing = [name for name in needed if importlib.util.find_spec(name) is None]
print(*(f"gpu_check: Python lacks {name}." for name in missing), sep="\n", file=sys.stderr, end="\n" if missing else "")
sys.exit(bool(missing))
PY
}

pip_wheel() {
    (cd "$work/source" && CMAKE_BUILD_PARALLEL_LEVEL=$jobs "$python" -m pip wheel --quiet --no-index --no-deps \
        --no-build-isolation --wheel-dir "$work/wheels" "$@")
}

build() {
    local settings=()
    [ -n "$plugin" ] || plugin=$(plugin_of_device "$device")
    make_environment
    # A copy whose files keep their times: the compilers' work of an earlier call stays good.
    "$python" third_party/fetch.py
    "$python" tools/copy_changed.py CMakeLists.txt LICENSE LICENSES README.md pyproject.toml backends build_backend cmake \
        csrc examples/phi3-nano python third_party "$work/source"
    rm -rf "$work/wheels"
    pip_wheel .
    case "$plugin" in cuda*) settings=(-C "cmake.define.CMAKE_CUDA_ARCHITECTURES=$arch") ;; esac
    pip_wheel "./backends/$plugin" "${settings[@]}"
    "$python" -m pip install --quiet --no-index --no-deps --force-reinstall "$work"/wheels/*.whl
    ls -l "$work/wheels"
    "$work/venv/bin/phiggml" devices
}

run_tests() {
    local status=0
    "$work/venv/bin/phiggml" doctor | tee "$work/doctor.txt" || true
    PHIGGML_TEST_DEVICE=$device "$python" -m pytest -m plugins tests/test_device.py -p no:cacheprovider \
        | tee "$work/tests.log" || status=$?
    tail -n 1 "$work/tests.log" | tr -d '=' | sed 's/^ *//;s/ *$//' >"$work/tests.txt"
    return $status
}

for stage in "${stages[@]}"; do
    case "$stage" in
        build) build ;;
        test) run_tests ;;
        bench) PYTHONPATH=benchmarks "$python" tools/gpu_check.py bench --device "$device" --work "$work" "$@" ;;
        report) PYTHONPATH=benchmarks "$python" tools/gpu_check.py report --device "$device" --work "$work" \
            ${write:+--write "$write"} ;;
    esac
done
