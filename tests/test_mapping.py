"""Mapping: a new batch gets statistics of its own from its matches with the reference, and the reference stays."""

from functools import cache

import numpy as np
import pytest
import torch
from clouds import Clouds, clouds
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cellnorm import CellNorm, mapping
from cellnorm.mapping import Mapping, add_batch, shared_batch
from cellnorm.training import decode, encode

SIZES = [[70, 70, 70, 0], [70, 50, 90, 0], [60, 80, 70, 60]]
NEW = 2  # the last batch is left out of the reference, and its last type is in no other
Cells = NDArray[np.float32]


@cache
def trained() -> tuple[CellNorm, Clouds]:
    """A model of the first two batches, and all cells."""
    cells = clouds(SIZES)
    known = cells.batch < NEW
    model = CellNorm(n_comps=None, n_latent=8, n_steps=120, n_hidden=32)
    return model.fit(cells.measured[known], cells.batch[known]), cells


def new_cells(*kinds: int) -> Cells:
    """The new batch's cells of these types, in the units of the training; all without any."""
    model, cells = trained()
    chosen = (cells.batch == NEW) & np.isin(cells.kind, kinds or np.unique(cells.kind))
    return np.asarray(cells.measured[chosen] / model.scale_, np.float32)


def mapped(x: Cells) -> Mapping:
    model, _ = trained()
    return add_batch(model.net_, model.sketch_, model.sketch_batch_, x, 20, np.random.default_rng(0))


def embedded(found: Mapping, x: Cells) -> Cells:
    return encode(found.net, x, np.full(len(x), NEW))


def rows(found: Mapping) -> list[torch.Tensor]:
    """All statistics of the new batch, its offset as the mean of kinds."""
    norm = found.net.encoder.norm
    return [values[NEW] for values in (found.net.shift, norm.shift, norm.spread, found.net.offsets.mean(1))]


def miss(z: Cells, kind: NDArray[np.int64]) -> float:
    """Distance of a new type's centre from its type's in the reference, in units of the spread; mean over types."""
    model, cells = trained()
    reference = encode(model.net_, model.sketch_, model.sketch_batch_)
    of_reference = cells.kind[cells.batch < NEW][model.sketch_cells_]
    gaps = []
    for k in np.unique(kind):
        own = reference[of_reference == k]
        gaps.append(np.linalg.norm(z[kind == k].mean(0) - own.mean(0)) / np.sqrt(own.var(0).sum()))
    return float(np.mean(gaps))


def kinds(*of: int) -> NDArray[np.int64]:
    _, cells = trained()
    return cells.kind[(cells.batch == NEW) & np.isin(cells.kind, of)]


# -- the reference ---------------------------------------------------------------------------------------------------


def test_the_reference_does_not_move_by_a_bit_and_the_network_given_stays_as_it_is() -> None:
    model, _ = trained()
    before = {name: values.clone() for name, values in model.net_.state_dict().items()}
    x, batch = model.sketch_, model.sketch_batch_
    z = encode(model.net_, x, batch)
    found = mapped(new_cells())
    np.testing.assert_array_equal(encode(found.net, x, batch), z)
    np.testing.assert_allclose(decode(found.net, z, batch), decode(model.net_, z, batch), atol=1e-5)
    for name, values in model.net_.state_dict().items():
        assert torch.equal(values, before[name]), name
    for name, values in found.net.state_dict().items():
        kept = (
            values[:, :-1]
            if name == "decoder.expand.weight"
            else values[:-1, :-1]
            if name == "design"
            else values[: len(before[name])]
            if values.ndim
            else values
        )
        assert torch.equal(kept, before[name]), name
        assert values.data_ptr() != model.net_.state_dict()[name].data_ptr(), name


def test_mapping_draws_no_random_number_of_torch() -> None:
    state = torch.get_rng_state()
    mapped(new_cells())
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_can_be_added_to_one_another() -> None:
    model, _ = trained()
    once = mapped(new_cells())
    twice = add_batch(once.net, model.sketch_, model.sketch_batch_, new_cells(), 20, np.random.default_rng(0))
    assert twice.net.config.n_batches == 4
    np.testing.assert_array_equal(encode(twice.net, new_cells(), np.full(270, 3)), embedded(once, new_cells()))


# -- the new batch ---------------------------------------------------------------------------------------------------


def test_a_new_batch_comes_to_lie_on_its_kin() -> None:
    x = new_cells(0, 1, 2)
    found, shared = mapped(x), Mapping(shared_batch(trained()[0].net_), 0)
    after, before = (miss(embedded(m, x), kinds(0, 1, 2)) for m in (found, shared))
    assert found.n_matched > 100
    assert after < 0.5
    assert before > 3 * after


def test_each_of_the_statistics_says_something() -> None:
    start = rows(Mapping(shared_batch(trained()[0].net_), 0))
    for found, shared in zip(rows(mapped(new_cells())), start, strict=True):
        assert not torch.allclose(found, shared, atol=1e-3)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_batch_of_one_type_is_laid_onto_that_type(kind: int) -> None:
    x = new_cells(kind)
    found, shared = mapped(x), Mapping(shared_batch(trained()[0].net_), 0)
    after, before = (miss(embedded(m, x), kinds(kind)) for m in (found, shared))
    assert before > 5 * after


def test_a_type_that_the_reference_lacks_is_not_laid_onto_another_and_moves_no_other() -> None:
    x = new_cells()
    kind, found = kinds(0, 1, 2, 3), mapped(x)
    z = embedded(found, x)
    assert miss(z[kind < 3], kind[kind < 3]) < 0.6
    model, _ = trained()
    reference = encode(model.net_, model.sketch_, model.sketch_batch_)
    nearest = np.linalg.norm(z[:, None] - reference, axis=2).min(1)
    assert np.median(nearest[kind == 3]) > 2 * np.median(nearest[kind < 3])


def test_few_cells_keep_near_to_the_shared_statistics() -> None:
    x, shared = new_cells(), Mapping(shared_batch(trained()[0].net_), 0)
    start = embedded(shared, x)
    moved = []
    for n in (1, 3, 10, len(x)):
        found = mapped(x[:: len(x) // n])
        assert found.n_matched <= len(x[:: len(x) // n])
        assert (found.net.encoder.norm.spread > 0).all()
        assert (found.net.shares[NEW] > 1e-6).all()
        moved.append(np.linalg.norm(embedded(found, x) - start, axis=1).mean())
    assert moved[0] < 0.4 * moved[-1]
    assert moved[1] < 0.8 * moved[-1]
    assert moved[2] < 1.2 * moved[-1]


def test_cells_without_a_likeness_and_no_cells_at_all_are_harmless() -> None:
    model, _ = trained()
    width = model.sketch_.shape[1]
    for x in (np.zeros((0, width), np.float32), np.zeros((1, width), np.float32), np.full((5, width), 1e6, np.float32)):
        found = mapped(x)
        assert np.isfinite(embedded(found, new_cells())).all()
        assert found.n_matched <= len(x)


# -- what has no say -------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**16))
@settings(max_examples=4, deadline=None)
def test_order_and_repeated_cells_have_no_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = new_cells()
    other = np.concatenate([x, x[rng.integers(len(x), size=50)]])
    for a, b in zip(rows(mapped(x)), rows(mapped(rng.permutation(other))), strict=True):
        assert torch.equal(a, b)


def test_order_has_no_say_where_cells_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "MAX_CELLS", 100)
    x = new_cells()
    assert mapped(x).n_matched <= 100
    for a, b in zip(rows(mapped(x)), rows(mapped(x[::-1])), strict=True):
        assert torch.equal(a, b)


def test_the_number_of_threads_has_no_say() -> None:
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with threadpool_limits(limits=threads):
            found.append(rows(mapped(new_cells())))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


# -- the decoder -----------------------------------------------------------------------------------------------------


def test_cells_that_were_not_looked_at_are_decoded_nearly_as_well_as_known_ones() -> None:
    model, _ = trained()
    x = new_cells(0, 1, 2)
    found = mapped(x[::2])

    def error(cells: Cells, batch: NDArray[np.int64]) -> float:
        left = decode(found.net, encode(found.net, cells, batch), batch) - cells
        return float(np.square(left).sum(1).mean())

    known = error(model.sketch_, model.sketch_batch_)
    unseen = x[1::2]
    assert error(unseen, np.full(len(unseen), NEW)) < 2 * known + 0.1


# -- a model of several covariates -----------------------------------------------------------------------------------


@cache
def trained_together() -> tuple[CellNorm, Clouds]:
    """A model of four batches, two donors with two protocols each; the fifth batch is left out."""
    cells = clouds([[50, 50, 50]] * 5, seed=2)
    known = cells.batch < 4
    model = CellNorm(n_comps=None, n_latent=8, n_steps=120, n_hidden=32, device="cpu")
    batch = cells.batch[known]
    return model.fit(cells.measured[known], np.column_stack([batch // 2, batch % 2])), cells


def test_a_batch_added_to_covariates_is_a_level_of_its_own() -> None:
    model, cells = trained_together()
    net, new = model.net_, cells.measured[cells.batch == 4]
    grown = shared_batch(net)
    assert (grown.config.n_batches, grown.config.n_levels) == (5, 5)
    assert grown.design.tolist() == [*([*row, 0] for row in net.design.tolist()), [0, 0, 0, 0, 1]]
    told = grown.decoder.expand.weight[:, -5:] @ grown.design.T  # what the decoder is told of each batch
    torch.testing.assert_close(told[:, 4], told[:, :4].mean(1))
    twice = model.add_batch(new, "one").add_batch(new[:60], "two")
    assert twice.batches_.tolist() == ["0 / 0", "0 / 1", "1 / 0", "1 / 1", "one", "two"]
    assert twice.net_.design.sum(1).tolist() == [2, 2, 2, 2, 1, 1]
    z = twice.transform(new, ["one"] * len(new))
    reference, kind = twice.reference_embedding(), cells.kind[cells.batch < 4][model.sketch_cells_]
    centres = np.stack([reference[kind == k].mean(0) for k in range(3)])
    nearest = np.linalg.norm(z[:, None] - centres, axis=2).argmin(1)
    assert (nearest == cells.kind[cells.batch == 4]).mean() > 0.95


def test_a_match_that_two_covariates_find_counts_once() -> None:
    rng = np.random.default_rng(0)
    reference, own = rng.normal(size=(60, 4)).astype(np.float32), rng.normal(size=(30, 4)).astype(np.float32)
    once = np.eye(2, dtype=bool)[np.zeros(60, int)]
    twice = np.ones((60, 2), bool)
    found, again = (mapping._matches(reference, levels, own, 5, torch.device("cpu")) for levels in (once, twice))
    assert found.own.tolist() == again.own.tolist()
    assert found.partner.tolist() == again.partner.tolist()
    assert len(found.own) > 0
