"""The conventions that users' hands rely on, checked by reflection; and what the repository says about itself."""

import ast
import doctest
import importlib
import inspect
import json
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import click
import pytest

import cellnorm as cn

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "cellnorm").rglob("*.py")
    if path.name != "__main__.py"
)
# Names that mean in Python what they mean on the command line, where they are spelt differently.
OPTION_NAMES = {"seed": "random_state"}


def public(namespace: Any) -> dict[str, Callable[..., Any]]:
    """The public functions of a module or methods of a class, by their full names."""
    names = getattr(namespace, "__all__", None) or [n for n in vars(namespace) if not n.startswith("_")]
    return {
        f"{namespace.__name__.removeprefix('cellnorm.')}.{n}": f
        for n in names
        if inspect.isfunction(f := getattr(namespace, n))
    }


GLUE = public(cn.pp) | public(cn.tl)
FUNCTIONS = GLUE | public(cn.datasets)
METHODS = {f"CellNorm.{n}": f for n, f in vars(cn.CellNorm).items() if inspect.isfunction(f) and not n.startswith("_")}
DOCUMENTED: dict[str, Any] = FUNCTIONS | METHODS | {"CellNorm": cn.CellNorm}


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.name != "self"]


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {p.name: p.default for p in parameters(function) if p.default is not inspect.Parameter.empty}


def sections(doc: str) -> dict[str, str]:
    """Sections of a numpydoc docstring: heading to text."""
    parts = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}$", inspect.cleandoc(doc), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def described(section: str) -> set[str]:
    """Names that a Parameters section describes: `a`, `a, b`, `a : int`, `**kwargs`."""
    lines = [line for line in section.splitlines() if line and not line[0].isspace()]
    return {name.strip().lstrip("*") for line in lines for name in line.split(":")[0].split(",")}


