"""Hidden genes predicted from the nearest cells."""

import sys
from pathlib import Path

import anndata as ad
import hide_genes
import numpy as np
import predict_genes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

EACH = 60


@given(
    of=hnp.arrays(np.float64, (12, 3), elements=st.floats(-5, 5).map(lambda x: round(x, 2))),
    by=hnp.arrays(np.float64, (12, 3), elements=st.floats(-5, 5).map(lambda x: round(x, 2))),
)
def test_correlation_is_that_of_numpy(of: np.ndarray, by: np.ndarray) -> None:
    expected = []
    for gene in range(3):
        if of[:, gene].std() > 1e-9:
            flat = by[:, gene].std() <= 1e-9
            expected.append(0 if flat else np.corrcoef(of[:, gene], by[:, gene])[0, 1])
    found = predict_genes.correlation(of, by)
    if expected:
        assert found == pytest.approx(np.mean(expected), abs=1e-6)
    else:
        assert np.isnan(found)


@given(seed=st.integers(0, 10**6))
def test_a_type_laid_on_another_is_predicted_by_its_own_batch_alone(seed: int) -> None:
    kind, batch = np.tile(np.repeat([0, 1], EACH), 2), np.repeat(["a", "b"], 2 * EACH)
    rng = np.random.default_rng(seed)
    values = (kind[:, None] + 0.1 * rng.normal(size=(4 * EACH, 4))).astype(np.float32)
    right = (50 * kind[:, None] + rng.normal(size=(4 * EACH, 2))).astype(np.float32)
    swapped = np.where((batch == "b")[:, None], 50 - right, right)
    assert min(predict_genes.from_nearest(right, values, batch)) > 0.9
    own, others = predict_genes.from_nearest(swapped, values, batch)
    assert own > 0.9
    assert others < -0.9
    chance = predict_genes.from_nearest(rng.normal(size=right.shape), values, batch)
    assert np.abs(chance).max() < 0.35


def test_batches_of_few_cells_are_not_asked() -> None:
    rng = np.random.default_rng(0)
    values, batch = rng.normal(size=(100, 2)).astype(np.float32), np.repeat(["a", "b", "few"], [40, 40, 20])
    own, others = predict_genes.from_nearest(values, values, batch)
    many = batch != "few"
    assert own == predict_genes.from_nearest(values[many], values[many], batch[many])[0]
    assert others > 0.5


def test_it_asks_for_hidden_variable_genes_and_prints_a_table(
    tmp_path: Path, small_adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("in", "out/answers"):
        (tmp_path / name).mkdir(parents=True)
    small_adata.write_h5ad(tmp_path / "in" / "one.h5ad")
    folders = {"--data": tmp_path / "in", "--hidden": tmp_path / "hidden", "--output": tmp_path / "out"}
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tmp_path / "in"), "--output", str(tmp_path / "hidden")])
    hide_genes.main()
    seen = ad.read_h5ad(tmp_path / "hidden" / "one.h5ad")
    values, batch = predict_genes.hidden_values(tmp_path / "in" / "one.h5ad", tmp_path / "hidden" / "one.h5ad", "batch")
    assert 0 < values.shape[1] <= small_adata.n_vars - seen.n_vars
    assert batch.tolist() == seen.obs["batch"].astype(str).tolist()
    assert np.abs(values[batch == batch[0]].mean(0)).max() < 1e-5

    Z = np.random.default_rng(0).normal(size=(seen.n_obs, 3)).astype(np.float32)
    for method, place in (("cellnorm", values), ("unintegrated", Z)):
        answer = ad.AnnData(obsm={"Z": place}, obs=seen.obs[[]])
        answer.write_h5ad(tmp_path / "out/answers" / f"one.{method}.0.h5ad")
    monkeypatch.setattr(sys, "argv", ["x", *(str(part) for pair in folders.items() for part in pair)])
    capsys.readouterr()
    predict_genes.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| own batch | cellnorm | unintegrated |"
    informed, chance = (float(number) for number in lines[2].split("|")[2:4])
    assert informed > chance + 0.05
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="no method"):
        predict_genes.main()
