"""The comparison is honest: labels reach no method, cells keep their order, failures show, nothing runs twice."""

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import peers
import peers_methods
import peers_scores
import peers_table
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from peers_methods import METHODS, Method, UnfitError
from scipy.stats import t

ROOT = Path(__file__).resolve().parent.parent
SECRET = "labelThatNoMethodMaySee"


@pytest.fixture
def labelled(small_adata: ad.AnnData, tmp_path: Path) -> Path:
    """A set whose labels stand everywhere a label can stand: obs, names of cells, obsm, uns, layers."""
    cells = small_adata[:90].copy()
    cells.obs["cell_type"] = (SECRET + cells.obs["cell_type"].astype(str)).astype("category")
    cells.obs_names = [f"{kind}{i}" for i, kind in enumerate(cells.obs["cell_type"])]
    cells.obsm["kinds"] = pd.get_dummies(cells.obs["cell_type"]).astype(float)
    cells.uns["kinds"] = list(cells.obs["cell_type"])
    cells.layers["kinds"] = cells.X.copy()
    (tmp_path / "sets").mkdir()
    cells.write_h5ad(tmp_path / "sets" / "tiny.h5ad")
    return tmp_path / "sets" / "tiny.h5ad"


@pytest.fixture
def made(labelled: Path, tmp_path: Path) -> tuple[Path, Path]:
    """What a method may see: the blind file and the prepared set."""
    file, ready = tmp_path / "file.h5ad", tmp_path / "ready.h5ad"
    peers_scores.prepare(labelled, "batch", file, ready)
    return file, ready


def method(run: Any, given_: str = "log", *, seeded: bool = True) -> Method:
    return Method("scanpy", ("scanpy",), given_, seeded, run, "as a test")


def run_alone(name: str, made: tuple[Path, Path], folder: Path) -> dict[str, Any]:
    peers.one(name, "0", str(made[0]), str(made[1]), str(folder / "answer.h5ad"), str(folder / "result.json"))
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


# What methods see ------------------------------------------------------------------------------------------------


def test_no_label_is_in_what_methods_get(labelled: Path, made: tuple[Path, Path]) -> None:
    assert SECRET.encode() in labelled.read_bytes()
    for path in made:
        assert SECRET.encode() not in path.read_bytes()
        cells = ad.read_h5ad(path)
        assert list(cells.obs) == ["batch"]
        assert set(cells.layers) <= {"counts"}
        assert set(cells.obsm) <= {"X_pca"}


@pytest.mark.parametrize("given_", ["log", "file"])
def test_a_method_gets_no_more_than_that(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_: str
) -> None:
    seen = []

    def spy(what: Any, seed: int) -> Any:
        seen.append(what)
        return np.zeros((90, 2))

    monkeypatch.setitem(METHODS, "ComBat", method(spy, given_))
    assert "failed" not in run_alone("ComBat", made, tmp_path)
    if given_ == "file":
        assert seen == [made[0]]
    else:
        assert list(seen[0].obs) == ["batch"]
        assert SECRET not in str(list(seen[0].obs_names)) + str(seen[0].uns)


def test_the_preparation_is_the_usual_one(labelled: Path, made: tuple[Path, Path]) -> None:
    import scanpy as sc

    raw, ready = ad.read_h5ad(labelled), ad.read_h5ad(made[1])
    sc.pp.filter_genes(raw, min_cells=3)
    sc.pp.normalize_total(raw, target_sum=1e4)
    sc.pp.log1p(raw)
    np.testing.assert_allclose(raw[:, ready.var_names].X.toarray(), ready.X.toarray(), rtol=1e-6)
    assert ready.obsm["X_pca"].shape == (90, 50)
    assert np.all(np.mod(ready.layers["counts"].data, 1) == 0)


def test_a_set_without_counts_has_no_counts_to_give(
    small_adata: ad.AnnData, made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = peers_scores.blind(small_adata, "batch")
    blind.X = blind.X.log1p()
    ready = peers_scores.prepared(blind)
    assert "counts" not in ready.layers
    ready.write_h5ad(tmp_path / "logs.h5ad")
    monkeypatch.setitem(METHODS, "scVI", method(lambda cells, seed: cells.obsm["X_pca"], "counts"))
    assert run_alone("scVI", (made[0], tmp_path / "logs.h5ad"), tmp_path) == {
        "failed": "needs counts, and there are none"
    }
    assert "failed" not in run_alone("scVI", made, tmp_path)


# Answers ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=30))
def test_scanorama_gives_cells_back_in_their_order(batch: list[str]) -> None:
    obs = pd.DataFrame({"batch": pd.Categorical(batch)}, index=[f"cell{i}" for i in range(len(batch))])
    cells = ad.AnnData(np.arange(len(batch), dtype=float)[:, None], obs=obs)

    def integrate(parts: list[ad.AnnData], seed: int) -> None:
        for part in parts:
            assert part.obs["batch"].nunique() == 1
            part.obsm["X_scanorama"] = part.X + 100

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "scanorama", types.SimpleNamespace(integrate_scanpy=integrate))
        found = peers_methods.scanorama(cells, 0)
    np.testing.assert_array_equal(found, cells.X + 100)


