"""What is found out about each cluster: merged with another kind, left apart from its own, or neither."""

import numpy as np
import pytest
from clouds import Clouds, clouds
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from cellnorm.counterparts import LEAST, K
from cellnorm.evidence import DOUBTFUL, GRADES, Finding, View, finding, look, worst

THREE = [[60, 60, 60], [60, 60, 60]]


def findings(data: Clouds, after: NDArray[np.float32]) -> tuple[View, dict[tuple[int, int], Finding]]:
    """What is found about each type of each batch."""
    view = look(data.measured, after, data.batch, 20)
    found = {}
    for c, cells in enumerate(view.cells):
        kinds = np.unique(data.kind[cells])
        assert len(kinds) == 1, "the types lie so far apart that no cluster holds two"
        if len(cells) >= LEAST:
            found[int(view.of_batch[c]), int(kinds[0])] = finding(view, c)
    return view, found


def type_of(data: Clouds, view: View, c: int) -> tuple[int, int]:
    """Batch and type of a cluster."""
    return int(view.of_batch[c]), int(data.kind[view.cells[c]][0])


# -- the view --------------------------------------------------------------------------------------------------------


def test_clusters_are_found_in_each_batch_alone() -> None:
    data = clouds([[60, 60, 60], [40, 80, 0], [7, 0, 0]])
    view = look(data.measured, data.truth, data.batch, 20)
    assert view.of_batch.tolist() == [0, 0, 0, 1, 1, 2]
    assert adjusted_rand_score(data.kind + 10 * data.batch, view.cluster) == 1
    assert np.concatenate(view.cells).tolist() == sorted(np.concatenate(view.cells), key=lambda i: view.cluster[i])
    for c, cells in enumerate(view.cells):
        assert (data.batch[cells] == view.of_batch[c]).all()
        assert (view.cluster[cells] == c).all()


def test_neighbours_are_counted_in_the_own_batch() -> None:
    data = clouds(THREE)
    view = look(data.measured, data.moved(1, 0), data.batch, 20)
    for seen in (view.seen_before, view.seen_after):
        np.testing.assert_allclose(seen.sum(1), 1)
        assert (seen[view.of_batch[:, None] != view.of_batch] == 0).all()
    np.testing.assert_allclose(view.seen_before, np.eye(6))
    mixed = [type_of(data, view, c)[1] < 2 for c in range(6)]
    assert (np.diag(view.seen_after)[mixed] < 0.7).all()
    np.testing.assert_allclose(np.diag(view.seen_after)[~np.array(mixed)], 1)


def test_partners_are_of_another_batch_and_of_the_own_type() -> None:
    data = clouds(THREE)
    view = look(data.measured, data.truth, data.batch, 20)
    left, right = np.nonzero(view.partner)
    assert len(left) > 100
    np.testing.assert_array_equal(view.partner, view.partner.T)
    assert (data.batch[left] != data.batch[right]).all()
    assert (data.kind[left] == data.kind[right]).all()


def test_the_evidence_against_a_match_is_that_of_the_counterparts() -> None:
    data = clouds(THREE)
    view = look(data.measured, data.truth, data.batch, 20)
    kind = np.array([type_of(data, view, c)[1] for c in range(6)])
    same = kind[:, None] == kind
    assert view.against[same].max() <= 0 < DOUBTFUL < view.against[~same].min()


def test_kept_is_the_share_of_the_same_neighbours() -> None:
    data = clouds([[60], [60]])
    assert (look(data.measured, data.truth, data.batch, 20).kept == 1).all()
    rng = np.random.default_rng(0)
    noise = rng.normal(size=data.truth.shape).astype(np.float32)
    chance = look(data.measured, noise, data.batch, 20).kept
    assert abs(chance.mean() - K / 59) < 0.04
    half = np.where((data.batch == 0)[:, None], data.truth, noise)
    kept = look(data.measured, half, data.batch, 20).kept
    assert (kept[:60] == 1).all()
    assert kept[60:].mean() < 0.5


@pytest.mark.parametrize("sizes", [[[1], [1]], [[3], [40]], [[16], [16], [1]]])
def test_tiny_batches_can_be_looked_at(sizes: list[list[int]]) -> None:
    data = clouds(sizes)
    view = look(data.measured, data.truth, data.batch, 20)
    assert (view.kept == 1).all()
    for values in (view.seen_before, view.seen_after):
        assert np.isfinite(values).all()


# -- the findings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_perfect_correction_is_good_for_every_cluster(seed: int) -> None:
    data = clouds(THREE, seed)
    _, found = findings(data, data.truth)
    assert len(found) == 6
    for f in found.values():
        assert (f.verdict, f.merged_with) == ("good", -1)
        assert f.apart < 0.2
        assert f.apart_before == 1


def test_clusters_left_apart_are_under_corrected() -> None:
    data = clouds(THREE)
    _, found = findings(data, data.measured)
    assert {f.verdict for f in found.values()} == {"under-corrected"}
    assert {f.merged_with for f in found.values()} == {-1}
    assert min(f.apart for f in found.values()) > 0.9


@pytest.mark.parametrize("of_batches", [{0, 1}, {0}])
def test_types_laid_into_each_other_are_named(of_batches: set[int]) -> None:
    """In all batches, or in one of them only."""
    data = clouds(THREE)
    after = np.where(np.isin(data.batch, list(of_batches))[:, None], data.moved(1, 0), data.truth)
    view, found = findings(data, after)
    for b in of_batches:
        for kind, other in ((0, 1), (1, 0)):
            assert found[b, kind].verdict == "over-corrected"
            assert type_of(data, view, found[b, kind].merged_with) == (b, other)
    assert {found[b, 2].verdict for b in (0, 1)} == {"good"}


@pytest.mark.parametrize("seed", range(4))
def test_a_type_laid_onto_one_that_only_the_other_batch_has_is_named(seed: int) -> None:
    """No cluster of any batch was mixed with another one of it: the evidence is that of the anchors."""
    data = clouds([[50] * 5 + [0], [50] * 4 + [0, 50]], seed)
    view, found = findings(data, data.moved(5, 4))
    for key, other in (((0, 4), (1, 5)), ((1, 5), (0, 4))):
        assert found[key].verdict == "over-corrected"
        assert type_of(data, view, found[key].merged_with) == other
    assert {f.verdict for key, f in found.items() if key[1] < 4} == {"good"}
    _, well = findings(data, data.truth)
    assert {f.verdict for f in well.values()} == {"good"}
    assert np.isnan(well[0, 4].apart)  # nothing to be mixed with


def test_a_cluster_whose_neighbourhoods_are_gone_deserves_a_look() -> None:
    data = clouds(THREE)
    rng = np.random.default_rng(0)
    shuffled = data.truth.copy()
    own = np.flatnonzero((data.kind == 2) & (data.batch == 0))
    shuffled[own] = data.truth[rng.permutation(own)]
    _, found = findings(data, shuffled)
    assert found[0, 2].verdict == "look"
    assert {f.verdict for key, f in found.items() if key != (0, 2)} == {"good"}


def test_clusters_that_were_not_apart_before_were_not_merged() -> None:
    """Two halves of one type cannot be told from each other, whichever clusters they are taken for."""
    data = clouds([[400], [400]])
    view = look(data.measured, data.truth, data.batch, 20)
    assert {finding(view, c).merged_with for c in range(len(view.cells)) if len(view.cells[c]) >= LEAST} == {-1}


def test_small_clusters_are_no_ones_rivals_and_no_ones_kin() -> None:
    """Seven cells of a type of their own lie upon another type: too few to speak of."""
    data = clouds([[60, 60, LEAST - 3], [60, 60, LEAST - 3]])
    _, found = findings(data, data.moved(2, 0))
    assert set(found) == {(b, k) for b in (0, 1) for k in (0, 1)}
    assert {(f.verdict, f.merged_with) for f in found.values()} == {("good", -1)}


def test_a_match_with_too_few_cells_is_not_relied_on() -> None:
    data = clouds([[60, 60], [60, LEAST - 3]])
    _, found = findings(data, data.truth)
    assert np.isfinite(found[0, 0].apart)
    assert np.isnan(found[0, 1].apart)
    assert found[0, 1].verdict == "good"


@pytest.mark.parametrize("seed", range(3))
def test_anchors_speak_for_a_type_that_its_batch_moved_far(seed: int) -> None:
    """One type lies off by more than types differ, in a direction of its own, and anchors find it all the same."""
    data = clouds([[60] * 4] * 2, seed)
    others = data.centres - data.centres[3]
    nearest = np.linalg.norm(others[:3], axis=1).min()
    away = np.linalg.svd(data.centres - data.centres.mean(0))[2][-1]  # all types lie in a plane without it
    off = (data.kind == 3) & (data.batch == 1)
    moved = data._replace(
        measured=np.where(off[:, None], data.measured + 1.25 * nearest * away, data.measured).astype("f4")
    )
    view, found = findings(moved, data.truth)
    c, d = (next(i for i in range(8) if type_of(data, view, i) == (b, 3)) for b in (0, 1))
    assert DOUBTFUL > view.against[c, d] > -0.2, "far, but well matched"
    assert {f.verdict for f in found.values()} == {"good"}
    assert {f.merged_with for f in found.values()} == {-1}


# -- grades ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(GRADES), min_size=1))
def test_the_gravest_verdict_wins(verdicts: list[str]) -> None:
    assert worst(*verdicts) in verdicts
    assert worst(*verdicts) == worst(*reversed(verdicts))
    assert all(worst(v, worst(*verdicts)) == worst(*verdicts) for v in verdicts)


def test_destroyed_biology_is_graver_than_a_remaining_batch() -> None:
    assert worst("under-corrected", "over-corrected", "look") == "over-corrected"
    assert worst("good", "under-corrected", "look") == "under-corrected"
    assert worst("look", "good") == "look"
