"""Run the command line inside the tests' own process, and see what it changed on the disk."""

import inspect
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from cellnorm.cli import main
from cellnorm.estimator import CellNorm

# Before click 8.2 the two streams come apart only on request.
SEPARATE: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}

# For scripts that fork: Python 3.12 and newer say on stderr that forking beside threads is a risk.
FORKING_PYTHON = [sys.executable, "-W", "ignore:This process:DeprecationWarning"]


def run(*args: object) -> Result:
    """`cellnorm ARGS`; an exception that is a bug is raised here."""
    result = CliRunner(**SEPARATE).invoke(main, [*map(str, args)], prog_name="cellnorm")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def correct(*args: object) -> Result:
    """`cellnorm correct ARGS`."""
    return run("correct", *args)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for a moment only, where it does not matter how well."""
    monkeypatch.setitem(CellNorm.__init__.__kwdefaults__, "n_steps", 20)


def folder_content(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, hidden ones too, with its bytes; folders have none."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def h5_content(path: Path) -> dict[str, tuple[Any, ...]]:
    """Every element of an HDF5 file: attributes, type and bytes (of text, whose bytes are addresses, the text)."""
    found: dict[str, tuple[Any, ...]] = {}

    def visit(name: str, node: h5py.Group | h5py.Dataset) -> None:
        attributes = tuple(sorted((key, repr(value)) for key, value in node.attrs.items()))
        if isinstance(node, h5py.Dataset):
            values = np.asarray(node[()])
            content = repr(values.tolist()).encode() if node.dtype.kind == "O" else values.tobytes()
            found[name] = (attributes, str(node.dtype), node.shape, node.chunks, node.compression, content)
        else:
            found[name] = (attributes,)

    with h5py.File(path) as file:
        visit("", file)
        file.visititems(visit)
    return found
