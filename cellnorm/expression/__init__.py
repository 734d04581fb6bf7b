"""What batches add to the expression of genes, and how it is taken away."""

from cellnorm.expression._effect import BatchEffect, Cells, at_values, chunks, counts_like, learn_effect

__all__ = ["BatchEffect", "Cells", "at_values", "chunks", "counts_like", "learn_effect"]
