"""Products with the table of a cell's batch are those with a copy of it, whatever the number of batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cellnorm.products import FEW, mixed_rows, with_rows


def given_tables(n_batches: int, n_rows: int, n_dims: int, n_cells: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    tables = torch.randn(n_batches, n_rows, n_dims, generator=rng)
    return tables, torch.randn(n_cells, n_dims, generator=rng), torch.randint(n_batches, (n_cells,), generator=rng)


@given(
    n_batches=st.sampled_from([1, 2, 7, FEW, FEW + 1, 2 * FEW]),
    n_rows=st.integers(1, 6),
    n_dims=st.integers(1, 5),
    n_cells=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_both_are_sums_over_a_copy_of_the_table(
    n_batches: int, n_rows: int, n_dims: int, n_cells: int, seed: int
) -> None:
    tables, cells, batch = given_tables(n_batches, n_rows, n_dims, n_cells, seed)
    own = tables[batch]
    found = with_rows(cells, tables, batch)
    torch.testing.assert_close(found, (own * cells[:, None]).sum(2))
    torch.testing.assert_close(mixed_rows(found, tables, batch), (own * found[:, :, None]).sum(1))


@pytest.mark.parametrize("n_batches", [3, FEW + 1])
def test_a_cell_has_the_same_bits_whatever_its_companions(n_batches: int) -> None:
    tables, cells, batch = given_tables(n_batches, 20, 30, 64, seed=0)
    others = torch.cat([cells[:1], torch.randn(63, 30)]), torch.cat([batch[:1], batch[1:].flip(0)])
    found, beside = with_rows(cells, tables, batch), with_rows(others[0], tables, others[1])
    assert torch.equal(found[0], beside[0])
    assert torch.equal(mixed_rows(found, tables, batch)[0], mixed_rows(beside, tables, others[1])[0])
