import itertools
from collections.abc import Callable, Iterator
from typing import Any

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from pages import diagnosis_of, scores_of
from snapshots import snapshot

import cellnorm.pl as pl
from cellnorm.errors import DataError
from cellnorm.pl._history import smooth, terms_of
from cellnorm.pl._mixing import MAX_ROWS
from cellnorm.pl._picture import badges, curve_image, layout, point_image, same_level
from cellnorm.pl._scores import direction, split_scores
from cellnorm.pl._style import GREY, HUES, MAX_LEGEND, categorical, levels_of, natural, printable, sample_cells, shades

N = 600


@pytest.fixture(autouse=True)
def no_figure_stays_open() -> Iterator[None]:
    yield
    plt.close("all")


def cells(n_batches: int = 2, *, mixed: bool = True) -> ad.AnnData:
    """Cells whose batches lie in one cloud, or far from each other."""
    rng = np.random.default_rng(0)
    batch = np.arange(N) % n_batches
    x = rng.normal(size=(N, 5)) + (0 if mixed else 100 * batch[:, None])
    adata = ad.AnnData(np.ones((N, 2), np.float32))
    adata.obs["batch"] = [f"s{b}" for b in batch]
    adata.obs["depth"] = rng.random(N)
    adata.obsm["X_pca"], adata.obsm["X_umap"], adata.obsm["X_tsne"] = x, x[:, :2].copy(), x[:, 2:4].copy()
    adata.uns["cellnorm"] = {"history": {"geometry": np.ones(40), "loss": np.geomspace(9, 1, 40), "n_anchors": [7, 9]}}
    return adata


DRAWN: dict[str, Callable[[ad.AnnData], Any]] = {
    "embedding_grid": lambda a: pl.embedding_grid(a, ["batch", "depth"]),
    "mixing": lambda a: pl.mixing(a, "batch"),
    "history": lambda a: pl.history(a),
    "scores": lambda a: pl.scores(a, scores=scores_of("X_pca", "X_cellnorm")),
    "diagnosis": lambda a: pl.diagnosis(a, diagnosis=diagnosis_of("batch", "donor", "day")),
}


def drawn(axes: Any) -> None:
    """Draw the figure: wrong texts and sizes are found only then."""
    np.ravel(axes)[0].figure.canvas.draw()


