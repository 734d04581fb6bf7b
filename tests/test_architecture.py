"""The design's rules, read from the source with `ast`: who imports whom, how long things may be, what is never written.

A rule is a function from source to complaints; the last tests feed each of them a breach: a rule must be able to fail.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cellnorm"

NUMERICS = {
    "errors", "validation", "front", "anchors", "sampling", "layers", "losses", "autoencoder", "optimizer", "training",
    "determinism", "estimator", "fitting", "metrics", "clusters", "counterparts", "evidence", "alarm", "null", "frame",
    "design", "covariates", "diagnosis", "output", "kinds", "reuse", "checkpoint", "mapping", "transfer", "stability",
    "expression", "strength", "parts", "survey", "components", "work", "memory", "devices", "products",
}  # fmt: skip
GLUE = {
    "labels", "genes", "adata", "hvg", "pp", "tl", "pl", "blocks", "formats", "io", "report", "datasets", "text",
    "cluster", "contents", "embedding_file", "streaming",
}  # fmt: skip
COMMAND_LINE = {"cli", "console", "__main__"}

NUMERIC_LIBRARIES = {"numpy", "scipy", "sklearn", "threadpoolctl", "torch"}
GLUE_LIBRARIES = NUMERIC_LIBRARIES | {"anndata", "h5py", "jinja2", "matplotlib", "pandas", "scanpy", "zarr"}
LIBRARIES = {
    **dict.fromkeys(NUMERICS, NUMERIC_LIBRARIES),
    **dict.fromkeys(GLUE, GLUE_LIBRARIES),
    "metrics": NUMERIC_LIBRARIES | {"igraph"},
    "errors": set(),
    "checkpoint": {"numpy", "safetensors", "sklearn", "torch"},
    "datasets": {"anndata", "numpy", "pandas", "scipy"},
    "cluster": {"distributed"},
    "embedding_file": {"anndata", "numpy", "pandas", "pyarrow"},
    "cli": GLUE_LIBRARIES | {"click", "tqdm"},
    "console": {"click", "tqdm"},
    "__main__": set(),
    "__init__": set(),
}
# Modules that may use only these of ours; the others of their group are free, as long as no circle comes of it.
OURS = {
    "errors": set(),
    "datasets": {"errors"},
    "cluster": {"errors", "parts"},
    "labels": {"covariates", "errors"},
    "output": {"errors"},
    "formats": {"errors", "labels", "output"},
    "contents": {"errors", "formats", "memory", "output"},
    "memory": set(),
    "io": {"adata", "blocks", "errors", "formats", "labels", "output"},
    "console": {"errors", "training"},
    "__main__": {"cli"},
}
# what cli.py and __main__.py may import before a command runs, beside the standard library
LIGHT = {"click", "tqdm", "cellnorm.__version__", "cellnorm.cli", "cellnorm.console", "cellnorm.errors"}
BASES = {"nn.Module", "torch.nn.Module", "Module", "BaseEstimator", "ValueError", "NamedTuple", "TypedDict", "Protocol"}
NEVER_CALLED = {"print", "eval", "exec", "breakpoint"}
NEVER_IMPORTED = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
SLOT = re.compile(r"(X_(cellnorm|pca|umap)\w*|PCs|cellnorm_\w+)")
MAX_FILE, MAX_FUNCTION = 300, 60

Rule = Callable[[str, ast.Module], Iterator[str]]


def module_name(path: Path) -> str:
    """`cellnorm/metrics/mixing.py` belongs to `metrics`, `cellnorm/front.py` is `front`."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


