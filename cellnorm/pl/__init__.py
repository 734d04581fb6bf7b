"""Figures: adata first, matplotlib Axes back; nothing is shown, and no setting of matplotlib is changed."""

from cellnorm.pl._diagnosis import diagnosis
from cellnorm.pl._embedding import embedding_grid
from cellnorm.pl._history import history
from cellnorm.pl._mixing import mixing
from cellnorm.pl._scores import scores

__all__ = ["diagnosis", "embedding_grid", "history", "mixing", "scores"]
