"""Fixtures that several test files share, and limits that keep the tests quick and repeatable on two cores."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before the first import of numpy or torch, which read these once: two processes of two threads each on two cores run
# ten times slower than one after the other, and numerical results may depend on the number of threads.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, settings

# No deadline: the first example pays for imports and compilation, and a busy machine is not a bug. In CI the examples
# are the same each time, so that a change is never blamed for what a new example found.
settings.register_profile(
    "cellnorm",
    deadline=None,
    max_examples=25,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("cellnorm")

N_CELLS, N_GENES, N_BATCHES, N_TYPES = 300, 200, 3, 4


@pytest.fixture(autouse=True)
def same_threads_after_each_test() -> Iterator[None]:
    """A test may change the number of torch threads; the next one must not notice."""
    yield
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets."""
    folder = os.environ.get("CELLNORM_DATA")
    if not folder:
        pytest.skip("CELLNORM_DATA is not set: the tests on real data need a folder of data sets")
    if not Path(folder).is_dir():
        pytest.fail(f"CELLNORM_DATA names no folder: {folder}")
    return Path(folder).resolve()


def _simulated() -> ad.AnnData:
    """Counts of 4 types in 3 batches that shift every gene, made without the package that they test."""
    rng = np.random.default_rng(0)
    batch = np.arange(N_CELLS) % N_BATCHES
    kind = rng.permutation(np.arange(N_CELLS) // N_BATCHES % N_TYPES)
    base = rng.normal(0.0, 1.0, N_GENES)
    of_type = np.where(rng.random((N_TYPES, N_GENES)) < 0.2, rng.normal(0.0, 2.0, (N_TYPES, N_GENES)), 0.0)
    of_batch = rng.normal(0.0, 0.5, (N_BATCHES, N_GENES))
    rate = np.exp(base + of_type[kind] + of_batch[batch])
    depth = rng.uniform(300, 900, N_CELLS)
    counts = rng.poisson(depth[:, None] * rate / rate.sum(axis=1, keepdims=True))
    obs = pd.DataFrame(
        {"batch": pd.Categorical([f"lab{b}" for b in batch]), "cell_type": pd.Categorical([f"type{t}" for t in kind])},
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)])
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


@pytest.fixture(scope="session")
def simulated_once() -> ad.AnnData:
    """The simulated counts, made once; tests use `small_adata`, their own copy."""
    return _simulated()


@pytest.fixture
def small_adata(simulated_once: ad.AnnData) -> ad.AnnData:
    """300 cells x 200 genes of counts (CSR float32); obs `batch` (lab0..2), `cell_type` (type0..3). Yours to change."""
    return simulated_once.copy()
