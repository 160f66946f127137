"""The parity table: which models, methods and layouts climb the whole ladder.

Each family's rows stand in `tests/tiny/<family>.py`. To add a row: name what is new about it, and choose the
smallest model that shows it. `test_table.py` climbs every row, and fails when a family, a method, a knee, a
text model or a RoPE type stands in no row.
"""

from __future__ import annotations

from tiny import all_rows
from tiny.llava import DEFAULT
from tiny.rows import BOTH, Row

ROWS = all_rows()

__all__ = ["BOTH", "DEFAULT", "ROWS", "Row"]
