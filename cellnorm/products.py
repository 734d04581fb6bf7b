"""Products of cells with the table of their own batch, none of which is copied for each cell while batches are few."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mixed_rows", "with_rows"]

# Up to so many batches the product with all tables at once, of which a cell needs one, is quicker than a copy of its
# own: on a CPU 1 to 6 ms a thousand cells (100 rows of 50) against 8.
FEW = 25


def with_rows(cells: Tensor, tables: Tensor, batch: Tensor) -> Tensor:
    """Inner products of each cell with the rows of its batch's table.

    Parameters
    ----------
    cells
        Shape (n_cells, n_dims).
    tables
        One for each batch, shape (n_batches, n_rows, n_dims).
    batch
        Batch of each cell, shape (n_cells,).

    Returns
    -------
    Shape (n_cells, n_rows). The same for a cell whatever the cells beside it, if their number is the same.

    Examples
    --------
    >>> import torch
    >>> from cellnorm.products import with_rows
    >>> with_rows(torch.tensor([[1.0, 2.0]]), torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([1]))
    tensor([[2.]])
    """
    if len(tables) > FEW:
        return torch.bmm(tables[batch], cells[:, :, None])[:, :, 0]
    with_all = (cells @ tables.flatten(0, 1).T).view(len(cells), *tables.shape[:2])
    return with_all[torch.arange(len(cells), device=cells.device), batch]


def mixed_rows(weights: Tensor, tables: Tensor, batch: Tensor) -> Tensor:
    """Sum of the rows of the table of each cell's batch, by weights.

    Parameters
    ----------
    weights
        Shape (n_cells, n_rows).
    tables, batch
        As for `with_rows`.

    Returns
    -------
    Shape (n_cells, n_dims).
    """
    if len(tables) > FEW:
        return torch.bmm(weights[:, None], tables[batch])[:, 0]
    in_own = weights.new_zeros(len(weights), *tables.shape[:2])
    in_own[torch.arange(len(weights), device=weights.device), batch] = weights
    return in_own.flatten(1) @ tables.flatten(0, 1)
