"""The ablation is what it says: every variant changes the answer, by the piece it names, and nothing runs twice."""

import argparse
import inspect
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import ablation
import ablation_pieces as pieces
import ablation_variants as variants
import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from ablation_variants import FULL, SEARCH, UNCORRECTED, VARIANTS, embed, parts, replaced
from clouds import Clouds, clouds
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cellnorm import CellNorm, autoencoder, components, fitting, training
from cellnorm.anchors import find_anchors
from cellnorm.layers import MatchedBatchNorm, Pairs

SMALL: dict[str, Any] = {"n_steps": 10, "n_latent": 6, "n_pairs": 32, "n_hidden": 16, "learning_rate": 0.01}
NORMS = {
    "none": pieces.NoNorm,
    "layer": pieces.LayerNorm,
    "shared": pieces.SharedNorm,
    "per-batch": pieces.BatchwiseNorm,
}
REAL = Path(ablation.__file__).with_name("README.md")


@cache
def cells() -> Clouds:
    """Two batches that share two types; each has one that the other lacks, so that anchors are refused."""
    return clouds([[40, 40, 50, 0], [40, 40, 0, 50]], offset=1.0)


@cache
def embedded(row: str) -> Any:
    return embed(row, cells().measured, cells().batch, 0, **SMALL)


def fitted(row: str) -> CellNorm:
    with VARIANTS[row].change():
        return CellNorm(**variants.FIXED, **SMALL, **VARIANTS[row].params).fit(cells().measured, cells().batch)


# Variants --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [row for row in ablation.ROWS if row != FULL])
def test_every_row_differs_from_the_full_method(row: str) -> None:
    found, full = embedded(row), embedded(FULL)
    assert np.isfinite(found).all()
    assert len(found) == len(full)
    assert found.shape != full.shape or np.abs(found - full).max() > 1e-3


def test_all_rows_differ_from_each_other() -> None:
    assert len({embedded(row).tobytes() for row in ablation.ROWS}) == len(ablation.ROWS)


def test_nothing_stays_replaced() -> None:
    before = embedded(FULL)
    for row in ("inside", "no-refresh", "shared+no-offsets"):
        embedded(row)
    assert np.array_equal(embed(FULL, cells().measured, cells().batch, 0, **SMALL), before)


def test_the_full_row_is_the_method_and_the_uncorrected_row_the_components() -> None:
    own = CellNorm(**variants.FIXED, **SMALL).fit_transform(cells().measured, cells().batch)
    assert np.array_equal(embedded(FULL), own)
    assert np.array_equal(embedded(UNCORRECTED), cells().measured)


def test_a_piece_that_is_gone_is_an_error_and_an_exception_leaves_all_as_it_was() -> None:
    with pytest.raises(AttributeError, match=r"find_sorts of cellnorm\.fitting"), replaced(fitting, "find_sorts", None):
        pass
    old = fitting.find_kinds
    with pytest.raises(RuntimeError), replaced(fitting, "find_kinds", None):
        raise RuntimeError
    assert fitting.find_kinds is old


@pytest.mark.parametrize("row", VARIANTS)
def test_the_search_and_the_network_are_as_they_were_after_a_variant(row: str) -> None:
    named = [(autoencoder, "MatchedBatchNorm"), (fitting, "train"), (fitting, "Autoencoder"), (training, SEARCH)]
    before = [getattr(where, name) for where, name in named]
    with VARIANTS[row].change():
        changed = [getattr(where, name) for where, name in named] != before
    assert [getattr(where, name) for where, name in named] == before
    assert changed or row not in {*NORMS, "skip", "no-skip", "no-refresh", "inside"}


def test_rows_are_variants_joined() -> None:
    assert parts("shared+no-shift") == ["shared", "no-shift"]
    assert variants.label("shared+no-shift") == "shared BatchNorm, no matched shift at the input"
    with pytest.raises(ValueError, match="no such variant: bogus"):
        parts("shared+bogus")
    for row in ("full+shared", "shared+uncorrected"):
        with pytest.raises(ValueError, match="stand alone"):
            parts(row)


