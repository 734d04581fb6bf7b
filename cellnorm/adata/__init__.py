"""Where things lie in an AnnData: the one place that spells slot names.

Reads the expression matrix and writes the results; `labels` reads the batch labels of obs. What cannot be used is
refused here with a `DataError` that says what was asked, what was found and what to do.
"""

from cellnorm.adata._by_cells import by_cells
from cellnorm.adata._lazy import Place, file_places, open_rows, read_genes, read_shell
from cellnorm.adata._read import choose_matrix, first_usable, gene_mask, masked_genes, representation, same_genes
from cellnorm.adata._write import (
    cell_keys,
    layer_key,
    result_keys,
    result_slots,
    umap_keys,
    write_cells,
    write_pca,
    write_result,
)

__all__ = ["Place", "by_cells", "cell_keys", "choose_matrix", "file_places", "first_usable", "gene_mask", "layer_key"]
__all__ += ["masked_genes", "open_rows", "read_genes", "read_shell", "representation", "same_genes"]
__all__ += ["result_keys", "result_slots", "umap_keys", "write_cells", "write_pca", "write_result"]
