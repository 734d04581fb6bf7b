"""What is done to an AnnData in one line each."""

from cellnorm.tl._correct import correct
from cellnorm.tl._correct_file import correct_file
from cellnorm.tl._diagnose import diagnose
from cellnorm.tl._embed import embed
from cellnorm.tl._evaluate import evaluate
from cellnorm.tl._expression import expression
from cellnorm.tl._umap import umap

__all__ = ["correct", "correct_file", "diagnose", "embed", "evaluate", "expression", "umap"]
