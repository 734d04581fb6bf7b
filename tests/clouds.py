"""Cells as round clouds, one per type, with an offset for each batch: what a correction should do to them is known."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Clouds(NamedTuple):
    """Cells sorted by batch, as measured and without the offsets of the batches; and the centre of each type."""

    truth: NDArray[np.float32]
    measured: NDArray[np.float32]
    batch: NDArray[np.int64]
    kind: NDArray[np.int64]
    centres: NDArray[np.float64]

    def moved(self, kind: int, onto: int) -> NDArray[np.float32]:
        """The truth with one type laid onto another."""
        step = np.where((self.kind == kind)[:, None], self.centres[onto] - self.centres[kind], 0)
        return np.asarray(self.truth + step, np.float32)


def clouds(sizes: list[list[int]], seed: int = 0, *, offset: float = 3.0) -> Clouds:
    """Cells of sizes[batch][type], of standard deviation 1 in ten dimensions; types lie about 25 apart."""
    rng = np.random.default_rng(seed)
    table = np.array(sizes)
    centres = 5.6 * rng.normal(size=(table.shape[1], 10))
    batch = np.repeat(np.arange(len(table)), table.sum(1))
    kind = np.concatenate([np.repeat(np.arange(len(row)), row) for row in table])
    truth = (centres[kind] + rng.normal(size=(len(batch), 10))).astype(np.float32)
    effect = offset * rng.normal(size=(len(table), 10))
    return Clouds(truth, (truth + effect[batch]).astype(np.float32), batch, kind, centres)
