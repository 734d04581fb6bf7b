"""How the work is cut for a device: the one place where a CPU and a GPU differ. What is computed is the same.

Numbers are float32 on both. TF32 is as torch has it, off: a process that turns it on does so for all its products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["CHUNK_CELLS", "CPU", "GPU", "Manner", "manner_of", "moved"]

# On a CPU the network always sees this many cells, filled up with zeros: a cell has the same bits in any company.
CHUNK_CELLS = 1024


class Manner(NamedTuple):
    """How the work is cut.

    Attributes
    ----------
    chunk_cells
        Cells that a trained network sees at once. Their kinds take up to 20 kB of memory a cell.
    steps_ahead
        Minibatches that are drawn at once and reach the device in one transfer, while it is busy with those before.
    products
        Whether anchors are searched by products of matrices on the device, instead of by scikit-learn.
    """

    chunk_cells: int
    steps_ahead: int
    products: bool


CPU = Manner(chunk_cells=CHUNK_CELLS, steps_ahead=1, products=False)
GPU = Manner(chunk_cells=16 * CHUNK_CELLS, steps_ahead=25, products=True)


def manner_of(device: str | torch.device) -> Manner:
    """How the work is cut for a device; Apple's, which has no double precision, is treated as a CPU.

    Examples
    --------
    >>> from cellnorm.devices import manner_of
    >>> manner_of("cpu").chunk_cells, manner_of("cuda").chunk_cells
    (1024, 16384)
    """
    return GPU if torch.device(device).type == "cuda" else CPU


def moved(values: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device, without waiting until it is there; on the CPU the array itself."""
    on_host = torch.from_numpy(np.ascontiguousarray(values))
    # only from pinned memory does a copy go on by itself
    return on_host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else on_host.to(device)
