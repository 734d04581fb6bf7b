"""Two covariates, donor and protocol, corrected together, one alone, and crossed into a batch for each combination.

    python benchmarks/covariates.py                    three seeds of each design
    python benchmarks/covariates.py --seeds 1 crossed  one seed of one design

Simulated cells, whose log expression is that of their type plus what their donor and their protocol add. Mixing is
CiLISI, by donor, by protocol and by their combination; a combination of a few cells says less. Purity is the share of
a cell's 15 nearest neighbours that are of its type. "Without effects" are the components of the same cells simulated
with neither donors' nor protocols' effects, what there is to reach. Harmony has the same components and covariates, if
it is installed. Designs:

    crossed      8 donors x 4 protocols, each protocol in each donor; types in uneven shares
    unbalanced   the same with protocols in very uneven shares from donor to donor, and donors that lack types
    nested       8 donors, each measured with one of 4 protocols
    many         40 donors x 5 protocols of some 10 cells each
"""

import argparse
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cellnorm import CellNorm
from cellnorm.datasets import simulate
from cellnorm.front import LinearFront
from cellnorm.metrics import cilisi
from cellnorm.pp import log_expression

DESIGNS = ("crossed", "unbalanced", "nested", "many")
COLUMNS = ("donor mixing", "protocol mixing", "crossed mixing", "type purity", "seconds")
K, DONOR_SD, PROTOCOL_SD = 15, 0.35, 0.5  # of natural logarithms: like unlike donors, and like versions of a protocol


def simulated(
    design: str, *, n_cells: int = 1500, n_genes: int = 1000, seed: int = 0, strength: float = 1.0
) -> ad.AnnData:
    """Counts of donors and protocols whose effects add up, with obs donor, protocol, both and cell_type."""
    n_donors, n_protocols = (40, 5) if design == "many" else (8, 4)
    n_cells = 2000 if design == "many" else n_cells
    missing = (4, 2) if design == "unbalanced" else 0
    adata = simulate(
        n_cells, n_genes, n_batches=n_donors, batch_effect=0, composition=2.0, missing_types=missing, random_state=seed
    )
    rng = np.random.default_rng([seed, DESIGNS.index(design)])
    donor = adata.obs["batch"].cat.codes.to_numpy().astype(int)
    shares = rng.dirichlet(np.full(n_protocols, 0.5 if design == "unbalanced" else 1e6), n_donors)
    if design == "nested":
        shares = np.eye(n_protocols)[np.arange(n_donors) % n_protocols]
    protocol = (rng.random(n_cells)[:, None] > shares.cumsum(1)[donor]).sum(1).clip(max=n_protocols - 1)
    effect = DONOR_SD * rng.normal(size=(n_donors, n_genes))[donor]
    effect += PROTOCOL_SD * rng.normal(size=(n_protocols, n_genes))[protocol]
    truth = adata.var["log_mean"].to_numpy() + adata.obsm["X_truth"] @ adata.varm["truth_loadings"].T
    rate = np.exp(truth + strength * effect)
    rate *= (adata.obs["library_size"].to_numpy() / rate.sum(1))[:, None]
    dispersion = adata.var["dispersion"].to_numpy()
    counts = rng.poisson(rate * rng.standard_gamma(1 / dispersion, rate.shape) * dispersion)
    obs = pd.DataFrame({"cell_type": adata.obs["cell_type"]}, index=adata.obs_names)
    obs["donor"], obs["protocol"] = [f"d{i}" for i in donor], [f"p{i}" for i in protocol]
    obs["both"] = obs["donor"] + "/" + obs["protocol"]
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=adata.var)


def scores(z: NDArray[Any], obs: pd.DataFrame) -> list[float]:
    """CiLISI of donor, protocol and both, and purity of types."""
    kind = np.unique(obs["cell_type"].astype(str), return_inverse=True)[1]
    mixing = [cilisi(z, np.unique(obs[key], return_inverse=True)[1], kind) for key in ("donor", "protocol", "both")]
    near = NearestNeighbors(n_neighbors=K, n_jobs=1).fit(z).kneighbors(return_distance=False)
    return [*mixing, float((kind[near] == kind[:, None]).mean())]


def components(adata: ad.AnnData) -> NDArray[np.float32]:
    """Principal components as `cellnorm.tl.correct` makes them of donors."""
    expression = log_expression(adata, adata.obs["donor"].to_numpy())[0]
    return LinearFront.fit(expression, 50).project(expression)


def ways(obs: pd.DataFrame, pcs: NDArray[np.float32], seed: int) -> Iterator[tuple[str, Callable[[], NDArray[Any]]]]:
    """Names of corrections and how each is made from the components."""

    def corrected(keys: list[str]) -> Callable[[], NDArray[Any]]:
        model = CellNorm(n_comps=None, device="cpu", random_state=seed)
        return lambda: model.fit_transform(pcs, obs[keys])

    yield "uncorrected", lambda: pcs
    yield "donor alone", corrected(["donor"])
    yield "protocol alone", corrected(["protocol"])
    yield "donor x protocol, crossed", corrected(["both"])
    yield "donor, protocol", corrected(["donor", "protocol"])
    if importlib.util.find_spec("harmonypy"):
        yield "Harmony: donor, protocol", lambda: harmony(pcs, obs, seed)


def harmony(pcs: NDArray[np.float32], obs: pd.DataFrame, seed: int) -> NDArray[Any]:
    import harmonypy

    found = harmonypy.run_harmony(pcs, obs, ["donor", "protocol"], random_state=seed, verbose=False)
    z = np.asarray(found.Z_corr)
    return z if len(z) == len(pcs) else z.T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("designs", nargs="*", default=DESIGNS, metavar="DESIGN", choices=[*DESIGNS, DESIGNS])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for design in args.designs:
        found: dict[str, list[list[float]]] = {}
        for seed in range(args.seeds):
            adata = simulated(design, seed=seed)
            without = components(simulated(design, seed=seed, strength=0))
            found.setdefault("the same without effects", []).append([*scores(without, adata.obs), 0])
            for name, correct in ways(adata.obs, components(adata), seed):
                start = time.perf_counter()
                z = correct()
                seconds = time.perf_counter() - start
                found.setdefault(name, []).append([*scores(z, adata.obs), seconds])
        sizes = adata.obs["both"].value_counts()
        print(f"\n{design}: {adata.n_obs} cells, {len(sizes)} combinations of {sizes.min()} to {sizes.max()} cells")
        print(f"{'':28}" + "".join(f"{column:>17}" for column in COLUMNS))
        for name, rows in found.items():
            print(f"{name:28}" + "".join(f"{value:17.3f}" for value in np.mean(rows, axis=0)), flush=True)


if __name__ == "__main__":
    main()