def test_each_variant_changes_what_it_names() -> None:
    full = fitted(FULL)
    assert float(fitted("no-shift").net_.shift.abs().max()) == 0 < float(full.net_.shift.abs().max())
    assert float(fitted("no-offsets").net_.offsets.abs().max()) == 0 < float(full.net_.offsets.abs().max())
    assert torch.equal(fitted("no-shrinking").net_.axes, torch.eye(6))
    first, second = fitted("no-refresh").history_.n_anchors
    assert first == second == full.history_.n_anchors[0] != full.history_.n_anchors[1]
    assert fitted("no-refusal").history_.n_anchors[0] > full.history_.n_anchors[0]
    for row, term in (("no-kinship", "kinship"), ("no-reconstruction", "reconstruction")):
        assert not fitted(row).history_.terms[term].any()
        assert full.history_.terms[term].all()


def test_without_skip_connections_the_blocks_stand_alone_and_do_not_start_at_zero() -> None:
    config = autoencoder.AutoencoderConfig(5, 2, 3, 8, 2, 0.0)
    net = pieces.NoSkip(config).eval()
    x, batch = torch.randn(7, 5), torch.arange(7) % 2
    net.start(x, batch)
    torch.testing.assert_close(net.encode(x, batch), net.encoder(x, batch, None))
    assert bool((net.encode(x, batch) != 0).all())
    told = torch.cat([x[:, :3], torch.eye(2)[batch]], dim=1)
    torch.testing.assert_close(net.decode(x[:, :3], batch), net.decoder(told, batch, None))


def test_with_a_skip_connection_in_the_encoder_it_starts_as_the_identity() -> None:
    net = pieces.SkipEncoder(autoencoder.AutoencoderConfig(5, 2, 3, 8, 2, 0.0)).eval()
    x, batch = torch.randn(7, 5), torch.arange(7) % 2
    net.shift[1] = 3.0
    net.start(x, batch)
    torch.testing.assert_close(net.encode(x, batch), (x - 3 * batch[:, None])[:, :3])
    torch.nn.init.normal_(net.encoder.reduce.weight)
    moved = net.encode(x, batch) - (x - 3 * batch[:, None])[:, :3]
    torch.testing.assert_close(moved, net.encoder(x - 3 * batch[:, None], batch, None))


