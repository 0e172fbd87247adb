"""The floors, firewalls and budgets of the design, checked."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import lizard
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "phiggml"
MOST_LINES = 500
MOST_FUNCTION_LINES = 60
MOST_PARAMETERS = 12
MOST_POSITIONAL = 3

# Each floor may import from those below it (and from its own package), never from above.
FLOORS = [
    {"__init__", "__main__"},
    {"cli"},
    {"conversion"},
    {"quantization", "report", "pipeline", "source"},
    {"imatrix", "speed"},
    {"session"},
    {"answer"},
    {"speculation", "prompt_lookup"},
    {"model", "adapter", "embedder", "placement"},
    {"quant", "gguf", "recipe", "comparison", "chat", "completion", "sampling", "embedding"},
    {"grammar", "text_stream"},
    {"json_schema"},
    {"runtime"},
    {"plugin", "cores"},
    {"progress", "peak_memory", "atomic_file", "number"},
    {"errors", "_core"},
]
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "manager", "base"}


def python_files() -> list[Path]:
    folders = [PACKAGE, ROOT / "tests", ROOT / "tools", ROOT / "benchmarks", ROOT / "build_backend"]
    folders += [ROOT / "fuzz", ROOT / "examples"]
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def core_files() -> list[Path]:
    return [
        path
        for folder in ("csrc", "fuzz")
        for pattern in ("*.cpp", "*.h")
        for path in sorted((ROOT / folder).rglob(pattern))
    ]


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def floor_of(module: str) -> int:
    """The floor of a top-level module; files split off by noun (gguf_writer) are their noun's."""
    for i, names in enumerate(FLOORS):
        if module in names or any(module.startswith(name + "_") for name in names):
            return i
    raise AssertionError(f"phiggml.{module} stands on no floor: add it to FLOORS")


def imported_modules(path: Path) -> set[str]:
    """Top-level phiggml modules that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "phiggml":
            names = [f"phiggml.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found |= {name.split(".")[1] for name in names if name.startswith("phiggml.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=short)
def test_imports_go_down(path: Path) -> None:
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for imported in imported_modules(path) - {module}:
        assert floor_of(imported) >= floor_of(module), f"{short(path)} imports phiggml.{imported}"


@pytest.mark.parametrize("path", core_files(), ids=short)
def test_firewalls(path: Path) -> None:
    includes = re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', path.read_text("utf-8"))
    binding = path.name.startswith("bind") or path.name == "module.cpp"
    upstream = path.parent.name in ("upstream", "arch", "kernels")
    if path.name != "bind.h":
        assert not [name for name in includes if name.startswith("pybind11")]
    if not binding:
        assert "bind.h" not in includes
    foreign = [name for name in includes if not (ROOT / "csrc" / name).exists()]
    theirs = [name for name in foreign if re.match(r"(ggml|gguf|llama)[-.]", name)]
    if binding or (path.suffix == ".h" and not upstream):
        assert not theirs, f"{short(path)} includes {theirs}"


@pytest.mark.parametrize("path", [*python_files(), *core_files()], ids=short)
def test_file_budget(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES
    assert path.stem not in FORBIDDEN_NAMES


@pytest.mark.parametrize("path", [*python_files(), *core_files()], ids=short)
def test_function_budget(path: Path) -> None:
    for function in lizard.analyze_file(str(path)).function_list:
        name = f"{short(path)}: {function.long_name}"
        assert function.length <= MOST_FUNCTION_LINES, f"{name}: {function.length} lines"
        assert len(function.parameters) <= MOST_PARAMETERS, name


def public_functions(body: list[ast.stmt]) -> list[ast.FunctionDef]:
    """Functions and methods that a user may call; what is inside functions is nobody's."""
    found: list[ast.FunctionDef] = []
    for node in body:
        if isinstance(node, ast.FunctionDef) and (
            node.name == "__init__" or not node.name.startswith("_")
        ):
            found.append(node)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found += public_functions(node.body)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=short)
def test_public_functions_take_keywords(path: Path) -> None:
    for node in public_functions(ast.parse(path.read_text("utf-8")).body):
        positional = [a.arg for a in node.args.posonlyargs + node.args.args]
        positional = [name for name in positional if name not in ("self", "cls")]
        assert len(positional) <= MOST_POSITIONAL, f"{short(path)}: {node.name}{positional}"
        assert node.args.kwarg is None, f"{short(path)}: {node.name} takes **{node.args.kwarg}"


def test_nouns_have_one_name_on_every_floor() -> None:
    bound = {path.stem.removeprefix("bind_") for path in (ROOT / "csrc").glob("bind_*.cpp")}
    for noun in bound - {"error"}:
        assert (ROOT / "csrc" / f"{noun}.cpp").is_file(), noun
        assert (PACKAGE / f"{noun}.py").is_file(), noun
        assert (PACKAGE / "_core" / f"{noun}.pyi").is_file(), noun


def test_nobody_loads_backends_from_the_current_folder() -> None:
    for path in core_files():
        assert "ggml_backend_load_all()" not in path.read_text("utf-8"), short(path)
