"""The frozen linear front: log-normalised genes to principal components and back.

The network never sees genes. It lives on the principal components, so that a training step costs the same whatever the
number of genes; the loadings are orthonormal, so that reconstructing the components is reconstructing the expression.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from cellnorm.determinism import one_thread
from cellnorm.errors import DataError
from cellnorm.parts import blocks, spans

__all__ = ["CHUNK_ROWS", "MAX_GENES_EXACT", "Gram", "LinearFront", "sum_of"]

# The covariance matrix of this many genes takes 128 MB; beyond it an iterative solver is the better choice.
MAX_GENES_EXACT = 4096
CHUNK_ROWS = 4096


@dataclass(frozen=True)
class LinearFront:
    """Principal components of an expression matrix, as two arrays.

    Attributes
    ----------
    mean
        Mean expression of each gene, shape (n_genes,), in the units of the matrix.
    loadings
        Orthonormal columns, shape (n_genes, n_comps); the largest entry of each column is positive.
    variance
        Variance of each component, shape (n_comps,), descending.
    variance_ratio
        Share of the total variance, shape (n_comps,).

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm import LinearFront
    >>> X = np.random.default_rng(0).poisson(1.0, (200, 30)).astype("float32")
    >>> front = LinearFront.fit(X, n_comps=5)
    >>> front.project(X).shape, front.lift(front.project(X)).shape
    ((200, 5), (200, 30))
    """

    mean: NDArray[np.float64]
    loadings: NDArray[np.float64]
    variance: NDArray[np.float64]
    variance_ratio: NDArray[np.float64]

    @classmethod
    def fit(cls, X: Any, n_comps: int = 50) -> LinearFront:
        """Find the principal components of a matrix.

        The rows are read once, in chunks; the answer does not depend on how the matrix is stored nor on the number of
        threads (the covariance is accumulated in a fixed order by one thread).

        Parameters
        ----------
        X
            Expression, shape (n_cells, n_genes); dense, CSR or CSC, any number type. Used as float32.
        n_comps
            Number of components wanted; at most min(n_cells - 1, n_genes) are found.

        Raises
        ------
        DataError
            If there are fewer than two cells or no gene varies.
        """
        with one_thread():
            if X.shape[1] > MAX_GENES_EXACT:
                return cls._of(*_iterative(X, _n_comps(n_comps, *X.shape)))
            X = X.tocsr() if hasattr(X, "tocsr") else np.asarray(X)
            return cls.of_gram(sum_of(Gram.of(_chunks(X, span), X.shape[1]) for span in spans(X.shape[0])), n_comps)

    @classmethod
    def of_gram(cls, gram: Gram, n_comps: int = 50) -> LinearFront:
        """Find the principal components of a matrix that was added up.

        Parameters
        ----------
        gram
            The sums over all its rows.
        n_comps
            As in `fit`.

        Raises
        ------
        DataError
            As `fit`.
        """
        n_comps = _n_comps(n_comps, gram.n_cells, len(gram.total))
        with one_thread():
            return cls._of(*_exact(gram, n_comps))

    @classmethod
    def _of(
        cls, mean: NDArray[np.float64], loadings: NDArray[np.float64], variance: NDArray[np.float64], total: float
    ) -> LinearFront:
        if not total > 1e-6 * np.square(mean).sum():  # what rounding leaves of constant genes
            raise DataError(
                "Principal components were asked for, but no gene varies between the cells. Check the matrix."
            )
        flip = np.sign(loadings[np.abs(loadings).argmax(axis=0), np.arange(len(variance))])
        return cls(mean, loadings * flip, variance, variance / total)

    def project(self, X: Any) -> NDArray[np.float32]:
        """Principal components of cells, shape (n_cells, n_comps).

        Parameters
        ----------
        X
            Expression of the genes of the front, shape (n_cells, n_genes).

        Raises
        ------
        DataError
            If the number of genes differs from that of the front.
        """
        if X.shape[1] != len(self.mean):
            raise DataError(
                f"The model was made with {len(self.mean)} genes and got {X.shape[1]}. "
                "Give it the same genes in the same order."
            )
        offset = self.mean @ self.loadings
        X = X.tocsr() if hasattr(X, "tocsr") else np.asarray(X)
        out = np.empty((X.shape[0], self.loadings.shape[1]), np.float32)
        for start, rows in zip(range(0, X.shape[0], CHUNK_ROWS), _chunks(X), strict=True):
            out[start : start + CHUNK_ROWS] = _sparse(rows) @ self.loadings - offset
        return out

    def restricted(self, present: NDArray[np.bool_]) -> LinearFront:
        """The front for files that lack genes; its `project` fills these with what the others let expect.

        Under probabilistic PCA (Tipping and Bishop 1999) a cell is W t plus noise of variance s2, t of variance
        V - s2 I; what genes o let expect of the others m is W_m (W_o'W_o + s2 (V - s2 I)^-1)^-1 W_o'(x_o - mean_o).
        This is linear in x_o, so that the answer is a front itself, with loadings
        W_o (I + (W_o'W_o + s2 (V - s2 I)^-1)^-1 W_m'W_m).

        Parameters
        ----------
        present
            Which of the genes of the front the file has, shape (n_genes,).

        Returns
        -------
        LinearFront
            For the genes that are there, in the order of this front; this front itself if none is missing. Its
            loadings are not orthonormal: `lift` is for the front of all genes.

        Raises
        ------
        DataError
            If `present` does not fit or no gene is there.

        Examples
        --------
        >>> import numpy as np
        >>> from cellnorm import LinearFront
        >>> X = np.random.default_rng(0).poisson(1.0, (200, 30)).astype("float32")
        >>> front = LinearFront.fit(X, n_comps=5)
        >>> present = np.arange(30) < 27
        >>> front.restricted(present).project(X[:, present]).shape
        (200, 5)
        """
        present = np.asarray(present, bool)
        if present.shape != self.mean.shape or not present.any():
            raise DataError(
                f"The model was made with {len(self.mean)} genes; of {present.size} asked about, "
                f"{int(present.sum())} are there. Give a file that has at least some of the model's genes."
            )
        if present.all():
            return self
        known, gone = self.loadings[present], self.loadings[~present]
        left = float(self.variance.sum() * (1 / max(self.variance_ratio.sum(), 1e-12) - 1))
        # a little noise even where the components explain everything, so that there is one answer
        noise = max(left / max(len(self.mean) - known.shape[1], 1), 1e-6 * float(self.variance[0]))
        root = np.sqrt(np.maximum(self.variance - noise, 0))
        with one_thread():
            system = root[:, None] * (known.T @ known) * root + noise * np.eye(len(root))
            expected = root[:, None] * np.linalg.solve(system, root[:, None] * (gone.T @ gone))
            loadings = known + known @ expected
        return LinearFront(self.mean[present], loadings, self.variance, self.variance_ratio)

    def lift(self, pcs: NDArray[np.floating]) -> NDArray[np.float32]:
        """Expression that belongs to principal components, shape (n_cells, n_genes), in the units of the fitted X."""
        lifted = np.asarray(pcs, np.float64) @ self.loadings.T + self.mean
        return np.asarray(lifted, np.float32)


@dataclass
class Gram:
    """What the components of a matrix are found from: sums over its rows, which can be added up.

    Attributes
    ----------
    n_cells
        Number of rows.
    total
        Sum of the rows, shape (n_genes,).
    products
        Sums of the products of any two columns, shape (n_genes, n_genes).
    """

    n_cells: int
    total: NDArray[np.float64]
    products: NDArray[np.float64]

    @classmethod
    def of(cls, chunks: Iterable[Any], n_genes: int) -> Gram:
        """Of the rows of a part, in chunks of CHUNK_ROWS: CSR or dense, float32."""
        n_cells, total, products = 0, np.zeros(n_genes), np.zeros((n_genes, n_genes))
        for rows in chunks:
            chunk = rows if isinstance(rows, np.ndarray) else rows.toarray()
            n_cells += len(chunk)
            total += chunk.sum(axis=0, dtype=np.float64)
            products += chunk.T @ chunk
        return cls(n_cells, total, products)


def sum_of(parts: Iterable[Gram]) -> Gram:
    """The sums over all parts, in their order; the first is changed."""
    every = iter(parts)
    whole = next(every)
    for part in every:
        whole.n_cells += part.n_cells
        whole.total += part.total
        whole.products += part.products
    return whole


def _n_comps(n_comps: int, n_cells: int, n_genes: int) -> int:
    n_comps = min(n_comps, n_cells - 1, n_genes)
    if n_comps < 1:
        raise DataError(
            f"Principal components need at least 2 cells and 1 gene, found {n_cells} x {n_genes}. "
            "Give more cells, or keep more genes."
        )
    return n_comps


def _chunks(X: Any, span: slice | None = None) -> Iterator[Any]:
    """Pieces of CHUNK_ROWS rows: CSR as CSR, dense as dense, in float32."""
    for _, rows in blocks(X, span, CHUNK_ROWS):
        yield rows.astype(np.float32, copy=False)


def _sparse(rows: Any) -> Any:
    """Rows as CSR in canonical form: products go value by value, so that a cell's bits depend on the cell alone."""
    rows = sp.csr_matrix(rows, dtype=np.float32, copy=True)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows


Fitted = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]


def _exact(gram: Gram, n_comps: int) -> Fitted:
    """Eigenvectors of the covariance matrix."""
    n_cells, n_genes = gram.n_cells, len(gram.total)
    mean = gram.total / n_cells
    covariance = (gram.products - n_cells * np.outer(mean, mean)) / (n_cells - 1)
    total_variance = float(np.trace(covariance))
    span = (n_genes - n_comps, n_genes - 1)
    variance, loadings = scipy.linalg.eigh(covariance, subset_by_index=span, overwrite_a=True, check_finite=False)
    return mean, loadings[:, ::-1], np.maximum(variance[::-1], 0), total_variance


def _iterative(X: Any, n_comps: int) -> Fitted:
    """Lanczos iterations for many genes (scikit-learn centres sparse matrices implicitly)."""
    pca = PCA(n_comps, svd_solver="arpack", random_state=0).fit(_sparse(X))
    total = float(pca.explained_variance_.sum() / pca.explained_variance_ratio_.sum())
    values = [np.asarray(a, np.float64) for a in (pca.mean_, pca.components_.T, pca.explained_variance_)]
    return values[0], values[1], values[2], total
