"""How far an answer can be trusted: bounds on what a change of a cell can do to its embedding and to its label."""

from cellnorm.stability._bound import Bound, lipschitz, stretch
from cellnorm.stability._radius import label_radius
from cellnorm.stability._reach import Reach, reach_of

__all__ = ["Bound", "Reach", "label_radius", "lipschitz", "reach_of", "stretch"]