SOURCES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names of all imports, those inside functions too; `from a import b` gives `a.b` where a is ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "cellnorm" if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            if base == "cellnorm":
                yield from ((f"cellnorm.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield base, node.lineno


def ours(tree: ast.AST) -> set[str]:
    """Our own modules that a module imports; `cellnorm.__version__` is no module."""
    names = {name.split(".")[1] for name, _ in imports(tree) if name.startswith("cellnorm.")}
    return names - {"__version__"}


def foreign(tree: ast.AST) -> set[str]:
    """Top-level names of the libraries that a module imports."""
    names = {name.split(".")[0] for name, _ in imports(tree)}
    return names - set(sys.stdlib_module_names) - {"cellnorm"}


def libraries(name: str, tree: ast.Module) -> Iterator[str]:
    """A module imports no library that its group knows nothing of."""
    if extra := foreign(tree) - LIBRARIES.get(name, set()):
        yield f"{name} imports {sorted(extra)}"


def direction(name: str, tree: ast.Module) -> Iterator[str]:
    """Numerics use numerics, glue uses those and glue, and nobody uses the command line."""
    allowed = OURS.get(name)
    if allowed is None:
        allowed = NUMERICS | (GLUE if name not in NUMERICS else set()) | ({"console"} if name == "cli" else set())
    if name != "__init__" and (extra := ours(tree) - allowed - {name}):
        yield f"{name} imports cellnorm's {sorted(extra)}, allowed {sorted(allowed)}"


def heavy_imports(name: str, tree: ast.Module) -> Iterator[str]:
    """`cellnorm --help` is quick: cli.py and __main__.py import libraries inside their commands."""
    if name not in COMMAND_LINE:
        return
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    branches = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    checked = {id(n) for branch in branches for n in ast.walk(branch)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in inside | checked:
            for imported, line in imports(ast.Module([node], [])):
                own = imported.startswith("cellnorm.cli.")
                if not own and imported not in LIGHT and imported.split(".")[0] not in sys.stdlib_module_names:
                    yield f"{name}:{line} imports {imported} before a command runs"


def function_length(name: str, tree: ast.Module) -> Iterator[str]:
    """Functions are short; their docstrings do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            doc = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            length = (node.end_lineno or 0) - node.lineno + 1 - doc
            if length >= MAX_FUNCTION:
                yield f"{name}.{node.name} has {length} lines, fewer than {MAX_FUNCTION} are allowed"


def never_written(name: str, tree: ast.Module) -> Iterator[str]:
    """No print, assert, eval, exec, star import or pickle."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NEVER_CALLED:
            yield f"{name}:{node.lineno} calls {node.func.id}"
        elif isinstance(node, ast.Assert):
            yield f"{name}:{node.lineno} asserts"
        elif isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield f"{name}:{node.lineno} imports *"
    for imported, line in imports(tree):
        if imported.split(".")[0] in NEVER_IMPORTED:
            yield f"{name}:{line} imports {imported}"


def slot_names(name: str, tree: ast.Module) -> Iterator[str]:
    """Only adata.py spells the names of slots; docstrings may speak of them."""
    if name == "adata":
        return
    bodies = [n.body for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docs = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in docs else None
        if isinstance(text, str) and SLOT.fullmatch(text):
            yield f"{name}:{node.lineno} spells {text!r}"


def inheritance(name: str, tree: ast.Module) -> Iterator[str]:
    """No inheritance beyond modules of torch, estimators of scikit-learn and the one exception."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from (
                f"{name}.{node.name} inherits from {base}" for base in map(ast.unparse, node.bases) if base not in BASES
            )


RULES: tuple[Rule, ...] = (
    libraries, direction, heavy_imports, function_length, never_written, slot_names, inheritance,
)  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    complaints = [c for path, tree in SOURCES.items() for c in rule(module_name(path), tree)]
    assert not complaints, f"{rule.__doc__} Found:\n" + "\n".join(complaints)


def test_every_module_belongs_to_a_group() -> None:
    assert {module_name(path) for path in SOURCES} <= NUMERICS | GLUE | COMMAND_LINE | {"__init__"}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a circle of imports, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circle_of_imports() -> None:
    graph: dict[str, set[str]] = {}
    for path, tree in SOURCES.items():
        if (name := module_name(path)) != "__init__":  # whose names are lazy
            graph.setdefault(name, set()).update(ours(tree) - {name})
    assert circle(graph) == []


def test_files_are_short() -> None:
    files = [p for folder in ("cellnorm", "benchmarks") for p in (ROOT / folder).rglob("*.py")]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert {name: n for name, n in lengths.items() if n >= MAX_FILE} == {}


def test_every_library_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    entries = project["dependencies"] + extras["cluster"] + extras["parquet"]
    declared = {re.split(r"[^\w-]", entry)[0].lower() for entry in entries}
    used = set().union(*(foreign(tree) for tree in SOURCES.values()))
    # matplotlib comes with scanpy, which cannot be installed without it
    assert {"scikit-learn" if name == "sklearn" else name for name in used} - {"matplotlib"} <= declared


LONG = "def f():\n" + "    x = 1\n" * MAX_FUNCTION
BREACHES = [
    (libraries, "front", "import pandas as pd"),
    (libraries, "layers", "def f():\n    from anndata import AnnData"),
    (libraries, "tl", "import click"),
    (libraries, "io", "from tqdm.auto import tqdm"),
    (libraries, "datasets", "import torch"),
    (libraries, "tl", "def f():\n    from distributed import Client"),
    (direction, "estimator", "from cellnorm.adata import choose_matrix"),
    (direction, "errors", "from cellnorm import front"),
    (direction, "tl", "from cellnorm.cli import main"),
    (direction, "io", "from . import pp"),
    (direction, "pp", "from cellnorm import CellNorm"),
    (heavy_imports, "cli", "import torch"),
    (heavy_imports, "cli", "from cellnorm import tl"),
    (heavy_imports, "cli", "try:\n    from cellnorm.tl import correct\nexcept ImportError:\n    pass"),
    (function_length, "tl", LONG),
    (function_length, "tl", "class A:\n" + "\n".join(f"    {line}" for line in LONG.splitlines())),
    (never_written, "tl", "print('done')"),
    (never_written, "tl", "assert x, 'user error'"),
    (never_written, "tl", "from numpy import *"),
    (never_written, "tl", "def f():\n    import pickle"),
    (never_written, "tl", "y = eval('x')"),
    (slot_names, "tl", "adata.obsm['X_cellnorm'] = z"),
    (slot_names, "pp", "KEY = 'X_pca'"),
    (slot_names, "tl", "sc.tl.umap(adata, neighbors_key='cellnorm_neighbors')"),
    (inheritance, "tl", "class A(dict): pass"),
    (inheritance, "estimator", "class A(TransformerMixin, BaseEstimator): pass"),
]


@pytest.mark.parametrize(("rule", "name", "source"), BREACHES)
def test_a_breach_is_found(rule: Rule, name: str, source: str) -> None:
    assert list(rule(name, ast.parse(source)))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "cli",
            "import click\nfrom cellnorm.errors import DataError\ndef f():\n    import torch",
        ),
        ("cli", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from anndata import AnnData"),
        ("tl", 'def f():\n    """Write obsm["X_cellnorm"]."""\n    return "see obsm[\'X_cellnorm\']"'),
        ("tl", '"""X_cellnorm"""'),
        ("layers", "from torch import nn\nclass A(nn.Module):\n    pass"),
        ("tl", "def f():\n    '''Doc.\n" + "\n" * MAX_FUNCTION + "    '''"),
    ],
)
def test_what_is_allowed_is_let_through(name: str, source: str) -> None:
    assert [c for rule in RULES for c in rule(name, ast.parse(source))] == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []
