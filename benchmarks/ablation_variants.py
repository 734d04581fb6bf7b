"""The variants of `ablation.py`: each puts something else in place of one named piece of the method.

The package has no switches for this. A variant replaces a name that the package looks up when it runs; a name that is
gone is an error, so that a renaming cannot turn a variant into the full method unseen. Variants can be combined:
"shared+no-shift".
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from ablation_pieces import (
    BatchwiseNorm,
    Cells,
    Codes,
    LayerNorm,
    NoNorm,
    NoSkip,
    SharedNorm,
    SkipEncoder,
    drawn,
    found_among,
    found_in_draws,
    no_axes,
    no_kinship,
    no_reconstruction,
    no_shift,
)
from numpy.typing import NDArray

from cellnorm import CellNorm, autoencoder, components, fitting, losses, training
from cellnorm.anchors import Anchors, cosine
from cellnorm.counterparts import Counterparts
from cellnorm.kinds import Kinds
from cellnorm.sampling import Minibatch

FULL, UNCORRECTED = "full", "uncorrected"
# Of every variant, the full method included: it is given components, nothing depends on the machine, and rows do not
# differ less where the data ask for less correction.
FIXED: dict[str, Any] = {"n_comps": None, "device": "cpu", "strength": 1.0}
SEARCH = "level_anchors"  # the search for anchors, before and in the training
DRAWN = 4  # random cells among which a minibatch looks for its pairs, over the pairs wanted


def piece(where: Any, name: str) -> Any:
    """What a variant takes the place of."""
    if not hasattr(where, name):
        raise AttributeError(f"a variant replaces {name} of {where.__name__}, which is gone: adapt {__name__}.py")
    return getattr(where, name)


@contextmanager
def replaced(where: Any, name: str, new: Any) -> Iterator[None]:
    """Put something in place of a named piece for a while."""
    old = piece(where, name)
    setattr(where, name, new)
    try:
        yield
    finally:
        setattr(where, name, old)


@contextmanager
def no_offsets() -> Iterator[None]:
    """Kinds are found as ever, since later draws depend on it, but batches are not moved."""
    find = piece(fitting, "find_kinds")

    def found(*given: Any, **named: Any) -> Kinds:
        kinds: Kinds = find(*given, **named)
        return dataclasses.replace(kinds, offsets=np.zeros_like(kinds.offsets))

    with replaced(fitting, "find_kinds", found):
        yield


@contextmanager
def no_refusal() -> Iterator[None]:
    """Clusters are judged as ever, since later draws depend on it, but all anchors are kept."""
    find = piece(components, "find_counterparts")

    def found(*given: Any, **named: Any) -> Counterparts:
        told: Counterparts = find(*given, **named)
        return dataclasses.replace(told, allowed=np.ones_like(told.allowed))

    with replaced(components, "find_counterparts", found):
        yield


@contextmanager
def no_refresh() -> Iterator[None]:
    """At half time the search gives the anchors that there are."""
    train = piece(fitting, "train")

    def once(*given: Any, **named: Any) -> Any:
        anchors = inspect.signature(train).bind(*given, **named).arguments["anchors"]
        with replaced(training, SEARCH, lambda *_: anchors):
            return train(*given, **named)

    with replaced(fitting, "train", once):
        yield


@contextmanager
def inside() -> Iterator[None]:
    """Every minibatch looks for its pairs among random cells: by angle on the components, from half time on embedded.

    Which pairs are taken, how many, which are refused and which cells come along is as in the full method.
    """
    train, minibatches = piece(fitting, "train"), piece(training, "minibatches")

    def search(x: Cells, batch: Codes, n_neighbors: int, *_: Any) -> Anchors:
        return found_in_draws(x, batch, n_neighbors, DRAWN * CellNorm().n_pairs)

    def watched(*given: Any, **named: Any) -> Any:
        bound = inspect.signature(train).bind(*given, **named)
        bound.apply_defaults()
        net, x, config, told = (bound.arguments[name] for name in ("net", "x", "config", "counterparts"))
        streams = 0

        def stream(batch: Codes, _: Anchors, rng: np.random.Generator, **sizes: int) -> Iterator[Minibatch]:
            nonlocal streams
            streams += 1
            return pairs_inside(batch, rng, sizes, embedded=streams > 1)

        def pairs_inside(
            batch: Codes, rng: np.random.Generator, sizes: dict[str, int], *, embedded: bool
        ) -> Iterator[Minibatch]:
            while True:
                cells = drawn(batch, DRAWN * config.n_pairs, rng)
                place = training.encode(net, x[cells], batch[cells]) if embedded else cosine(x[cells])
                net.train()  # which embedding ends
                anchors = found_among(cells, place, batch, config.n_neighbors)
                yield next(minibatches(batch, told.keep(anchors) if told else anchors, rng, **sizes))

        with replaced(training, "minibatches", stream):
            return train(*given, **named)

    with (
        replaced(components, SEARCH, search),
        replaced(training, SEARCH, search),
        replaced(fitting, "train", watched),
    ):
        yield


# The rows --------------------------------------------------------------------------------------------------------


class Variant(NamedTuple):
    """What a table calls it, what is replaced while it runs, and parameters that differ."""

    label: str
    change: Callable[[], AbstractContextManager[None]] = nullcontext
    params: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def swap(where: Any, name: str, new: Any) -> Callable[[], AbstractContextManager[None]]:
    return lambda: replaced(where, name, new)


VARIANTS: dict[str, Variant] = {
    FULL: Variant("full method (matched BatchNorm)"),
    "none": Variant("no norm", swap(autoencoder, "MatchedBatchNorm", NoNorm)),
    "layer": Variant("LayerNorm", swap(autoencoder, "MatchedBatchNorm", LayerNorm)),
    "shared": Variant("shared BatchNorm", swap(autoencoder, "MatchedBatchNorm", SharedNorm)),
    "per-batch": Variant("BatchNorm per batch", swap(autoencoder, "MatchedBatchNorm", BatchwiseNorm)),
    "no-shift": Variant("no matched shift at the input", swap(training, "matched_shift", no_shift)),
    "no-contrast": Variant("no contrast", params={"contrast": 0.0}),
    "no-kinship": Variant("no kinship", swap(losses, "kinship", no_kinship)),
    "no-reconstruction": Variant("no reconstruction", swap(losses, "reconstruction", no_reconstruction)),
    "no-geometry": Variant("no geometry", params={"geometry": 0.0}),
    "skip": Variant("a skip connection in the encoder, too", swap(fitting, "Autoencoder", SkipEncoder)),
    "no-skip": Variant("no skip connection, any start", swap(fitting, "Autoencoder", NoSkip)),
    "no-refresh": Variant("no refresh of anchors", no_refresh),
    "no-refusal": Variant("no refusal of anchors", no_refusal),
    "no-offsets": Variant("no offsets by kind", no_offsets),
    "no-shrinking": Variant("no shrinking of axes", swap(fitting, "signal_axes", no_axes)),
    "inside": Variant("anchors inside the minibatch", inside),
    UNCORRECTED: Variant("uncorrected components"),
}


def parts(row: str) -> list[str]:
    """The variants that a row combines.

    Raises
    ------
    ValueError
        A variant that is not there, or one that nothing can be combined with.
    """
    found = row.split("+")
    if unknown := set(found) - VARIANTS.keys():
        raise ValueError(f"no such variant: {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    if len(found) > 1 and {FULL, UNCORRECTED} & set(found):
        raise ValueError(f"{row!r}: {FULL} and {UNCORRECTED} stand alone")
    return found


def label(row: str) -> str:
    return ", ".join(VARIANTS[part].label for part in parts(row))


def embed(row: str, pcs: Cells, batch: NDArray[Any], seed: int, **params: Any) -> Cells:
    """The embedding that a variant makes of components, shape (n_cells, n_comps); `params` for CellNorm."""
    if row == UNCORRECTED:
        return pcs
    with ExitStack() as stack:
        for part in parts(row):
            stack.enter_context(VARIANTS[part].change())
            params |= VARIANTS[part].params
        return CellNorm(**FIXED, **params, random_state=seed).fit_transform(pcs, batch)
