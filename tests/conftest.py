"""How tests are dealt out to workers: file by file, so that what a file exports is made once.

The parity table is one file of the longest tests there are, each with an export of its own; there every row
goes to whoever is free.
"""

from __future__ import annotations

from typing import Any

import pytest

ROWS = "parity/test_table.py::test_row["


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if ROWS in nodeid else str(super()._split_scope(nodeid))

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None