def signature_complaints(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """At most three positional arguments, the rest keyword-only, everything annotated."""
    given = parameters(function)
    positional = [p.name for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) > 3:
        yield f"{name}: {positional} are positional; at most three may be, the rest is keyword-only"
    if any(p.kind is p.VAR_POSITIONAL for p in given):
        yield f"{name}: takes *args"
    if bare := [p.name for p in given if p.annotation is p.empty]:
        yield f"{name}: {bare} are not annotated"
    if inspect.signature(function).return_annotation is inspect.Signature.empty:
        yield f"{name}: its result is not annotated"


def docstring_complaints(name: str, thing: Callable[..., Any]) -> Iterator[str]:
    """The sections of numpydoc where they apply, with the signature's names, in a docstring with an example."""
    found = sections(thing.__doc__ or "")
    names = {p.name for p in parameters(thing)}
    if unknown := names ^ described(found.get("Parameters", "")):
        yield f"{name}: Parameters and signature disagree about {sorted(unknown)}"
    if inspect.isfunction(thing):
        if inspect.signature(thing).return_annotation not in (None, "None", Self, "Self") and "Returns" not in found:
            yield f"{name}: no section Returns"
        source = ast.parse(textwrap.dedent(inspect.getsource(thing)))
        if any(isinstance(node, ast.Raise) for node in ast.walk(source)) and "Raises" not in found:
            yield f"{name}: raises, but has no section Raises"
    if name not in METHODS and ">>> " not in found.get("Examples", ""):
        yield f"{name}: no example"


def test_reflection_sees_the_public_functions() -> None:
    assert {"tl.correct", "pp.prepare", "datasets.simulate"} <= set(FUNCTIONS)
    assert {"CellNorm.fit", "CellNorm.transform", "CellNorm.fit_transform", "CellNorm.inverse_transform"} <= set(
        METHODS
    )


@pytest.mark.parametrize("name", FUNCTIONS | METHODS)
def test_signatures(name: str) -> None:
    assert list(signature_complaints(name, DOCUMENTED[name])) == []


@pytest.mark.parametrize("name", GLUE)
def test_adata_or_a_file_comes_first(name: str) -> None:
    assert parameters(GLUE[name])[0].name == ("source" if name.endswith("_file") else "adata")


def test_every_parameter_of_the_estimator_is_keyword_only_and_annotated() -> None:
    given = parameters(cn.CellNorm)
    assert given
    assert [
        p.name for p in given if p.kind is not p.KEYWORD_ONLY or p.default is p.empty or p.annotation is p.empty
    ] == []


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstrings(name: str) -> None:
    assert list(docstring_complaints(name, DOCUMENTED[name])) == []


def undocumented(adata, one, two, three=3, *args):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN201
    """Say little."""
    raise ValueError


def test_reflection_finds_what_is_missing() -> None:
    assert len(list(signature_complaints("f", undocumented))) == 4
    assert len(list(docstring_complaints("f", undocumented))) == 4


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert failed == 0, "see the captured output"


# One home for each default ----------------------------------------------------------------------------------------


def correct_command() -> click.Command:
    from cellnorm import cli

    commands = [c for c in vars(cli).values() if isinstance(c, click.Command) and c.name == "correct"]
    assert len(commands) == 1
    return commands[0]


def test_the_command_line_repeats_no_default() -> None:
    from cellnorm import cli

    command = correct_command()
    given = command.make_context("correct", [__file__], **cli.SETTINGS).params  # click keeps the names of --help
    options = {p.name for p in command.params if isinstance(p, click.Option)}
    assert {name: value for name, value in given.items() if name in options and value} == {}


def test_helps_show_the_defaults_that_hold() -> None:
    homes = defaults(cn.pp.prepare) | defaults(cn.CellNorm)
    helps = {p.name or "": p.help or "" for p in correct_command().params if isinstance(p, click.Option)}
    shown = {name: re.search(r"[Dd]efault:? ([^\s\],;).]+)", text) for name, text in helps.items()}
    found = {OPTION_NAMES.get(name, name): match[1].strip("'\"`") for name, match in shown.items() if match}
    assert {name: value for name, value in found.items() if name in homes and value != str(homes[name])} == {}


def test_glue_repeats_no_default_of_the_estimator() -> None:
    home = defaults(cn.CellNorm)
    for name, function in public(cn.tl).items():
        repeated = {k: v for k, v in defaults(function).items() if k in home and name == "tl.correct"}
        assert {k: v for k, v in repeated.items() if v not in (None, home[k])} == {}


def test_prepare_and_the_estimator_agree() -> None:
    home, glue = defaults(cn.CellNorm), defaults(cn.pp.prepare)
    assert {k: v for k, v in glue.items() if k in home and v != home[k]} == {}


def test_get_params_gives_what_init_was_given() -> None:
    assert cn.CellNorm().get_params() == defaults(cn.CellNorm)


# What the package says about itself -------------------------------------------------------------------------------


def test_import_is_light() -> None:
    heavy = ["anndata", "click", "matplotlib", "numpy", "pandas", "scanpy", "scipy", "sklearn", "torch", "tqdm"]
    code = f"import sys, cellnorm; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_public_names_are_there_and_no_others() -> None:
    assert {name for name in cn.__all__ if getattr(cn, name, None) is None} == set()
    assert set(cn.__all__) <= set(dir(cn))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cn.nothing  # noqa: B018


def test_versions_agree() -> None:
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "cellnorm/__init__.py"
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == cn.__version__  # type: ignore[index]
    assert f"## [{cn.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_pins_fit_the_declared_bounds() -> None:
    from packaging.requirements import Requirement

    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    extras = PYPROJECT["project"]["optional-dependencies"]
    needed = [Requirement(r) for r in [*PYPROJECT["project"]["dependencies"], *extras["test"], *extras["notebooks"]]]
    assert [str(r) for r in needed if r.name not in pins or pins[r.name] not in r.specifier] == []


# What the repository looks like -----------------------------------------------------------------------------------

# Paths of some machine and hosts of package registries, put together here so that this file does not hold them.
FORBIDDEN = re.compile("|".join(("/" + "work/", "/" + "tmp/", "/" + "root/", "/" + "home/", "pypi" + r"\.org")))
TEXT = {".py", ".md", ".toml", ".txt", ".cff", ".yml", ".yaml", ".ipynb", ".svg", ""}


def texts() -> list[Path]:
    """Every text file of the repository, whether committed yet or not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if run.returncode:
        pytest.skip("this is no git checkout")
    paths = [ROOT / name for name in run.stdout.splitlines()]
    return [p for p in paths if p.suffix in TEXT and p.is_file()]


def test_no_machine_is_named() -> None:
    found = {str(p.relative_to(ROOT)): m[0] for p in texts() if (m := FORBIDDEN.search(p.read_text(errors="ignore")))}
    assert found == {}


def test_tests_are_as_long_as_the_code() -> None:
    def lines(folder: str) -> int:
        return sum(bool(line.strip()) for p in (ROOT / folder).rglob("*.py") for line in p.read_text().splitlines())

    assert lines("tests") >= lines("cellnorm")


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert [i for i, cell in enumerate(cells) if cell["outputs"] or cell["execution_count"]] == []