def legend_texts(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    return [] if legend is None else [entry.get_text() for entry in legend.get_texts()]


def test_all_public_functions_are_drawn_here() -> None:
    assert set(DRAWN) == set(pl.__all__)


@pytest.mark.parametrize("n_batches", [2, 60])
@pytest.mark.parametrize("name", DRAWN)
def test_returns_axes_and_changes_nothing(name: str, n_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("plt.show was called"))
    adata = cells(n_batches)
    before, settings = snapshot(adata), dict(mpl.rcParams)
    state = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global state must stay
    axes = DRAWN[name](adata)
    assert all(isinstance(ax, Axes) for ax in np.ravel(axes))
    drawn(axes)
    assert snapshot(adata) == before
    assert dict(mpl.rcParams) == settings
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


@pytest.mark.parametrize("name", ["$\\frac{$", "_hidden", "a\nb\x07", "<b>", "", "n" * 300])
def test_names_are_shown_as_they_are(name: str) -> None:
    adata = cells()
    adata.obs["batch"] = np.where(adata.obs["batch"] == "s0", name, "other")
    adata.obs[name or "unnamed"] = adata.obs["batch"]
    adata.obsm[f"X_{name}"] = adata.obsm.pop("X_umap")
    drawn(pl.embedding_grid(adata, name or "unnamed"))
    drawn(pl.mixing(adata, "batch", use_rep="X_pca"))
    drawn(pl.scores(adata, scores=scores_of(name, "X_pca")))
    drawn(pl.diagnosis(adata, diagnosis=diagnosis_of(name, "day")))


# embedding_grid -----------------------------------------------------------------------------------------------------


def test_the_grid_has_a_row_for_each_column_and_a_panel_for_each_layout() -> None:
    assert pl.embedding_grid(cells(), ["batch", "depth"]).shape == (2, 2)
    assert pl.embedding_grid(cells(), "batch", use_rep="X_tsne").shape == (1, 1)


def test_few_levels_have_a_legend_and_many_have_not() -> None:
    assert legend_texts(pl.embedding_grid(cells(12), "batch")[0, -1]) == [f"s{i}" for i in range(12)]
    many = pl.embedding_grid(cells(60), "batch")[0]
    assert [legend_texts(ax) for ax in many] == [[], []]
    assert "60 levels" in many[0].get_xlabel()


def test_points_have_the_colours_of_their_levels() -> None:
    adata = cells()
    adata.obs["kind"] = pd.Categorical(np.where(np.arange(N) < 10, "a", "b"))
    adata.obs.loc[adata.obs_names[10:20], "kind"] = None
    adata.obsm["X_umap"] = np.column_stack([np.arange(N), np.zeros(N)])
    ax = pl.embedding_grid(adata, "kind", use_rep="X_umap")[0, 0]
    points = ax.collections[0]
    colors = dict(zip(points.get_offsets()[:, 0].astype(int).tolist(), points.get_facecolors()[:, :3], strict=True))
    assert np.allclose(colors[3], to_rgb(HUES[0]))
    assert np.allclose(colors[15], to_rgb(GREY))
    assert np.allclose(colors[30], to_rgb(HUES[1]))
    assert legend_texts(ax) == ["a", "b", "missing"]


def test_cells_are_drawn_in_random_order_the_same_each_time() -> None:
    first, again, other = (
        pl.embedding_grid(cells(), "batch", use_rep="X_umap", random_state=seed)[0, 0].collections[0].get_offsets()
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, cells().obsm["X_umap"])


def test_what_cannot_be_shown_is_said() -> None:
    with pytest.raises(DataError, match="'lab' was asked for, but the columns of obs are: 'batch', 'depth'"):
        pl.embedding_grid(cells(), "lab")
    with pytest.raises(DataError, match=r"5 dimensions.*'X_umap', 'X_tsne'"):
        pl.embedding_grid(cells(), "batch", use_rep="X_pca")
    with pytest.raises(DataError, match="names no column"):
        pl.embedding_grid(cells(), [])
    bare = cells()
    del bare.obsm["X_umap"], bare.obsm["X_tsne"]
    with pytest.raises(DataError, match=r"obsm holds: 'X_pca'. Run cellnorm.tl.umap"):
        pl.embedding_grid(bare, "batch")


# mixing -------------------------------------------------------------------------------------------------------------


def medians(ax: Axes) -> dict[str, float]:
    """Median of each row by its name, for the one representation that is shown."""
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    dots = next(line for line in ax.lines if line.get_marker() == "o")
    return dict(zip(names, np.asarray(dots.get_xdata()).tolist(), strict=True))


def test_mixing_reaches_both_ends() -> None:
    apart, mixed = (medians(pl.mixing(cells(mixed=m), "batch", use_rep="X_pca")) for m in (False, True))
    assert list(apart) == ["all cells", "s0", "s1"]
    assert max(apart.values()) == 0
    assert min(mixed.values()) > 0.95


def test_the_worst_mixed_batch_comes_first_and_at_most_sixty_are_shown() -> None:
    adata = cells(80)
    alone = adata.obs["batch"] == "s7"
    adata.obsm["X_pca"] = adata.obsm["X_pca"] + 1000.0 * alone.to_numpy()[:, None]
    names = list(medians(pl.mixing(adata, "batch", use_rep="X_pca")))
    assert names[:2] == ["all cells", "s7"]
    assert len(names) == MAX_ROWS + 1


def test_mixing_shows_all_tables_and_makes_components_where_there_are_none(small_adata: ad.AnnData) -> None:
    assert legend_texts(pl.mixing(cells(), "batch")) == ["X_pca"]
    small_adata.obsm["X_other"] = np.random.default_rng(0).normal(size=(small_adata.n_obs, 8))
    assert legend_texts(pl.mixing(small_adata, "batch")) == ["uncorrected", "X_other"]
    small_adata.X = np.full(small_adata.shape, np.nan)
    assert legend_texts(pl.mixing(small_adata, "batch")) == ["X_other"]
    del small_adata.obsm["X_other"]
    with pytest.raises(DataError, match="NaN"):
        pl.mixing(small_adata, "batch")


# history ------------------------------------------------------------------------------------------------------------


def test_history_shows_the_loss_first_whatever_order_a_file_gives() -> None:
    axes = pl.history(cells())
    assert [ax.get_title(loc="left") for ax in axes] == ["loss", "geometry"]
    assert np.allclose(axes[0].lines[0].get_ydata(), np.geomspace(9, 1, 40))


@pytest.mark.parametrize("info", [{}, {"history": {}}, {"history": "none"}, {"history": {"n_anchors": [1]}}])
def test_no_history_is_said(info: dict[str, Any]) -> None:
    assert terms_of(info) == {}
    adata = ad.AnnData(np.ones((3, 2)), uns={"foo": info})
    with pytest.raises(DataError, match=r"uns\['foo'\]\['history'\]"):
        pl.history(adata, key_added="foo")


@given(st.lists(st.floats(-1e6, 1e6), max_size=80))
def test_a_running_mean_stays_within_its_values(values: list[float]) -> None:
    given_, smoothed = np.array(values), smooth(np.array(values))
    assert smoothed.shape == given_.shape
    if values:
        assert smoothed.min() >= given_.min() - 1e-6
        assert smoothed.max() <= given_.max() + 1e-6
    assert np.allclose(smooth(np.full(50, 3.0)), 3.0)


# scores -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intervals", [False, True])
def test_scores_are_where_they_belong(intervals: bool) -> None:
    ax = pl.scores(cells(), scores=scores_of("X_pca", "X_cellnorm", intervals=intervals))
    assert [tick.get_text() for tick in ax.get_yticklabels()][-1] == "Total"
    lines = [line for line in ax.lines if len(np.atleast_1d(line.get_xdata())) == 5]
    assert [line.get_label() for line in lines] == ["X_pca", "X_cellnorm"]
    assert len({line.get_marker() for line in lines}) == 2
    assert np.allclose(np.asarray(lines[1].get_xdata())[-1], 0.36234)
    widths = [np.ptp(segment[:, 0]) for lines in ax.collections for segment in lines.get_segments() if len(segment)]
    assert len(widths) == (10 if intervals else 0)
    assert np.allclose(widths, 0.02)


def test_scores_are_computed_when_none_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def evaluate(adata: ad.AnnData, batch_key: str, label_key: str | None) -> pd.DataFrame:
        asked.append((batch_key, label_key))
        return scores_of("X_pca", intervals=False)

    monkeypatch.setattr("cellnorm.pl._scores.evaluate", evaluate)
    pl.scores(cells(), "batch", "cell_type")
    assert asked == [("batch", "cell_type")]
    with pytest.raises(DataError, match="need a batch_key, found None"):
        pl.scores(cells())


def test_tables_that_are_no_scores_are_refused() -> None:
    with pytest.raises(DataError, match="must be numbers"):
        split_scores(pd.DataFrame({"X_pca": ["high"]}))
    with pytest.raises(DataError, match=r"need columns .* found \['mean'\]"):
        split_scores(pd.DataFrame({("X_pca", "mean"): [0.1]}))


def test_direction_comes_from_the_table_of_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    from cellnorm.metrics.table import METRICS, Metric

    low = Metric("Worse", "batch", "", "", higher_is_better=False)
    monkeypatch.setattr("cellnorm.pl._scores.METRICS", (*METRICS, low))
    assert [direction(name) for name in ("Total", "Worse", "unknown")] == [1, -1, 1]


# diagnosis ----------------------------------------------------------------------------------------------------------


def test_verdicts_are_told_by_word_marker_and_colour() -> None:
    ax = pl.diagnosis(cells(), diagnosis=diagnosis_of("batch", "donor", "day"))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["batch", "donor", "day"]
    assert [text.get_text().strip() for text in ax.texts] == ["strong", "mild", "none"]
    dots = [line for line in ax.lines if line.get_marker() != "None"]
    assert len({line.get_marker() for line in dots}) == len({line.get_color() for line in dots}) == 3
    assert np.allclose([np.ravel(line.get_xdata())[0] for line in dots], [0.3, 0.15, 0.1])


def test_a_diagnosis_is_made_when_none_is_given(small_adata: ad.AnnData) -> None:
    ax = pl.diagnosis(small_adata, "batch")
    assert ax.get_yticklabels()[0].get_text() == "batch"
    with pytest.raises(DataError, match="No column of obs can be judged"):
        pl.diagnosis(small_adata, diagnosis={"columns": []})


# colours, levels, samples -------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes 2009, severity 1.0, for linear RGB.
SEEN_BY = {
    "all cones": np.eye(3),
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no blue cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(colors: list[str], eye: Any) -> np.ndarray:
    """CIE L*a*b* of hex colours as an eye sees them."""
    rgb = np.array([to_rgb(c) for c in colors])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.asarray(eye).T, 0, 1)
    xyz = seen @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    xyz = xyz / [0.9505, 1.0, 1.089]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("eye", SEEN_BY)
def test_every_eye_tells_the_colours_apart(eye: str) -> None:
    assert least_difference(shades(MAX_LEGEND), eye) > 14
    lightness = lab(shades(MAX_LEGEND), SEEN_BY[eye])[:, 0]
    assert 30 < lightness.min() < lightness.max() < 83  # neither vanishes on a black nor on a white page
    assert len(set(shades(60))) == 60


def least_difference(colors: list[str], eye: str) -> float:
    """Smallest distance between two of the colours; 2.3 is just noticeable side by side."""
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(lab(colors, SEEN_BY[eye]), 2))