@pytest.mark.parametrize("transposed", [False, True])
def test_harmony_may_answer_either_way_round(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, transposed: bool
) -> None:
    cells = ad.read_h5ad(made[1])
    answer = cells.obsm["X_pca"].T if transposed else cells.obsm["X_pca"]
    fake = types.SimpleNamespace(run_harmony=lambda *args, **kwargs: types.SimpleNamespace(Z_corr=answer))
    monkeypatch.setitem(sys.modules, "harmonypy", fake)
    np.testing.assert_array_equal(peers_methods.harmony(cells, 0), cells.obsm["X_pca"])


@pytest.mark.parametrize(
    ("answer", "said"),
    [(np.zeros((89, 2)), "for 90 cells"), (np.full((90, 2), np.nan), "not finite"), (np.zeros(90), "of shape")],
)
def test_an_answer_that_is_none_is_a_failure(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, said: str
) -> None:
    monkeypatch.setitem(METHODS, "ComBat", method(lambda cells, seed: answer))
    assert said in run_alone("ComBat", made, tmp_path)["failed"]


def test_cells_in_another_order_are_not_scored(labelled: Path, made: tuple[Path, Path], tmp_path: Path) -> None:
    cells = ad.read_h5ad(made[1])
    ad.AnnData(obs=cells.obs[::-1], obsm={"Z": cells.obsm["X_pca"][::-1]}).write_h5ad(tmp_path / "turned.h5ad")
    with pytest.raises(ValueError, match="order"):
        peers_scores.Judge(labelled, made[1], "cell_type").scores(tmp_path / "turned.h5ad")


# Scores ----------------------------------------------------------------------------------------------------------


def test_truth_is_kept_wholly_partly_or_not_at_all() -> None:
    rng = np.random.default_rng(0)
    designed, batch = rng.dirichlet([1, 1, 1], 120), np.arange(120) % 2
    shifted = np.column_stack([designed, 100.0 * batch])
    of_all, between = peers_scores.TRUTH
    assert peers_scores.truth_kept(3 * designed, designed, batch) == pytest.approx({of_all: 1, between: 1})
    kept = peers_scores.truth_kept(shifted, designed, batch)
    assert kept[between] == pytest.approx(1)  # all of these pairs are farther by the same shift
    assert kept[of_all] < 0.8
    noise = peers_scores.truth_kept(rng.normal(size=(120, 3)), designed, batch)
    assert all(abs(value) < 0.2 for value in noise.values())


def test_a_graph_is_scored_by_its_connections() -> None:
    pytest.importorskip("scib_metrics")
    kind = np.repeat(["a", "b"], 20)
    same = (kind[:, None] == kind).astype(float) - np.eye(40)
    found = peers_scores.graph_scores(dict.fromkeys(("connectivities", "distances"), sp.csr_matrix(same)), kind)
    assert found == {"Leiden NMI": 1, "Leiden ARI": 1, "Graph connectivity": 1}
    alone = sp.csr_matrix((40, 40))
    apart = peers_scores.graph_scores({"connectivities": sp.csr_matrix(same), "distances": alone}, kind)
    assert apart["Graph connectivity"] == pytest.approx(1 / 20)


# Runs and results ------------------------------------------------------------------------------------------------


def options(output: Path, **changed: Any) -> argparse.Namespace:
    chosen = {"methods": ["unintegrated", "Harmony"], "seeds": 2, "again": [], "retry": False, "limit": 60.0}
    return argparse.Namespace(output=output, batch_key="batch", label_key="cell_type", **{**chosen, **changed})


def record(name: str, seed: int, *, of: str = "tiny", **more: Any) -> dict[str, Any]:
    return {"set": of, "method": name, "seed": seed, "version": peers_methods.version(name), **more}


