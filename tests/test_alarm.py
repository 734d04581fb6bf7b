"""The verdict on a correction: right where the truth is known, whatever the names and sizes of the batches."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from clouds import clouds
from numpy.typing import NDArray

from cellnorm.adata import write_result
from cellnorm.alarm import FEW, MOVED, SEPARATED, Alarm, judge

EVEN = [[50] * 4] * 3
OWN_TYPES = [[50] * 5 + [0], [50] * 4 + [0, 50]]  # type 4 is in the first batch alone, type 5 in the second
NULL = {"null_moved", "null_separated"}


def noise(like: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=like.shape).astype(np.float32)


def equal(a: Alarm, b: Alarm, **tolerance: float) -> None:
    """Fail where two alarms differ."""
    one, other = a.to_dict(), b.to_dict()
    assert list(one) == list(other)
    for name, value in one.items():
        tables = [(name, value, other[name])]
        if isinstance(value, dict):
            tables = [(f"{name}/{key}", column, other[name][key]) for key, column in value.items()]
        for where, x, y in tables:
            if np.asarray(x).dtype.kind == "f" and tolerance:
                np.testing.assert_allclose(x, y, **tolerance, err_msg=where)
            else:
                np.testing.assert_array_equal(x, y, err_msg=where)


# -- the verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [EVEN, OWN_TYPES, [[80, 40, 20], [20, 40, 80]], [[100], [100]]], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_perfect_correction_is_good(sizes: list[list[int]], seed: int) -> None:
    data = clouds(sizes, seed)
    alarm = judge(data.measured, data.truth, data.batch)
    assert alarm.verdict == "good", alarm.reason
    assert (alarm.kept, alarm.merged) == (1, 0)
    assert alarm.apart < 0.2 < 0.9 < alarm.apart_before
    assert set(alarm.batches["verdict"]) == set(alarm.clusters["verdict"]) == {"good"}
    assert re.match(r"clusters of one kind lie 0\.\d\d apart, \d\.\d\d before .*100% of a cell's own", alarm.reason)


def test_no_batch_effect_and_nothing_done_is_good() -> None:
    data = clouds(EVEN, offset=0)
    alarm = judge(data.measured, data.measured, data.batch)
    assert alarm.verdict == "good"
    assert alarm.apart == alarm.apart_before < 0.2


def test_noise_instead_of_an_embedding_is_over_corrected() -> None:
    """It mixes batches perfectly."""
    data = clouds(EVEN)
    alarm = judge(data.measured, noise(data.truth), data.batch)
    assert alarm.verdict == "over-corrected"
    assert alarm.apart < 0.1
    assert alarm.kept < 0.2
    assert alarm.merged == 12
    assert alarm.reason.count("lies in") == 3
    assert alarm.reason.endswith("and 10 more")


def test_an_embedding_of_one_point_is_over_corrected() -> None:
    data = clouds(EVEN)
    assert judge(data.measured, np.zeros_like(data.truth), data.batch).verdict == "over-corrected"


def test_lost_neighbourhoods_are_over_corrected_although_no_cluster_is_merged() -> None:
    """Each type is in its place, but the cells of a type have changed places."""
    data, rng = clouds([[200, 200]] * 2), np.random.default_rng(0)
    after = data.truth.copy()
    for b in (0, 1):
        for t in (0, 1):
            own = np.flatnonzero((data.batch == b) & (data.kind == t))
            after[own] = data.truth[rng.permutation(own)]
    alarm = judge(data.measured, after, data.batch)
    assert alarm.verdict == "over-corrected"
    assert alarm.merged == 0
    assert alarm.reason == f"only {alarm.kept:.0%} of a cell's own neighbours were kept"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_types_merged_in_all_batches_are_over_corrected(seed: int) -> None:
    data = clouds(EVEN, seed)
    alarm = judge(data.measured, data.moved(1, 0), data.batch)
    assert (alarm.verdict, alarm.merged) == ("over-corrected", 6)
    assert "apart before" in alarm.reason
    assert set(alarm.batches["verdict"]) == {"over-corrected"}
    flagged = alarm.clusters["verdict"] == "over-corrected"
    assert flagged.sum() == 6
    for of_batch, onto in zip(alarm.clusters["batch"][flagged], alarm.clusters["merged_with"][flagged], strict=True):
        assert re.fullmatch(rf"cluster \d of batch '{of_batch}'", onto)
    assert set(alarm.clusters["merged_with"][~flagged]) == {""}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_private_type_laid_onto_another_one_is_over_corrected(seed: int) -> None:
    data = clouds(OWN_TYPES, seed)
    alarm = judge(data.measured, data.moved(5, 4), data.batch)
    assert (alarm.verdict, alarm.merged) == ("over-corrected", 2)
    assert alarm.kept > 0.99
    assert "against its anchors" in alarm.reason
    flagged = alarm.clusters["verdict"] == "over-corrected"
    assert [name[-3:] for name in alarm.clusters["merged_with"][flagged]] == ["'1'", "'0'"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_batches_left_apart_are_under_corrected(seed: int) -> None:
    data = clouds(EVEN, seed)
    alarm = judge(data.measured, data.measured, data.batch)
    assert (alarm.verdict, alarm.merged) == ("under-corrected", 0)
    assert alarm.apart == alarm.apart_before > 0.9
    assert set(alarm.batches["verdict"]) == {"under-corrected"}
    assert alarm.reason.startswith("batches lie apart still")


def test_one_batch_left_apart_is_named() -> None:
    data = clouds([[40, 40, 40]] * 6)
    after = np.where((data.batch == 4)[:, None], data.truth + 60, data.truth).astype(np.float32)
    alarm = judge(data.measured, after, data.batch)
    assert alarm.verdict == "look"
    assert "batch '4' was hardly corrected" in alarm.reason
    assert alarm.batches["verdict"].tolist() == ["good"] * 4 + ["under-corrected", "good"]
    long = judge(data.measured, after, np.array([str(b) * 10_000 for b in range(6)])[data.batch])
    assert "batch '4444" in long.reason
    assert len(long.reason) < 500


def test_batches_without_a_common_type_deserve_a_look() -> None:
    data = clouds([[80, 80, 0, 0], [0, 0, 80, 80]], seed=3)
    after = data.truth
    alarm = judge(data.measured, after, data.batch)
    assert alarm.verdict == "look"
    assert ("too few to rely on" in alarm.reason) == (alarm.matched < FEW)


# -- names and sizes of batches --------------------------------------------------------------------------------------

NAMES: dict[str, Any] = {
    "integers": [10, 9, 2],
    "floats": [0.5, 1.0, 2.5],
    "truth values": [True, False, True],
    "quotes": ["it's", '"two"', "`three`"],
    "strange": ["a/b | c", "日本\n{x:.2f} %s", "<script>alert(1)</script>"],
    "long": ["x" * 10_000, "y" * 10_000, ""],
    "dates": np.array(["2020-01-01", "2021-01-01", "2019-01-01"], "datetime64[D]"),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("as_objects", [False, True])
def test_batches_may_have_any_names(names: Any, as_objects: bool) -> None:
    data = clouds([[40, 40, 40]] * 3)
    batch = np.asarray(names, dtype=object if as_objects else None)[data.batch]
    alarm = judge(data.measured, data.moved(1, 0), batch)
    assert alarm.verdict == "over-corrected"
    there = np.unique(batch).astype(str).tolist()
    assert alarm.batches["name"].tolist() == there
    assert {type(name) for name in alarm.batches["name"]} == {str}
    assert set(alarm.clusters["batch"]) == set(there)
    assert len(alarm.reason) < 800


def test_the_names_have_no_say() -> None:
    """Nor their order, but for the order of the tables."""
    data = clouds(OWN_TYPES)
    after = data.moved(5, 4)
    plain = judge(data.measured, after, data.batch)
    equal(plain, judge(data.measured, after, data.batch.astype(str)))
    other = judge(data.measured, after, 1 - data.batch)
    for name in ("verdict", "merged"):
        assert getattr(other, name) == getattr(plain, name)
    for name in ("kept", "matched", "apart", "apart_before"):
        assert getattr(other, name) == pytest.approx(getattr(plain, name), abs=0.02)
    assert other.batches["n_cells"].tolist() == plain.batches["n_cells"][::-1].tolist()
    np.testing.assert_allclose(other.batches["kept"], plain.batches["kept"][::-1], atol=0.02)


def test_the_order_of_the_cells_has_no_say() -> None:
    data = clouds(EVEN)
    order = np.random.default_rng(0).permutation(len(data.batch))
    for after, verdict in ((data.truth, "good"), (data.moved(1, 0), "over-corrected"), (data.measured, "under")):
        shuffled = judge(data.measured[order], after[order], data.batch[order])
        plain = judge(data.measured, after, data.batch)
        assert shuffled.verdict == plain.verdict
        assert shuffled.verdict.startswith(verdict)
        assert shuffled.kept == pytest.approx(plain.kept, abs=0.02)
        assert shuffled.merged == plain.merged


def test_units_and_origin_have_no_say() -> None:
    data = clouds(EVEN)
    after = data.moved(1, 0)
    plain = judge(data.measured, after, data.batch)
    equal(plain, judge(data.measured * 64, (after / 64).astype(np.float32), data.batch), atol=0.01)


def test_the_embedding_may_have_another_width() -> None:
    data = clouds(EVEN)
    wide = np.hstack([data.truth, np.zeros((len(data.truth), 5), np.float32)])
    assert judge(data.measured, wide, data.batch).verdict == "good"


def test_sixty_batches_of_thirty_cells() -> None:
    data = clouds([[15, 15]] * 60)
    alarm = judge(data.measured, data.truth, data.batch)
    assert alarm.verdict == "good"
    assert alarm.batches["n_cells"].tolist() == [30] * 60
    assert len(alarm.clusters["cluster"]) == 120
    assert alarm.apart < 0.2
    left = np.where((data.batch == 7)[:, None], data.truth + 60, data.truth).astype(np.float32)
    found = judge(data.measured, left, data.batch)
    assert (found.verdict, found.batches["verdict"][7]) == ("look", "under-corrected")


@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_of_a_few_cells_is_judged_with_the_others(size: int) -> None:
    data = clouds([[60, 60, 60], [60, 60, 60], [size, 0, 0]])
    alarm = judge(data.measured, data.truth, data.batch)
    assert alarm.verdict == "good"
    assert alarm.batches["n_cells"].tolist() == [180, 180, size]
    assert np.isnan(alarm.batches["apart"][2])
    assert set(alarm.clusters["batch"]) == {"0", "1"}
    assert judge(data.measured, data.moved(1, 0), data.batch).verdict == "over-corrected"


@pytest.mark.parametrize("sizes", [[[3, 3, 3]] * 60, [[1], [1]], [[9], [9]], [[5], [200]], [[90]]])
def test_where_no_cluster_can_be_matched_it_does_not_say_good(sizes: list[list[int]]) -> None:
    data = clouds(sizes)
    alarm = judge(data.measured, data.truth, data.batch)
    assert alarm.verdict == "look"
    assert "no cluster could be matched" in alarm.reason
    assert np.isnan(alarm.apart)


@pytest.mark.parametrize(("sizes", "seed"), [([100, 100], 0), ([400, 400], 1), ([1200, 1200], 2), ([400] * 4, 2)])
def test_batches_of_one_type_are_not_taken_for_merged(sizes: list[int], seed: int) -> None:
    """A single cloud is cut into clusters somewhere, in each batch elsewhere."""
    data = clouds([[n] for n in sizes], seed)
    assert judge(data.measured, data.truth, data.batch).verdict == "good"
    assert judge(data.measured, data.measured, data.batch).verdict == "under-corrected"


def test_of_large_batches_a_sample_is_looked_at() -> None:
    data = clouds([[2000, 2000], [60, 60]])
    first = judge(data.measured, data.truth, data.batch)
    assert first.batches["n_cells"].tolist() == [1500, 120]
    assert first.verdict == "good"
    equal(first, judge(data.measured, data.truth, data.batch))
    other = judge(data.measured, data.truth, data.batch, random_state=1)
    assert other.matched != first.matched
    assert other.verdict == "good"


# -- repeatable, and without a trace ---------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_answer_and_stays() -> None:
    data = clouds(OWN_TYPES)
    after = noise(data.truth)
    before = data.measured.tobytes(), after.tobytes(), data.batch.tobytes()
    torch.set_num_threads(2)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = judge(data.measured, after, data.batch)
    assert torch.get_num_threads() == 2
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    torch.set_num_threads(1)
    equal(first, judge(data.measured, after, data.batch))
    assert (data.measured.tobytes(), after.tobytes(), data.batch.tobytes()) == before


# -- numbers to keep -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.parametrize("sizes", [OWN_TYPES, [[3], [3]]], ids=["with clusters", "without"])
def test_what_was_found_comes_back_from_a_file(sizes: list[list[int]], suffix: str, tmp_path: Path) -> None:
    data = clouds(sizes)
    names = np.array(['a/b "c"', "日本 🧬"])[data.batch]
    alarm = judge(data.measured, data.moved(len(sizes[0]) - 1, 0), names)
    adata = ad.AnnData(np.zeros((len(names), 1), np.float32))
    write_result(adata, None, data.truth, {"alarm": alarm.to_dict()})
    getattr(adata, f"write_{suffix}")(tmp_path / f"cells.{suffix}")
    back = getattr(ad, f"read_{suffix}")(tmp_path / f"cells.{suffix}").uns["cellnorm"]["alarm"]
    assert isinstance(back["verdict"], str)
    assert np.isnan(back["null_moved"])
    assert back["batches"]["name"].tolist() == ['a/b "c"', "日本 🧬"]
    equal(alarm, replace(alarm, **back))


def test_every_cell_looked_at_is_counted() -> None:
    data = clouds([[60, 40, 20], [50, 30, 0]])
    apart = (data.kind == 1) & (data.batch == 1)
    found = judge(data.measured, data.truth + np.float32(20) * apart[:, None], data.batch).to_dict()
    tables = {name: found.pop(name) for name in ("batches", "clusters")}
    assert {type(v) for v in found.values()} == {str, float, int}
    assert {name for name, v in found.items() if v != v} == NULL
    for table in tables.values():
        assert len({len(column) for column in table.values()}) == 1
        for name in ("kept", "matched", "apart"):
            assert table[name].dtype == float
            assert ((table[name] >= 0) & (table[name] <= 1) | np.isnan(table[name])).all()
    clusters, batches = tables["clusters"], tables["batches"]
    assert sorted(clusters["n_cells"].tolist()) == [20, 30, 40, 50, 60]
    assert clusters["cluster"].tolist() == [0, 1, 2, 0, 1]
    for name in ("kept", "matched"):
        for b, size in zip(("0", "1"), (120, 80), strict=True):
            own = clusters["batch"] == b
            mean = np.average(clusters[name][own], weights=clusters["n_cells"][own])
            assert mean == pytest.approx(batches[name][int(b)])
            assert clusters["n_cells"][own].sum() == size
        assert found[name] == pytest.approx(np.average(batches[name], weights=batches["n_cells"]))
    there = np.isfinite(clusters["apart"])
    assert there.sum() == 4
    assert np.ptp(clusters["apart"][there]) > 0.8
    assert found["apart"] == pytest.approx(np.average(clusters["apart"][there], weights=clusters["n_cells"][there]))


# -- the null check --------------------------------------------------------------------------------------------------


def made(verdict: str) -> Alarm:
    """An alarm of this verdict."""
    data = clouds([[40, 40]] * 2)
    after = {"good": data.truth, "over-corrected": noise(data.truth), "under-corrected": data.measured}
    alarm = judge(data.measured, after.get(verdict, data.truth), data.batch)
    return replace(alarm, verdict="look", reason="something") if verdict == "look" else alarm


@pytest.mark.parametrize(("moved", "separated"), [(0.0, 0.0), (MOVED, SEPARATED), (np.nan, np.nan)])
@pytest.mark.parametrize("verdict", ["good", "look", "under-corrected", "over-corrected"])
def test_nothing_moved_is_noted_and_changes_no_verdict(verdict: str, moved: float, separated: float) -> None:
    alarm = made(verdict)
    found = alarm.with_null(moved, separated)
    assert (found.verdict, found.reason) == (verdict, alarm.reason)
    np.testing.assert_array_equal([found.null_moved, found.null_separated], [moved, separated])
    equal(alarm, replace(found, null_moved=np.nan, null_separated=np.nan))


def test_that_nothing_was_changed_is_said_first() -> None:
    alarm = made("good")
    found = alarm.unchanged("no batch effect was found")
    assert found.reason == f"no batch effect was found, and nothing was changed; {alarm.reason}"
    equal(alarm, replace(found, reason=alarm.reason))


@pytest.mark.parametrize(("moved", "separated"), [(MOVED + 0.1, 0.0), (0.0, SEPARATED + 0.1)])
@pytest.mark.parametrize(
    ("verdict", "then"),
    [("good", "look"), ("look", "look"), ("under-corrected",) * 2, ("over-corrected",) * 2],
)
def test_what_moved_or_separated_deserves_a_look_at_least(
    verdict: str, then: str, moved: float, separated: float
) -> None:
    alarm = made(verdict)
    found = alarm.with_null(moved, separated)
    assert found.verdict == then
    assert f"moved by {moved:.2f} neighbour distances and lies {separated:.2f} apart" in found.reason
    assert (alarm.reason in found.reason) == (verdict != "good")
    assert np.isnan(alarm.null_moved)  # the alarm itself stays as it was
