"""Sets made for `benchmarks/peers.py`, in which laboratories lack types."""

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import partial
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

TYPES, BATCHES, EACH = 4, 3, 40


def whole() -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Batches and types of cells, all batches with all types."""
    return (
        np.tile(np.repeat([f"lab{b}" for b in range(BATCHES)], EACH), TYPES),
        np.repeat(list("abcd"), EACH * BATCHES),
    )


@given(seed=st.integers(0, 10**6), chance=st.floats(0, 0.9))
def test_types_leave_batches_as_a_whole_and_none_leaves_all(seed: int, chance: float) -> None:
    batch, kind = whole()
    cells = partial.kept_cells(batch, kind, chance, np.random.default_rng(seed))
    pairs, counts = np.unique(np.stack([kind[cells], batch[cells]]), axis=1, return_counts=True)
    assert (counts == EACH).all()
    assert len(cells) == 0 or set(kind[cells]) == set("abcd")
    assert len(cells) == 0 or len(set(pairs[0])) < pairs.shape[1], "some type is in two batches"
    assert (np.diff(cells) > 0).all()


def test_without_a_chance_all_stays_and_with_every_chance_nothing_is_shared() -> None:
    batch, kind = whole()
    assert len(partial.kept_cells(batch, kind, 0, np.random.default_rng(0))) == len(batch)
    assert len(partial.kept_cells(batch, kind, 1, np.random.default_rng(0))) == 0


def test_small_batches_go_and_large_sets_are_drawn_from() -> None:
    batch, kind = np.repeat(["a", "b", "c"], [3000, 3000, 29]), np.array(["t"] * 6029)
    cells = partial.kept_cells(batch, kind, 0, np.random.default_rng(0))
    assert len(cells) == partial.MAX_CELLS
    assert set(batch[cells]) == {"a", "b"}


def test_it_writes_what_is_left_and_leaves_the_source(
    tmp_path: Path, small_adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    small_adata.write_h5ad(tmp_path / "in" / "set.h5ad")
    before = (tmp_path / "in" / "set.h5ad").read_bytes()
    arguments = ["--data", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--draws", "3"]
    monkeypatch.setattr(sys, "argv", ["partial.py", *arguments])
    partial.main()
    assert (tmp_path / "in" / "set.h5ad").read_bytes() == before
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    for line, name in zip(printed, ["set_0", "set_1", "set_2"], strict=True):
        file = tmp_path / "out" / f"{name}.h5ad"
        assert file.exists() != line.endswith("left out")
        if file.exists():
            assert line.startswith(f"set, draw {name[-1]}: {ad.read_h5ad(file).n_obs} cells")