def test_only_what_is_missing_is_run(tmp_path: Path) -> None:
    pytest.importorskip("harmonypy")
    everything = [("unintegrated", 0), ("Harmony", 0), ("Harmony", 1)]  # what has no seed runs once
    assert list(peers.missing(options(tmp_path), {}, "tiny")) == everything
    results = tmp_path / "results.jsonl"
    for name, seed in everything:
        peers.append(results, record(name, seed, seconds=1.0))
    with results.open("a") as file:
        file.write('{"set": "tiny", "meth')  # a run that was cut
    found = peers.load(results)
    assert list(peers.missing(options(tmp_path), found, "tiny")) == []
    assert list(peers.missing(options(tmp_path), found, "other")) == everything
    assert list(peers.missing(options(tmp_path, again=["Harmony"]), found, "tiny")) == everything[1:]
    assert list(peers.missing(options(tmp_path, seeds=3), found, "tiny")) == [("Harmony", 2)]
    found["tiny", "Harmony", 1]["version"] = "an older one"
    assert list(peers.missing(options(tmp_path), found, "tiny")) == [("Harmony", 1)]
    found["tiny", "unintegrated", 0]["failed"] = "crash"
    assert ("unintegrated", 0) not in peers.missing(options(tmp_path), found, "tiny")
    assert ("unintegrated", 0) in peers.missing(options(tmp_path, retry=True), found, "tiny")


