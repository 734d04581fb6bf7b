"""Mixing and biology along the strength of the correction, from one training run for each set.

    python benchmarks/strength.py --data FOLDER [kang_8donors pancreas_5batches ...]

"mixing": the mean of iLISI, CiLISI and kBET; "biology": of the silhouette of the types and the share of the 15 nearest
cells that are of a cell's own type. "falls" is the largest step by which mixing falls from one strength to the next:
0 if it is monotone. "chosen" is the strength chosen from the data, which never sees the types. At most 2,500 cells are
scored, the same at each strength. The last rows are the means over all sets.
"""

import argparse
import warnings
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cellnorm import CellNorm
from cellnorm.metrics import cilisi, ilisi, kbet, label_silhouette, nearest_neighbors
from cellnorm.pp import log_expression

STRENGTHS = np.linspace(0, 1, 11)
MAX_CELLS, K = 2500, 15


class Point(NamedTuple):
    """Scores at one strength."""

    ilisi: float
    cilisi: float
    kbet: float
    silhouette: float
    purity: float

    @property
    def mixing(self) -> float:
        return float(np.mean([self.ilisi, self.cilisi, self.kbet]))

    @property
    def biology(self) -> float:
        return float(np.mean([self.silhouette, self.purity]))


def scored(z: NDArray[np.float32], batch: NDArray[np.int64], kind: NDArray[np.int64]) -> Point:
    near = nearest_neighbors(z, 90)
    own = NearestNeighbors(n_neighbors=K, algorithm="brute", n_jobs=1).fit(z).kneighbors()[1]
    return Point(
        float(ilisi(near, batch)),
        float(cilisi(z, batch, kind)),
        float(kbet(near.first(50), batch).accepted.mean()),
        float((label_silhouette(z, kind).mean() + 1) / 2),
        float((kind[own] == kind[:, None]).mean()),
    )


def curve(path: Path) -> tuple[list[Point], float]:
    """Scores at each strength, and the strength chosen from the data."""
    adata = ad.read_h5ad(path)
    batch, kind = (adata.obs[column].astype(str).to_numpy() for column in ("batch", "cell_type"))
    X = log_expression(adata, batch)[0]
    model = CellNorm().fit(X, batch)
    cells = np.sort(np.random.default_rng(0).permutation(len(batch))[:MAX_CELLS])
    codes = [np.unique(of[cells], return_inverse=True)[1] for of in (batch, kind)]
    return [scored(model.transform(X[cells], batch[cells], strength=s), *codes) for s in STRENGTHS], model.strength_


def falls(values: list[float]) -> float:
    return max(0.0, -float(np.diff(values).min()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"{'':36}" + "".join(f"{s:>6.1f}" for s in STRENGTHS) + "  falls chosen", flush=True)
    curves = []
    for path in sorted(args.data.glob("*.h5ad")):
        if args.sets and path.stem not in args.sets:
            continue
        points, chosen = curve(path)
        curves.append(points)
        for name in ("mixing", "biology"):
            values = [getattr(point, name) for point in points]
            end = f"{falls(values):>7.3f}{chosen:>7.2f}" if name == "mixing" else ""
            print(f"{path.stem:28}{name:8}" + "".join(f"{v:>6.3f}" for v in values) + end, flush=True)
    for name in ("mixing", "ilisi", "cilisi", "kbet", "biology", "silhouette", "purity"):
        means = [float(np.mean([getattr(points[i], name) for points in curves])) for i in range(len(STRENGTHS))]
        print(f"{'mean of ' + str(len(curves)):24}{name:12}" + "".join(f"{v:>6.3f}" for v in means), flush=True)


if __name__ == "__main__":
    main()
