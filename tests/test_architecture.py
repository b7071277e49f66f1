"""The rules of the architecture, read from the source: layers, owners of effects, lazy imports, packaging lists."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("catalogs", "stratify", "generate", "curate", "train_min")
FOLDERS = (*LAYERS, "cycle")
MAY_IMPORT = {
    "catalogs": {"catalogs"},
    **{layer: {"catalogs", layer} for layer in LAYERS[1:]},
    "cli": {*LAYERS, "cycle", "projects", "distdata"},
    "cycle": {*LAYERS, "cycle"},
    "projects": {*LAYERS},
    "distdata": {"generate"},
}
"""Which of our parts each part may import; `distdata` is the package's own docstring and version."""

HEAVY = {
    "ray", "torch", "diffusers", "transformers", "great_expectations", "datasets", "webdataset", "gymnasium",
    "highway_env", "PIL", "huggingface_hub", "scipy", "sklearn",
}  # fmt: skip
HEAVY_ALLOWED = {
    "generate/teachers/crossing/score_model.py": "its class extends diffusers' ModelMixin",
    "generate/teachers/crossing/pipeline.py": "its class extends diffusers' DiffusionPipeline",
    "train_min/denoiser.py": "its classes extend torch.nn.Module",
}
OWNERS = {
    "duckdb": {
        "catalogs/store.py": "opens DuckDB",
        "catalogs/register.py": "names the connection's type only",
        "catalogs/estimates.py": "turns DuckDB's errors about a user's expression into messages",
    },
    "ray": {"generate/ray_engine.py": "runs a plan", "curate/ray_stage.py": "measures shards"},
    "tarfile": {},
}
"""Modules outside which nobody imports the library, in a function either."""

MAX_LINES = 500


@cache
def modules() -> dict[str, ast.Module]:
    """Return the syntax tree of every module of the package by its path from the root."""
    files = [*ROOT.glob("*.py"), *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))]
    return {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text(), str(p)) for p in sorted(files)}


def dotted(path: str) -> str:
    """Return a module's import path within the package: `catalogs.store`, `` for the root."""
    return path.removesuffix(".py").replace("/", ".").removesuffix("__init__").rstrip(".")


def imports(tree: ast.Module, *, top_only: bool = False) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports of a module; with `top_only` those that run when it is imported."""
    for node in _running(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def _running(tree: ast.Module) -> Iterator[ast.AST]:
    """Walk what runs at import: everything but functions' bodies and blocks for type checkers."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)


def libraries(node: ast.Import | ast.ImportFrom) -> set[str]:
    """Return the top-level packages that an absolute import names."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return set() if node.level else {(node.module or "").partition(".")[0]}


def ours(path: str, node: ast.Import | ast.ImportFrom) -> set[str]:
    """Return the modules of the package that a relative import names, as paths of files."""
    if isinstance(node, ast.Import) or not node.level:
        return set()
    folder = list(Path(path).parent.parts)
    base = folder[: len(folder) - (node.level - 1)] + (node.module or "").split(".") * bool(node.module)
    found = set()
    for alias in node.names:
        options = ["/".join([*base, alias.name]) + ".py", "/".join(base) + ".py", "/".join([*base, "__init__.py"])]
        found |= {next(option for option in options if option in modules())}
    return found


def part(path: str) -> str:
    """Return the layer of a module, or its own name at the root."""
    first = path.partition("/")[0]
    return "distdata" if first == "__init__.py" else first.removesuffix(".py")


def test_the_scan_sees_the_package() -> None:
    """The rules below look at all layers and at real imports; an empty scan would pass them all."""
    assert {part(p) for p in modules()} == {*LAYERS, "cli", "cycle", "projects", "distdata"}
    assert "catalogs/store.py" in ours("catalogs/register.py", next(_relative("catalogs/register.py")))
    assert sum(len(list(_relative(p))) for p in modules()) > 100


def _relative(path: str) -> Iterator[ast.ImportFrom]:
    return (n for n in imports(modules()[path]) if isinstance(n, ast.ImportFrom) and n.level)


@pytest.mark.parametrize("path", list(modules()))
def test_layers(path: str) -> None:
    """Data flows between stages, imports do not: each layer knows the catalog and itself, cli and cycle know all."""
    allowed = MAY_IMPORT.get(part(path), set())
    for node in imports(modules()[path]):
        wrong = {p for p in ours(path, node) if part(p) not in allowed}
        assert not wrong, f"{path}:{node.lineno} imports {wrong}"


@pytest.mark.parametrize("path", list(modules()))
def test_our_imports_are_relative(path: str) -> None:
    """No module names `distdata` or a layer absolutely, so none works without its package."""
    for node in imports(modules()[path]):
        wrong = libraries(node) & {"distdata", "cli", "cycle", *LAYERS}
        assert not wrong, f"{path}:{node.lineno} imports {wrong}"


def test_no_import_cycles() -> None:
    """What runs at import forms no circle, so that any module can be imported first."""
    graph = {p: {t for n in imports(tree, top_only=True) for t in ours(p, n)} - {p} for p, tree in modules().items()}
    done: set[str] = set()

    def visit(path: str, trail: tuple[str, ...]) -> None:
        assert path not in trail, f"import cycle: {' -> '.join([*trail[trail.index(path) :], path])}"
        if path not in done:
            for target in sorted(graph[path]):
                visit(target, (*trail, path))
            done.add(path)

    for path in graph:
        visit(path, ())


@pytest.mark.parametrize("path", list(modules()))
def test_effects_have_owners(path: str) -> None:
    """DuckDB, Ray and tar archives are touched by the modules that own them and by no other."""
    for node in imports(modules()[path]):
        for library in libraries(node) & set(OWNERS):
            assert path in OWNERS[library], f"{path}:{node.lineno} imports {library}; owners: {list(OWNERS[library])}"


def test_only_the_store_opens_duckdb() -> None:
    """`duckdb.connect` is called in catalogs/store.py alone, and there under its own rules."""
    calls = {
        path
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "connect" and ast.unparse(node.value) == "duckdb"
    }
    assert calls == {"catalogs/store.py"}


@pytest.mark.parametrize("path", list(modules()))
def test_heavy_libraries_are_imported_late(path: str) -> None:
    """Libraries that take long to import are imported inside the function that needs them."""
    for node in imports(modules()[path], top_only=True):
        heavy = libraries(node) & HEAVY
        assert not heavy or path in HEAVY_ALLOWED, f"{path}:{node.lineno} imports {heavy} at its top"


def test_the_exceptions_are_needed() -> None:
    """Every module that may import a heavy library at its top does, and none of them is imported early by another."""
    graph = {p: {t for n in imports(tree, top_only=True) for t in ours(p, n)} for p, tree in modules().items()}
    for path in HEAVY_ALLOWED:
        assert any(libraries(n) & HEAVY for n in imports(modules()[path], top_only=True)), path
        users = {p for p, targets in graph.items() if path in targets and p not in HEAVY_ALLOWED}
        assert not users, f"{path} is imported at the top of {users}"


@pytest.mark.parametrize(("path", "tree"), [(p, t) for p, t in modules().items() if p.endswith("__init__.py")])
def test_packages_hold_a_docstring_only(path: str, tree: ast.Module) -> None:
    """An `__init__.py` runs nothing; the root's has the version, and hands out `log_byproduct` when it is asked for."""
    assert ast.get_docstring(tree), path
    rest = [ast.unparse(node) for node in tree.body[1:]]
    root = ("from typing ", "if TYPE_CHECKING:", "__version__ = ", "def __getattr__")
    allowed = root if path == "__init__.py" else ()
    assert len(rest) == len(allowed), f"{path}: {rest}"
    assert all(text.startswith(start) for text, start in zip(rest, allowed, strict=True))


