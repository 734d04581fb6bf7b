"""A file of cells from its values to principal components and embedding, part by part, never held as a whole.

Each pass is a function that does one part of the rows and writes what it found into an open file of the work folder: it
is told where the matrix lies and opens it itself, so that any process that sees both can do it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellnorm.adata import Place, by_cells, file_places, first_usable, open_rows
from cellnorm.components import place as embed
from cellnorm.errors import DataError
from cellnorm.estimator import CellNorm
from cellnorm.front import CHUNK_ROWS, MAX_GENES_EXACT, Gram, LinearFront, sum_of
from cellnorm.parts import Map, blocks, spans
from cellnorm.survey import Seen, Survey, canonical, count_scale, log_block, survey
from cellnorm.training import Progress
from cellnorm.work import WorkFolder, atomic, load_arrays, load_rows

__all__ = ["Passes"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passes:
    """The passes over a file of cells, each of which takes up what is in the work folder already.

    Attributes
    ----------
    folder
        Where stages are kept.
    n_cells
        Rows of the file.
    run
        Who does the parts.
    progress
        Called with (stage, parts done, parts, None).
    """

    folder: WorkFolder
    n_cells: int
    run: Map = map
    progress: Progress | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Take the time of a stage."""
        start = time.perf_counter()
        yield
        self.folder.add_seconds(name, time.perf_counter() - start)

    def survey(
        self, path: Path, layer: str | None, codes: NDArray[np.int64], n_batches: int
    ) -> tuple[Place, Survey, str]:
        """Find the matrix with counts or log-normalised values, and look at all its values.

        Parameters
        ----------
        path
            An .h5ad or .zarr.
        layer
            The layer to take; None: as `cellnorm.adata.choose_matrix` does.
        codes
            Batch of each cell.
        n_batches
            Number of batches.

        Returns
        -------
        Where the matrix lies, what was found, and its kind.

        Raises
        ------
        DataError
            If there is no usable matrix.
        """
        there = {place.source: place for place in file_places(path.absolute(), layer)}
        with atomic(self.file("codes")) as handle:
            np.save(handle, codes.astype(np.int32))
        found: dict[str, Survey] = {}

        def look(source: str) -> tuple[str, str]:
            number = list(there).index(source)
            there[source] = by_cells(there[source], self.folder.path / f"by-cells-{number}.h5")
            if there[source].copy:
                logger.info("%s is stored by genes: copied into the work folder, stored by cells", source)
            with open_rows(there[source], slice(0, 0)) as rows:
                n_rows, n_genes = rows.shape
            if not n_rows or not n_genes:
                return "other", f"no values ({n_rows} cells x {n_genes} genes)"
            name = f"survey-{number}"
            found[source] = self._survey(name, there[source], n_batches)
            return found[source].seen.kind()

        with self.stage("survey"):
            source, kind = first_usable(there, look, layer)
        return there[source], found[source], kind

    def _survey(self, name: str, place: Place, n_batches: int) -> Survey:
        whole = self.folder.path / f"{name}.npz"
        if not whole.exists():
            parts = spans(self.n_cells)
            of_part = partial(_survey_part, place, str(self.file("codes")), n_batches, False)
            files = self.folder.parts(name, of_part, parts, self.run, self.tick("survey"))
            found = _sum(files)
            if found.seen.kind()[0] == "log":  # then a part of whole numbers is one of logarithms, too
                wrong = [i for i, file in enumerate(files) if _loaded(file).counts]
                again = partial(_survey_part, place, str(self.file("codes")), n_batches, True)
                right = self.folder.parts(f"{name}-log", again, [parts[i] for i in wrong], self.run)
                for i, file in zip(wrong, right, strict=True):
                    files[i] = file
                found = _sum(files)
            with atomic(whole) as handle:
                _save(found, handle)
        self.folder.drop(name)
        self.folder.drop(f"{name}-log")
        return _loaded(whole)

    def front(
        self, place: Place, positions: NDArray[np.intp], n_comps: int, *, counts: bool
    ) -> tuple[LinearFront, int]:
        """Take the log values of some genes out of the file, and find the principal components.

        Parameters
        ----------
        place
            Where the matrix lies.
        positions
            The genes.
        n_comps
            How many components.
        counts
            The matrix holds counts; else logarithms.

        Returns
        -------
        The front, and how many cells express none of the genes.

        Raises
        ------
        DataError
            More genes than a covariance matrix is made of, or as `LinearFront.fit`.
        """
        if len(positions) > MAX_GENES_EXACT:
            raise DataError(
                f"{len(positions)} genes were asked for; streaming takes up to {MAX_GENES_EXACT}. Choose fewer genes, "
                "or correct the file in memory."
            )
        whole = self.folder.path / "front.npz"
        if not whole.exists():
            parts = spans(self.n_cells)
            with self.stage("values"):
                take = partial(_values_part, place, positions, counts)
                values = self.folder.parts("values", take, parts, self.run, self.tick("values"))
            with self.stage("pca"):
                grams = self.folder.parts("gram", partial(_gram_part, len(positions)), list(map(str, values)), self.run)
                found = [load_arrays(file) for file in grams]
                front = LinearFront.of_gram(sum_of(_gram(of_part) for of_part in found), n_comps)
                n_empty = sum(int(of_part["n_empty"]) for of_part in found)
                with atomic(whole) as handle:
                    np.savez(handle, n_empty=n_empty, **vars(front))
        self.folder.drop("gram")
        arrays = load_arrays(whole)
        n_empty = int(arrays.pop("n_empty"))
        return LinearFront(**arrays), n_empty

    def components(self, front: LinearFront) -> NDArray[np.float32]:
        """Principal components of all cells, shape (n_cells, n_comps); a memory map if they are many."""
        file = self.file("pcs")
        if not file.exists():
            with self.stage("pca"):
                values = sorted(self.folder.path.glob("values-????"))
                project = partial(_pcs_part, str(self.folder.path / "front.npz"))
                parts = self.folder.parts("pcs", project, list(map(str, values)), self.run, self.tick("pca"))
                self.folder.join_rows("pcs", parts, (self.n_cells, front.loadings.shape[1]))
        for left in ("values", "pcs"):  # the latter where a run was interrupted after it had put them together
            self.folder.drop(left)
        return load_rows(file)

    def embedding(self, model: Path, device: str, n_latent: int) -> NDArray[np.float32]:
        """Embedding of all cells by a saved model, shape (n_cells, n_latent); a memory map if they are many."""
        file = self.file("embedding")
        if not file.exists():
            with self.stage("encode"):
                of_part = partial(_embedding_part, str(model), device, str(self.file("pcs")), str(self.file("codes")))
                parts = self.folder.parts("embedding", of_part, spans(self.n_cells), self.run, self.tick("encode"))
                self.folder.join_rows("embedding", parts, (self.n_cells, n_latent))
        self.folder.drop("embedding")
        return load_rows(file)

    def file(self, name: str) -> Path:
        """The .npy of a stage."""
        return self.folder.path / f"{name}.npy"

    def tick(self, name: str) -> Any:
        """What is called when a part of a stage is done."""
        progress = self.progress
        return lambda done, total: progress(name, done, total, None) if progress else None


