"""benchmarks/gpu.py on few cells: every figure is there, and what was not measured is called so."""

import gpu
import numpy as np
import pytest
import torch


def test_every_figure_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SIDE", 256)
    monkeypatch.setattr(gpu, "LONG", 2**18)
    found = gpu.measure(1500, "cpu", 100)
    row = gpu.line(1500, "cpu", found)
    assert row.count("|") == len(gpu.COLUMNS) + 3
    assert gpu.MISSING not in row
    assert all(np.isfinite(value) for value in found.values())
    assert found["speed"] == pytest.approx(1e3 / found["step"])
    assert 0 < found["share"] < 1
    for name in ("launches", "of_launches", "of_arithmetic", "of_traffic", "peak", "cells"):
        assert found[name] > 0, name
    assert found["of_arithmetic"] < 1
    assert "GFLOP/s" in gpu.note("cpu", found)


def test_what_is_not_there_is_not_yet_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.run(10**6, "cuda", 100) is None
    row = gpu.line(10**6, "cuda", None)
    assert row.startswith("| 1,000,000 | cuda | not yet measured |")
    assert row.count("|") == len(gpu.COLUMNS) + 3


def test_components_are_those_of_their_seed_and_differ_by_batch() -> None:
    x, batch = gpu.components(gpu.BLOCK + 10)
    again, _ = gpu.components(gpu.BLOCK + 10)
    assert (x.dtype, x.shape, batch.dtype) == (np.float32, (gpu.BLOCK + 10, 50), np.int64)
    np.testing.assert_array_equal(x, again)
    assert set(batch) == set(range(gpu.N_BATCHES))
    means = np.stack([x[batch == b].mean(0) for b in range(gpu.N_BATCHES)])
    assert means.std(0).mean() > 0.5
    assert np.abs(x[gpu.BLOCK :]).sum(1).all()


def test_views_cost_nothing_and_products_are_counted_by_their_bytes() -> None:
    a, b = torch.ones(4, 8), torch.ones(8, 2)
    with gpu.Traffic() as seen:
        a.t().view(8, 4)
        a[:2].unsqueeze(0)
    assert (seen.operations, seen.bytes) == (0, 0)
    with gpu.Traffic() as seen:
        a @ b
    assert (seen.operations, seen.bytes) == (1, 4 * (4 * 8 + 8 * 2 + 4 * 2))