def test_a_new_run_forgets_the_scores_of_the_old(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    peers.append(results, record("Harmony", 0, seconds=1.0))
    peers.append(results, {"set": "tiny", "method": "Harmony", "seed": 0, "scores": {"Total": 0.5}})
    assert peers.load(results)["tiny", "Harmony", 0]["scores"] == {"Total": 0.5}
    assert peers.load(results)["tiny", "Harmony", 0]["seconds"] == 1.0
    peers.append(results, record("Harmony", 0, seconds=2.0))
    assert "scores" not in peers.load(results)["tiny", "Harmony", 0]


def test_what_was_published_stands_until_it_is_run_anew(tmp_path: Path) -> None:
    published = tmp_path / "runs.jsonl"
    old = [record("Harmony", seed, seconds=1.0, scores={"Total": 0.5}) for seed in range(2)]
    new = record("Harmony", 1, seconds=2.0, failed="stopped")
    everything = peers.publish({("tiny", "Harmony", r["seed"]): r for r in old}, published)
    assert list(everything.values()) == old
    everything = peers.publish({("tiny", "Harmony", 1): new}, published)
    assert everything == {("tiny", "Harmony", 0): old[0], ("tiny", "Harmony", 1): new}
    assert peers.load(published) == everything


def test_the_table_of_the_readme_is_that_of_the_published_runs() -> None:
    runs = peers_table.runs_of(peers.load(peers.PUBLISHED).values())
    shown = pd.read_csv(ROOT / "benchmarks" / "peers.csv")
    assert_frame_equal(
        peers_table.means(runs).round(4)[["set", "method", "runs", "Total"]].reset_index(drop=True),
        shown[["set", "method", "runs", "Total"]],
    )


def test_a_crash_and_a_late_run_are_failures(tmp_path: Path) -> None:
    crashed = peers.child(tmp_path / "log.txt", None, "no such worker")
    assert crashed["failed"] == "exit code 1"
    assert "KeyError" in (tmp_path / "log.txt").read_text()
    late = peers.child(tmp_path / "log.txt", 0.01, "prepare", "a", "b", "c", "d")
    assert late["failed"] == "stopped after 0 s"


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = Method("nobody", ("nobody_has_this",), "log", True, lambda cells, seed: cells, "")
    monkeypatch.setitem(METHODS, "SCALEX", nobody)
    assert peers.run_one(options(tmp_path), "tiny", "SCALEX", 0)["failed"] == "not installed"


def test_from_the_command_to_the_table(
    labelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One real run of processes: a failure beside scores, and nothing anew the second time."""
    pytest.importorskip("scib_metrics")
    log = ad.read_h5ad(labelled)
    log.X = log.X.log1p()  # no counts: scVI fails if it is there, and if it is not
    log.write_h5ad(labelled)
    command = ["peers.py", "--data", str(labelled.parent), "--output", str(tmp_path / "out"), "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--methods", "unintegrated", "scVI", "--figures"])
    assert peers.main() == 0
    first = capfd.readouterr().out
    assert "tiny, unintegrated, seed 0:" in first
    assert "scVI on tiny: 1 of 1 failed: n" in first  # needs counts, or not installed
    rows = pd.read_csv(tmp_path / "out" / "table.csv").set_index("method")
    ours = rows.loc["unintegrated"]
    assert ours["Total"] == pytest.approx(0.6 * ours["Bio conservation"] + 0.4 * ours["Batch correction"], abs=1e-3)
    assert ours["PCR comparison"] == pytest.approx(0, abs=1e-3)  # nothing was corrected
    assert ours[[*peers_table.BIOLOGY, *peers_table.MIXING, "seconds", "peak, MB"]].notna().all()
    assert np.isnan(rows.loc["scVI", "Total"])
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"peers_totals.png", "peers_speed.png"}
    lines = (tmp_path / "out" / "results.jsonl").read_text()
    assert peers.main() == 0
    assert "seed 0:" not in capfd.readouterr().out
    assert (tmp_path / "out" / "results.jsonl").read_text() == lines


# Tables ----------------------------------------------------------------------------------------------------------


def some_runs() -> pd.DataFrame:
    """Ours on two sets; Harmony, better on the easy one, fails on the hard one."""
    told = {"date": "2026-01-01", "cores": 2, "python": "3.12", "peak": 1e9, "seconds": 2.0}
    totals = {("easy", "cellnorm"): [0.8, 0.82, 0.81], ("hard", "cellnorm"): [0.5, 0.5, 0.5]}
    totals |= {("easy", "Harmony"): [0.85, 0.85, 0.85]}
    rows = [
        record(name, seed, of=of, scores={"Total": value, "Bio conservation": value, "Batch correction": value}, **told)
        for (of, name), values in totals.items()
        for seed, value in enumerate(values)
    ]
    rows += [record("Harmony", seed, of="hard", failed="stopped after 1800 s") for seed in range(3)]
    return peers_table.runs_of(rows)


def test_a_failure_helps_nobody() -> None:
    found = peers_table.overall(some_runs())
    assert found.loc["cellnorm", "Total"] == pytest.approx((0.81 + 0.5) / 2)
    assert found.loc["Harmony", ["sets", "Total", "cellnorm there", "lead"]].tolist() == pytest.approx(
        [1, 0.85, 0.81, -0.04]
    )
    assert found.loc["Harmony", "ahead on"] == "0 of 1"
    assert peers_table.in_common(peers_table.means(some_runs()))["set"].unique().tolist() == ["easy"]


def test_a_method_with_few_sets_does_not_say_which_are_compared() -> None:
    told = {"date": "2026-01-01", "cores": 2, "python": "3.12", "peak": 1e9, "seconds": 1.0}
    rows = [
        record(method, 0, of=of, scores={"Total": 0.5}, **told)
        for method, sets in {"cellnorm": "abc", "Harmony": "ab", "SCALEX": "a"}.items()
        for of in sets
    ]
    runs = peers_table.runs_of(rows)
    found = peers_table.in_common(peers_table.means(runs))
    assert set(found["set"]) == set("ab")
    assert set(found["method"]) == {"cellnorm", "Harmony"}
    assert "(a, b), without SCALEX, which did" in peers_table.generated(runs)
    assert "(a, b, c); for each" in peers_table.generated(runs[runs["method"] == "cellnorm"])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_the_interval_is_students(values: list[float]) -> None:
    half = peers_table.half_width([*values, float("nan")])
    scale = np.std(values, ddof=1) / np.sqrt(len(values))
    assert half == pytest.approx(t.interval(0.95, len(values) - 1)[1] * scale, abs=1e-12)


def test_one_value_has_no_interval() -> None:
    assert np.isnan(peers_table.half_width([0.5]))
    assert peers_table.with_interval(0.5, float("nan")) == ".500"
    assert peers_table.with_interval(0.5, 0.01) == ".500 ± .010"
    assert [peers_table.number(v, d) for v, d in ((1.0, 3), (-0.25, 2), (0.0, 3), (30.54, 1))] == [
        "1.000",
        "-.25",
        ".000",
        "30.5",
    ]


def test_the_readme_changes_between_the_marks_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{peers_table.BEGIN}\nwhat stood here\n{peers_table.END}\nafter\n")
    peers_table.write_readme(some_runs(), readme)
    once = readme.read_text()
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "what stood here" not in once
    for said in ("| **.850 ± .000** |", "| hard | **.500 ± .000** | failed |", "3 of 3 failed: stopped after 1800 s"):
        assert said in once
    peers_table.write_readme(some_runs(), readme)
    assert readme.read_text() == once
    assert len(pd.read_csv(tmp_path / "peers.csv")) == 4
    readme.write_text("no place")
    with pytest.raises(SystemExit, match="no place for the tables"):
        peers_table.write_readme(some_runs(), readme)


def test_the_readme_has_a_place_for_the_tables() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert text.index(peers_table.BEGIN) < text.index(peers_table.END)


def test_every_peer_is_in_the_extra_and_has_a_style() -> None:
    import tomllib

    import peers_figures

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.partition("==")[0] for line in project["optional-dependencies"]["bench"]}
    assert {m.package for m in METHODS.values()} <= pinned | {"cellnorm", "scanpy"}
    assert peers_figures.STYLE.keys() == METHODS.keys()
    assert len({style["marker"] for style in peers_figures.STYLE.values()}) == len(METHODS)


def test_an_answer_of_graphs_is_checked() -> None:
    assert peers_methods.checked({"distances": sp.eye(3)}, 3)
    with pytest.raises(UnfitError, match="for 4 cells"):
        peers_methods.checked({"distances": sp.eye(3)}, 4)