def test_red_and_green_would_not_have_passed() -> None:
    pair = ["#c05040", "#7a7a30"]
    assert least_difference(pair, "all cones") > 40
    assert least_difference(pair, "no green cones") < 10


def test_levels_are_in_natural_order_and_missing_is_none_of_them() -> None:
    levels = levels_of(pd.Series(["b10", None, "b9", "B1"], dtype="category"))
    assert levels.names == ["B1", "b9", "b10"]
    assert levels.codes.tolist() == [2, -1, 1, 0]
    assert np.allclose(levels.of_cells()[1], to_rgb(GREY))
    assert sorted(["a10", "a9", "10", "9"], key=natural) == ["9", "10", "a9", "a10"]


@given(st.lists(st.text(max_size=5) | st.none() | st.integers(0, 9), max_size=60))
def test_levels_give_every_label_back(labels: list[Any]) -> None:
    levels = levels_of(np.array(labels, dtype=object))
    back = [None if code < 0 else levels.names[code] for code in levels.codes]
    assert back == [None if label is None else str(label) for label in labels]
    assert len(levels.colors) == len(levels.names)
    assert levels.distinct == (len(levels.names) <= MAX_LEGEND)


def test_which_columns_are_levels() -> None:
    assert categorical(pd.Series([True, False]))
    assert categorical(pd.Series([1, 2, 1]))
    assert not categorical(pd.Series(range(100)))
    assert not categorical(pd.Series([0.5, 1.0]))


