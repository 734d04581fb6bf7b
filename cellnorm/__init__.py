"""Batch correction of single-cell data by an autoencoder with matched BatchNorm.

Examples
--------
>>> import cellnorm as cn
>>> sorted(cn.__all__)
['CellNorm', 'DataError', 'LinearFront', '__version__', 'datasets', 'metrics', 'pl', 'pp', 'report', 'tl']
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellnorm.errors import DataError
    from cellnorm.estimator import CellNorm
    from cellnorm.front import LinearFront

    from . import datasets, metrics, pl, pp, report, tl

__version__ = "0.1.0"
__all__ = ["CellNorm", "DataError", "LinearFront", "__version__", "datasets", "metrics", "pl", "pp", "report", "tl"]

_SUBMODULES = ("datasets", "metrics", "pl", "pp", "report", "tl")
_HOMES = {"CellNorm": "estimator", "DataError": "errors", "LinearFront": "front"}

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    # PEP 562: torch and scanpy take seconds to import; `cellnorm --help` and `import cellnorm` must not pay for them.
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
