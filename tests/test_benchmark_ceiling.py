"""Cells that change places within their type: each type keeps its places, and batches lose theirs."""

import ceiling
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays


@given(label=arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 3)), seed=st.integers(0, 99))
def test_each_type_keeps_its_places(label: np.ndarray, seed: int) -> None:
    Z = np.arange(len(label), dtype=np.float32)[:, None]
    found = ceiling.exchanged(Z, label.astype(str), np.random.default_rng(seed))
    for kind in np.unique(label):
        assert set(found[label == kind, 0]) == set(Z[label == kind, 0])


def test_batches_of_one_type_are_mixed() -> None:
    batch = np.arange(400) // 200
    found = ceiling.exchanged(batch[:, None].astype(np.float32), np.full(400, "B"), np.random.default_rng(0))
    assert 60 < found[batch == 0].sum() < 140