@given(st.text(max_size=80))
def test_names_become_one_short_line(name: str) -> None:
    assert printable(name).isprintable()
    assert len(printable(name)) <= 32


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(1, 100))
def test_a_sample_holds_each_batch_and_no_cell_twice(codes: list[int], most: int) -> None:
    chosen = sample_cells(np.array(codes), most, 0)
    assert len(set(chosen.tolist())) == len(chosen) <= most + len(set(codes))
    assert set(np.array(codes)[chosen]) == set(codes)
    if most >= len(codes):
        assert sorted(chosen.tolist()) == list(range(len(codes)))


# pictures for a page ------------------------------------------------------------------------------------------------


def test_same_level_reaches_both_ends() -> None:
    rng = np.random.default_rng(0)
    codes = np.arange(400) % 2
    apart, chance = same_level(rng.normal(size=(400, 2)) + 50 * codes[:, None], levels_of(codes))
    mixed, _ = same_level(rng.normal(size=(400, 2)), levels_of(codes))
    assert apart == 1
    assert abs(mixed - chance) < 0.05
    piled, _ = same_level(np.zeros((400, 2)), levels_of(["one"] * 400))  # duplicates of the cell are neighbours too
    assert piled == 1
    assert np.isnan(same_level(np.zeros((1, 2)), levels_of(["a"]))).all()


def test_a_level_in_two_places_gets_two_numbers() -> None:
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(300, 2)) + np.repeat([[0, 0], [60, 0], [0, 60]], 100, axis=0)
    found = badges(xy, levels_of(["a"] * 200 + ["b"] * 100))
    assert [b.number for b in found] == [1, 1, 2]
    assert sorted(b.left > 50 for b in found[:2]) == [False, True]
    assert found[2].top < 50
    assert badges(xy[:50], levels_of([str(i) for i in range(50)])) == []
    piled = badges(xy[:100], levels_of([str(i % 5) for i in range(100)]))  # five levels in one place
    assert sorted({b.number for b in piled}) == [1, 2, 3, 4, 5]
    pairs = itertools.combinations(piled, 2)
    assert all(abs(a.left - b.left) >= 4.5 or abs(a.top - b.top) >= 4.4 for a, b in pairs)


def test_pictures_are_png_of_the_promised_shape() -> None:
    uri = point_image(np.random.default_rng(0).normal(size=(50, 2)), levels_of(["a"] * 50))
    assert uri.startswith("data:image/png;base64,iVBOR")
    assert curve_image(np.array([2.0, np.nan, 1.0])).startswith("data:image/png;base64,iVBOR")
    assert plt.get_fignums() == []


def test_a_layout_may_have_more_cells_than_scanpy_takes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def umap(cells: ad.AnnData, *, random_state: int, key_added: str) -> None:
        cells.obsm[key_added] = np.zeros((cells.n_obs, 2))

    monkeypatch.setattr("cellnorm.pl._picture.sc.tl.umap", umap)
    xy, name = layout(np.random.default_rng(0).normal(size=(4200, 5)), 0)
    assert (xy.shape, name) == ((4200, 2), "UMAP")


def test_too_few_cells_for_a_umap_are_shown_as_they_are() -> None:
    xy, name = layout(np.arange(12.0).reshape(4, 3), 0)
    assert name == "first two dimensions"
    assert np.array_equal(xy, np.arange(12.0).reshape(4, 3)[:, :2])
    assert layout(np.ones((4, 1)), 0)[0].shape == (4, 2)
