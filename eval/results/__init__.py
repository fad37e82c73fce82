"""Results of an evaluation: cells, rows with intervals and shares kept, as a table, markdown, CSV and JSON lines."""

from .cell import Cell, paired
from .results import COLUMNS, Results
from .text import Row

__all__ = ["COLUMNS", "Cell", "Results", "Row", "paired"]
