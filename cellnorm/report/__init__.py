"""One self-contained HTML page about a correction or an evaluation.

`_content` gathers what the page says, `cellnorm/templates` holds its words and looks, `_render` brings them together.
The page has no script, asks no server for anything, and all text from the data is escaped.
"""

from cellnorm.report._write import check_report, write_correction, write_evaluation

__all__ = ["check_report", "write_correction", "write_evaluation"]
