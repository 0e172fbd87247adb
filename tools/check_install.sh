#!/usr/bin/env bash
# Installs phiggml as a user without a compiler and without an index would, and runs its demo and its doctor.
#
#   tools/check_install.sh [EXTRA...]      such as vulkan, cuda; the plugins' wheels must be in $WHEELS
#
# WHEELS        folders with our wheels, separated by colons (default: dist:build/wheels)
# DEPENDENCIES  a folder with the wheels of numpy, jinja2, markupsafe and tqdm, and of what the plugins need; what it
#               lacks is fetched with pip before the index is out of reach (default: build/install/dependencies)
# PYTHON        default: python3
# Needs no rights. With the extra vulkan and Mesa's lavapipe installed the demo model runs there, too.
set -euo pipefail
cd "$(dirname "$0")/.."
root="$PWD"
python="${PYTHON:-python3}"
work="$root/build/install"
dependencies="${DEPENDENCIES:-$work/dependencies}"
extras="$(IFS=,; echo "$*")"
wanted="phiggml${extras:+[$extras]}"

links=()
IFS=: read -ra folders <<<"${WHEELS:-dist:build/wheels}"
for folder in "${folders[@]}"; do
    [ ! -d "$folder" ] || links+=(--find-links "$(cd "$folder" && pwd)")
done

rm -rf "$work/environment" "$work/bin" "$work/home"
mkdir -p "$work/bin" "$work/home" "$dependencies"
"$python" -m venv "$work/environment"

# All that a shell has here but compilers: named one by one, so that nothing else comes in.
for tool in sh bash env cat ls cp mv rm mkdir rmdir ln chmod dirname basename uname head tail grep sed sort wc tr id tty \
    mktemp readlink sleep true false test expr; do
    path="$(type -P "$tool")" || continue
    ln -sf "$path" "$work/bin/$tool"
done
for tool in pip phiggml python python3; do
    ln -sf "$work/environment/bin/$tool" "$work/bin/$tool"
done
clean=(env -i PATH="$work/bin" HOME="$work/home" LANG=C.UTF-8)
for tool in cc c++ gcc g++ clang clang++ ld as cmake ninja make nvcc glslc pkg-config git; do
    if "${clean[@]}" sh -c "command -v $tool" >/dev/null; then
        echo "check_install: $tool is to be hidden, and is found." >&2
        exit 1
    fi
done

# The only step that may use an index: wheels of others, into a folder, unless they are there.
fetch=("$python" -m pip download --quiet --disable-pip-version-check --only-binary :all: "${links[@]}"
    --find-links "$dependencies" --dest "$dependencies" "$wanted")
"${fetch[@]}" --no-index >/dev/null 2>&1 || "${fetch[@]}" >/dev/null
rm -f "$dependencies"/phiggml*.whl

"${clean[@]}" "$work/environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir \
    --no-index "${links[@]}" --find-links "$dependencies" "$wanted"

run() {
    echo "\$ $*"
    (cd "$work/home" && "${clean[@]}" "$@")
}
run "$work/environment/bin/phiggml" demo
run "$work/environment/bin/phiggml" devices
# What is wrong with a plugin is no fault of this installation: a driver may be missing. All else must be well.
report() {
    (cd "$work/home" && "${clean[@]}" "$@" phiggml doctor --json || true) >"$work/report.json"
    "$work/environment/bin/python" - "$work/report.json" <<'SCRIPT'
import json
import sys

report = json.load(open(sys.argv[1], encoding="utf-8"))
plugins = {"cuda13", "cuda12", "vulkan", "rocm", "sycl", "rpc"}
wrong = False
for check in report["checks"]:
    plugin = check["check"] in plugins
    wrong = wrong or not (check["ok"] or plugin)
    print(f"{check['check']:<12} {'ok' if check['ok'] else 'failed'}: {check['detail']}")
sys.exit(wrong)
SCRIPT
}
echo "\$ phiggml doctor"
report env
case ",$extras," in
    *,vulkan,*)
        echo "\$ GGML_VK_VISIBLE_DEVICES=0 phiggml doctor"
        report env GGML_VK_VISIBLE_DEVICES=0
        ;;
esac
echo "check_install: $wanted is installed and works without a compiler."
