"""The tables of a diagnosis against hand-made matrices."""

import numpy as np
import pytest
import scipy.sparse as sp

from cellnorm.tl._diagnose_columns import Column
from cellnorm.tl._diagnose_tables import Clustered, batch_table, confounding_table, matrix_table

COUNTS = np.array([[1, 0, 2, 0], [0, 0, 0, 0], [5, 1, 0, 0], [0, 1, 1, 8]])


def test_the_matrix_is_described() -> None:
    table = matrix_table(sp.csr_matrix(COUNTS), "X", "counts")
    assert table["median_counts"] == 4.5  # of 3, 0, 6, 10
    assert table["median_genes"] == 2
    assert table["zeros"] == pytest.approx(9 / 16, abs=1e-4)
    assert table["n_empty"] == 1
    assert "raw counts" in table["text"]
    logs = matrix_table(sp.csr_matrix(np.log1p(COUNTS)), "raw.X", "log")
    assert logs["median_counts"] is None
    assert "log-normalised" in logs["text"]


def test_stored_zeros_are_zeros() -> None:
    matrix = sp.csr_matrix(COUNTS)
    matrix.data[0] = 0
    assert matrix_table(matrix, "X", "counts")["zeros"] == pytest.approx(10 / 16, abs=1e-4)


def batches() -> list[dict[str, object]]:
    """Two batches of 100 cells that share two of four genes; the second lacks the cells that express gene 1."""
    kinds, labels = np.tile(np.repeat([0, 1], 50), 2), np.repeat(["big", "small"], [100, 100])
    counts = np.zeros((200, 4))
    counts[kinds == 0, 0], counts[kinds == 1, 1] = 4, 2
    counts[labels == "big", 2], counts[labels == "small", 3] = 1, 1
    kept = ~((labels == "small") & (kinds == 1))
    kinds, labels, matrix = kinds[kept], labels[kept], sp.csr_matrix(counts[kept])
    genes = np.array(["A", "B", "C", "D"], dtype=object)
    return batch_table(matrix, labels, "counts", Clustered(np.arange(len(kinds)), kinds, matrix, genes))


def test_batches_are_described_the_largest_first() -> None:
    big, small = batches()
    assert (big["name"], big["n_cells"], big["n_genes"], big["shared_genes"]) == ("big", 100, 3, 1)
    assert (small["name"], small["n_cells"], small["n_genes"], small["shared_genes"]) == ("small", 50, 2, 1)
    assert (big["median_counts"], small["median_counts"]) == (4.0, 5.0)


def test_a_lacking_cluster_is_named_by_its_genes() -> None:
    big, small = batches()
    assert big["lacks"] == []
    assert [str(name).split(",")[0] for name in small["lacks"]] == ["2 (B"]  # type: ignore[attr-defined]
    assert "seems to lack cluster 2 (B" in str(small["text"])


def entry(name: str, usual: bool = False) -> dict[str, object]:
    return {"name": name, "usual_name": usual, "follows_clusters": False}


def test_confounding_is_told_from_the_side_of_the_batch() -> None:
    batch = np.repeat([0, 1, 2, 3], 30)
    others = {"treated": batch // 2, "protocol": batch // 2, "well": np.arange(120) // 10, "sex": np.arange(120) % 2}
    columns = [Column.of(name, values) for name, values in {"donor": batch, **others, "copy": 3 - batch}.items()]
    judged = [entry(column.name, usual=column.rank is not None) for column in columns]
    table = {row["column"]: row for row in confounding_table(columns[0], columns, judged)}
    relations = {name: row["relation"] for name, row in table.items()}
    assert relations == {
        "treated": "confounded",
        "protocol": "nests",
        "well": "nested",
        "sex": "crossed",
        "copy": "same",
    }
    assert "no method can separate" in table["treated"]["text"]
    assert "no method can separate" in table["copy"]["text"]
    assert "no method" not in table["protocol"]["text"] + table["sex"]["text"]
    assert list(table)[-1] == "sex"  # the closest first
