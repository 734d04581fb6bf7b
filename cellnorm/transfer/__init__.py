"""What the reference says of new cells: how well it supports them, and their labels."""

from cellnorm.transfer._labels import LabelTransfer, Transfer
from cellnorm.transfer._support import Companions, Support

__all__ = ["Companions", "LabelTransfer", "Support", "Transfer"]