@pytest.mark.parametrize("path", list(modules()))
def test_modules_are_short(path: str) -> None:
    """No module is longer than 500 lines."""
    n_lines = len((ROOT / path).read_text().splitlines())
    assert n_lines <= MAX_LINES, f"{path}: {n_lines} lines; split it"


@pytest.mark.parametrize("path", list(modules()))
def test_everything_public_is_documented(path: str) -> None:
    """Every module, public class, and public function or method of a public class has a docstring."""
    tree = modules()[path]
    assert ast.get_docstring(tree), path
    missing = [name for name, node in _public(tree, "") if not ast.get_docstring(node)]
    assert not missing, f"{path}: {missing}"


Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _public(tree: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Documented]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, f"{node.name}.")


def test_every_folder_of_code_is_packaged() -> None:
    """The explicit package list names every folder with an `__init__.py`, and no other."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {Path(p).parent.as_posix() for p in modules() if p.endswith("__init__.py")}
    assert set(config["packages"]) == {"distdata" + ("" if f == "." else "." + f.replace("/", ".")) for f in folders}
    loose = {p for p in modules() if Path(p).parent.as_posix() not in folders}
    assert not loose, f"modules in folders without an __init__.py: {loose}"


def test_every_data_file_is_packaged() -> None:
    """Every file of the package's folders that is no Python is shipped by some pattern, and every pattern finds one."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped: set[Path] = set()
    for package, patterns in config["package-data"].items():
        for pattern in patterns:
            found = set((ROOT / package.removeprefix("distdata").replace(".", "/").lstrip("/")).glob(pattern))
            assert found, f"{package}: {pattern} matches nothing"
            shipped |= found
    data = {p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix != ".py"}
    lost = {p for p in data - shipped if "__pycache__" not in p.parts}
    assert not lost, f"not shipped: {lost}"


def test_every_command_is_in_the_readme() -> None:
    """README.md names each command of the command line as `distdata COMMAND`, and no command that is not there."""
    import typer

    from distdata.cli import app

    def names(command: object, prefix: str) -> Iterator[str]:
        children = getattr(command, "commands", {})
        for name, child in children.items():
            yield from names(child, f"{prefix} {name}")
        if not children:
            yield prefix

    commands = set(names(typer.main.get_command(app), "distdata"))
    assert {"distdata plan", "distdata catalog import", "distdata export hf"} <= commands
    text = (ROOT / "README.md").read_text()
    missing = [name for name in sorted(commands) if f"`{name}`" not in text]
    assert not missing, f"README.md does not mention {missing}"


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["plan", "--help"], ["catalog", "import", "--help"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    """Asking for help loads none of the libraries that do the work, which is what makes it fast."""
    code = f"""
import sys
from distdata.cli import main
sys.argv = ["distdata", *{args!r}]
try:
    main()
except SystemExit as e:
    assert not e.code, e.code
print(sorted(m for m in sys.modules if "." not in m), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stderr.strip().splitlines()[-1]))
    assert "distdata" in loaded
    heavy = loaded & (HEAVY | {"duckdb", "pyarrow", "polars", "numpy", "pandas"})
    assert not heavy, heavy
    assert done.stdout