def _survey_part(place: Place, codes: str, n_batches: int, as_log: bool, span: slice, out: IO[bytes]) -> None:
    with open_rows(place, span) as rows:
        of_part = np.load(codes, "r")[span]
        _save(survey(rows, span, of_part, n_batches, counts=not as_log, known=as_log), out)


def _values_part(place: Place, positions: NDArray[np.intp], counts: bool, span: slice, out: IO[bytes]) -> None:
    """Log values of the chosen genes, in chunks of CHUNK_ROWS rows: the three arrays of a CSR matrix each."""
    with open_rows(place, span) as rows:
        for start in range(span.start, span.stop, CHUNK_ROWS):
            chunk = slice(start, min(start + CHUNK_ROWS, span.stop))
            whole = (canonical(block) for _, block in blocks(rows, chunk))
            parts = [log_block(block, positions, count_scale(block) if counts else None) for block in whole]
            values = sp.vstack(parts, format="csr")
            for array in (values.indptr, values.indices, values.data):
                np.save(out, array)


def _values(file: str, n_genes: int) -> Iterator[Any]:
    """The chunks that `_values_part` wrote."""
    with open(file, "rb") as handle:
        end = Path(file).stat().st_size
        while handle.tell() < end:
            indptr, indices, data = (np.load(handle, allow_pickle=False) for _ in range(3))
            yield sp.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_genes))


def _gram_part(n_genes: int, values: str, out: IO[bytes]) -> None:
    n_empty = 0

    def chunks() -> Iterator[Any]:
        nonlocal n_empty
        for chunk in _values(values, n_genes):
            n_empty += int((np.diff(chunk.indptr) == 0).sum())
            yield chunk

    gram = Gram.of(chunks(), n_genes)
    np.savez(out, n_empty=n_empty, **vars(gram))


def _gram(arrays: dict[str, NDArray[Any]]) -> Gram:
    return Gram(int(arrays["n_cells"]), arrays["total"], arrays["products"])


def _pcs_part(front: str, values: str, out: IO[bytes]) -> None:
    arrays = load_arrays(Path(front))
    del arrays["n_empty"]
    known = LinearFront(**arrays)
    np.save(out, np.concatenate([known.project(chunk) for chunk in _values(values, len(known.mean))]))


def _embedding_part(model: str, device: str, pcs: str, codes: str, span: slice, out: IO[bytes]) -> None:
    known = CellNorm.load(model, device=device)
    np.save(out, embed(known, np.load(pcs, "r")[span], np.load(codes, "r")[span]))


def _save(found: Survey, out: IO[bytes]) -> None:
    arrays = {name: value for name, value in vars(found).items() if name != "seen"}
    np.savez(out, seen=json.dumps(asdict(found.seen)), **arrays)


def _loaded(file: Path) -> Survey:
    arrays = load_arrays(file)
    seen, counts = Seen(**json.loads(str(arrays.pop("seen")))), bool(arrays.pop("counts"))
    return Survey(**arrays, counts=counts, seen=seen)


def _sum(files: list[Path]) -> Survey:
    """What was found in all parts, in their order."""
    whole = _loaded(files[0])
    for file in files[1:]:
        whole.add(_loaded(file))
    return whole