@pytest.mark.parametrize("name", ["full", *NORMS])
def test_with_every_norm_the_encoder_starts_near_the_components(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name != "full":
        monkeypatch.setattr(autoencoder, "MatchedBatchNorm", NORMS[name])
    torch.manual_seed(0)
    net = autoencoder.Autoencoder(autoencoder.AutoencoderConfig(5, 2, 3, 64, 2, 0.0))
    x, batch = 4 + torch.randn(2000, 5) * torch.tensor([5.0, 3, 1, 1, 1]), torch.arange(2000) % 2
    net.start(x, batch)
    missed = (net.encode(x, batch) - x[:, :3]).square().sum() / (x[:, :3] - x[:, :3].mean(0)).square().sum()
    assert missed < 0.05


# Norms -----------------------------------------------------------------------------------------------------------


def some_cells(seed: int, n_cells: int = 60, n_batches: int = 3) -> tuple[Tensor, Tensor, Pairs]:
    torch.manual_seed(seed)
    batch = torch.arange(n_cells) % n_batches
    x = torch.randn(n_cells, 4) * (1 + batch[:, None]) + 5 * batch[:, None]
    return x, batch, Pairs(torch.arange(0, 30, 3), torch.arange(1, 31, 3), torch.ones(10))


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_has_the_interface_and_the_parameters_of_the_one_it_replaces(name: str) -> None:
    ours, theirs = NORMS[name](4, 3), MatchedBatchNorm(4, 3)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    named = [list(inspect.signature(norm.forward).parameters) for norm in (ours, theirs)]
    assert named[0] == named[1]


@given(seed=st.integers(0, 10**6), training=st.booleans())
def test_shared_is_one_map_for_all_batches(seed: int, training: bool) -> None:
    x, batch, pairs = some_cells(seed)
    norm = pieces.SharedNorm(4, 3)
    norm(x, batch, pairs)
    norm.train(training)
    torch.testing.assert_close(norm(x, batch, pairs), norm(x, torch.zeros_like(batch), pairs))
    assert not norm.shift.any()
    assert bool((norm.spread == 1).all())


def test_shared_is_plain_batch_norm() -> None:
    x, batch, pairs = some_cells(0)
    torch.testing.assert_close(pieces.SharedNorm(4, 3)(x, batch, pairs), torch.nn.BatchNorm1d(4)(x))


@given(seed=st.integers(0, 10**6))
def test_per_batch_centres_and_scales_every_batch(seed: int) -> None:
    x, batch, pairs = some_cells(seed)
    norm = pieces.BatchwiseNorm(4, 3, momentum=1.0)
    for values in (norm(x, batch, pairs), norm.eval()(x, batch)):
        for b in range(3):
            torch.testing.assert_close(values[batch == b].mean(0), torch.zeros(4), atol=1e-4, rtol=0)
            torch.testing.assert_close(values[batch == b].var(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)


def test_per_batch_keeps_its_averages_of_a_batch_with_a_single_cell() -> None:
    x, batch, pairs = some_cells(0)
    norm = pieces.BatchwiseNorm(4, 4)
    batch[0] = 3
    values = norm(x, batch, pairs)
    torch.testing.assert_close(values[0], x[0])
    assert not norm.shift[3].any()
    assert bool(norm.shift[:3].any(1).all())


@given(seed=st.integers(0, 10**6), training=st.booleans())
def test_layer_norm_and_none_look_at_one_cell_alone(seed: int, training: bool) -> None:
    x, batch, pairs = some_cells(seed)
    for name in ("layer", "none"):
        norm = NORMS[name](4, 3).train(training)
        values = norm(x, batch, pairs)
        torch.testing.assert_close(values[:7], norm(x[:7], batch[:7] * 0, None))
    torch.testing.assert_close(pieces.LayerNorm(4, 3)(x, batch).mean(1), torch.zeros(len(x)), atol=1e-5, rtol=0)
    assert torch.equal(pieces.NoNorm(4, 3)(x, batch), x)


# Anchors inside the minibatch ------------------------------------------------------------------------------------


def test_among_all_cells_the_anchors_are_those_of_the_search() -> None:
    x, batch = cells().measured, cells().batch
    found, known = pieces.found_among(np.arange(len(x)), x, batch, 20), find_anchors(x, batch, 20)
    assert set(zip(found.left, found.right, strict=True)) == set(zip(known.left, known.right, strict=True))


@given(size=st.integers(2, 400), seed=st.integers(0, 100))
def test_drawn_cells_come_once_and_from_every_batch(size: int, seed: int) -> None:
    batch = cells().batch
    found = pieces.drawn(batch, size, np.random.default_rng(seed))
    assert len(np.unique(found)) == len(found) <= size + 2
    assert set(batch[found]) == {0, 1}
    assert (np.diff(batch[found]) >= 0).all()


def test_pairs_inside_come_from_few_cells_and_from_different_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, terms = [], training.loss_terms

    def watched(net: Any, data: Tensor, labels: Tensor, mini: Any, *more: Any) -> Any:
        seen.append((mini, net.training))
        return terms(net, data, labels, mini, *more)

    monkeypatch.setattr(training, "loss_terms", watched)
    monkeypatch.setattr(variants, "DRAWN", 2)
    fitted("inside")
    assert len(seen) == SMALL["n_steps"]
    for mini, in_training in seen:
        left, right = mini.cells[: mini.n_pairs], mini.cells[mini.n_pairs : 2 * mini.n_pairs]
        assert in_training
        assert 0 < mini.n_pairs <= SMALL["n_pairs"] + 1
        assert len(np.unique(mini.cells)) == len(mini.cells)
        assert (cells().batch[left] != cells().batch[right]).all()


# Sets, results and the table -------------------------------------------------------------------------------------


@given(counts=st.lists(st.integers(5, 200), min_size=1, max_size=5), size=st.integers(50, 400))
def test_a_sample_has_each_batch_with_its_share(counts: list[int], size: int) -> None:
    batch = np.repeat(np.arange(len(counts)), counts)
    found = ablation.sample(batch, size)
    assert len(found) <= size
    assert (np.diff(found) > 0).all()
    share = min(1.0, size / len(batch))
    assert np.abs(np.bincount(batch[found], minlength=len(counts)) - share * np.array(counts)).max() <= 1


def test_a_set_is_prepared_without_matrix_and_with_types_for_scores_alone(
    small_adata: ad.AnnData, tmp_path: Path
) -> None:
    small_adata.write_h5ad(tmp_path / "tiny.h5ad")
    found = ablation.prepared(tmp_path / "tiny.h5ad", 120)
    assert found.X is None
    assert found.obsm["X_pca"].shape == (120, 50)
    assert list(found.obs["cell_type"]) == list(small_adata.obs["cell_type"][found.obs_names])


@pytest.fixture
def embeddings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Rows and seeds that were embedded, by a method and scores that take no time."""
    asked = []

    def embed(row: str, pcs: Any, batch: Any, seed: int) -> Any:
        asked.append((row, seed))
        return pcs * (np.nan if row == "none" else 1)

    def scored(cells: Any, found: dict[str, Any]) -> pd.DataFrame:
        return pd.DataFrame(0.5, index=list(found), columns=ablation.SCORES)

    monkeypatch.setattr(ablation, "embed", embed)
    monkeypatch.setattr(ablation, "scored", scored)
    return asked


def arguments(folder: Path, rows: list[str], seeds: list[int], n_cells: int = 90) -> argparse.Namespace:
    return argparse.Namespace(rows=rows, seeds=seeds, cells=n_cells, output=folder / "out.csv")


def test_what_is_there_is_not_done_again(
    small_adata: ad.AnnData, tmp_path: Path, embeddings: list[tuple[str, int]]
) -> None:
    small_adata.write_h5ad(tmp_path / "tiny.h5ad")
    assert ablation.run(tmp_path / "tiny.h5ad", arguments(tmp_path, ["full", "layer"], [0]))
    assert ablation.run(tmp_path / "tiny.h5ad", arguments(tmp_path, ["full", "layer", "shared"], [0, 1]))
    assert embeddings == [("full", 0), ("layer", 0), ("shared", 0), ("full", 1), ("layer", 1), ("shared", 1)]
    assert len(ablation.load(tmp_path / "out.csv")) == 6
    ablation.run(tmp_path / "tiny.h5ad", arguments(tmp_path, ["full"], [0], n_cells=60))
    assert embeddings[6:] == [("full", 0)]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_an_embedding_that_is_not_finite_is_said_and_left_out(
    small_adata: ad.AnnData, tmp_path: Path, embeddings: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    small_adata.write_h5ad(tmp_path / "tiny.h5ad")
    assert not ablation.run(tmp_path / "tiny.h5ad", arguments(tmp_path, ["full", "none"], [0]))
    assert not ablation.run(tmp_path / "tiny.h5ad", arguments(tmp_path, ["none"], [1]))
    assert "tiny, none, seed 0: the embedding is not finite" in capsys.readouterr().err
    assert list(ablation.load(tmp_path / "out.csv")["row"]) == ["full"]


def test_all_rows_go_to_one_benchmark_with_the_components_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Benchmarker:
        def __init__(self, *given: Any, **named: Any) -> None:
            asked.append((given[1:], named))

        def benchmark(self) -> None: ...

        def get_results(self, *, min_max_scale: bool) -> pd.DataFrame:
            names = [*asked[0][0][2], "Metric Type"]
            return pd.DataFrame([[0.1, 0.2, 0.3]] * 2 + [["a", "b", "c"]], index=names, columns=ablation.SCORES)

    fake = types.SimpleNamespace(Benchmarker=Benchmarker, BioConservation=lambda **named: named)
    monkeypatch.setitem(sys.modules, "scib_metrics", types.ModuleType("scib_metrics"))
    monkeypatch.setitem(sys.modules, "scib_metrics.benchmark", fake)
    some = ad.AnnData(obs=pd.DataFrame(index=["a", "b"]), obsm={"X_pca": np.eye(2)})
    found = ablation.scored(some, {"full": np.eye(2), "layer": np.eye(2)})
    assert found.loc["layer", "Total"] == 0.3
    ((given_, named),) = asked
    assert given_ == ("batch", "cell_type", ["full", "layer"])
    assert named["pre_integrated_embedding_obsm_key"] == "X_pca"
    assert named["bio_conservation_metrics"]["nmi_ari_cluster_labels_leiden"]


RESULTS = pd.DataFrame(
    [
        ["a", "full", 0, 90, 0.6, 0.8, 0.70],
        ["a", "full", 1, 90, 0.6, 0.8, 0.74],
        ["b", "full", 0, 90, 0.5, 0.5, 0.50],
        ["a", "shared", 0, 90, 0.5, 0.8, 0.68],
        ["b", "shared", 0, 90, 0.5, 0.7, 0.62],
        ["a", "layer", 1, 90, 0.4, 0.6, 0.64],
    ],
    columns=[*ablation.KEY, *ablation.SCORES],
)


def test_changes_are_of_the_same_sets_and_seeds() -> None:
    found = ablation.table(RESULTS, ["full", "shared", "layer"], ["a", "b"]).set_index("")
    full, shared, layer = (found.loc[VARIANTS[row].label] for row in ("full", "shared", "layer"))
    assert (full["a"], full["b"], full["total"]) == pytest.approx((0.72, 0.5, 0.61))
    assert full["worse"] == ""
    assert (shared["mixing"], shared["biology"], shared["total"]) == pytest.approx((0.5, 0.75, 0.65))
    assert (shared["change"], shared["worse"]) == (pytest.approx((-0.02 + 0.12) / 2), "1 of 2")
    assert (layer["change"], layer["worse"]) == (pytest.approx(-0.1), "1 of 1")
    assert np.isnan(layer["b"])


def test_the_table_says_how_much_seeds_alone_change() -> None:
    text = ablation.generated(RESULTS, ["full", "shared"], ["a", "b"], 90)
    assert "standard deviation of 0.028" in text
    assert "at most 90 cells of a set, seeds 0, 1." in text
    assert "deviation" not in ablation.generated(RESULTS[RESULTS["seed"] == 0], ["full"], ["a"], 90)
    lines = text.splitlines()[2:]
    assert len({len(line) for line in lines}) == 1
    assert [part.strip() for part in lines[3].split("|")[1:-1]] == [
        "shared BatchNorm", ".680", ".620", ".500", ".750", ".650", "+.050", "1 of 2",
    ]  # fmt: skip


def test_the_readme_keeps_what_stands_around_the_table(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n\n{ablation.BEGIN}\nold\n{ablation.END}\n\nbelow\n")
    ablation.write_readme("new", readme)
    assert readme.read_text() == f"above\n\n{ablation.BEGIN}\n\nnew\n\n{ablation.END}\n\nbelow\n"
    readme.write_text("nothing")
    with pytest.raises(SystemExit, match="has no place for the table"):
        ablation.write_readme("new", readme)
    for mark in (ablation.BEGIN, ablation.END):
        assert REAL.read_text().count(mark) == 1


def test_the_command_prints_the_table_and_names_what_is_wrong(
    small_adata: ad.AnnData,
    tmp_path: Path,
    embeddings: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_adata.write_h5ad(tmp_path / "tiny.h5ad")
    common = ["ablation.py", "--output", str(tmp_path / "out.csv"), "--seeds", "0", "--cells", "90"]

    def main(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", [*common, *more])
        return ablation.main()

    assert main() == 1
    assert "no results yet" in capsys.readouterr().err
    assert main("--data", str(tmp_path), "tiny", "--rows", "full", "shared+no-shift") == 0
    said = capsys.readouterr().out
    assert "shared BatchNorm, no matched shift at the input" in said
    assert (tmp_path / "out.md").read_text() == said
    assert main("--rows", "full") == 0
    assert len(embeddings) == 2
    with pytest.raises(SystemExit, match="no such sets"):
        main("--data", str(tmp_path), "large")
    with pytest.raises(SystemExit):
        main("--rows", "bogus")
    assert "no such variant: bogus" in capsys.readouterr().err


def test_the_search_that_is_replaced_is_the_one_that_is_used() -> None:
    for module in (components, training):
        assert f"{SEARCH}(" in inspect.getsource(module)
