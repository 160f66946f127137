"""The process of one row: `python -m foveate.tools.gpu_check.child ROW WORK ANSWER`; ROW is JSON."""

from __future__ import annotations

import importlib
import json
import os
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.runtime.errors import FoveateError
from foveate.tools.gpu_check.records import AbsentError, Job, Row


def answer(row: Row, work: Path) -> dict[str, Any]:
    """What the row's function gives, or the error that it met.

    A function returns its figures; the key `remark` becomes the line beside a pass.
    """
    module, _, name = row.call.partition(":")
    try:
        place = module if "." in module else f"foveate.tools.gpu_check.jobs.{module}"
        function = getattr(importlib.import_module(place), name)
        figures: Mapping[str, Any] = function(Job(work, row, _say), **row.options)
    except AbsentError as absent:
        return {"absent": str(absent)}
    except FoveateError as error:
        traceback.print_exc()
        return {"error": str(error)}
    except MemoryError:
        traceback.print_exc()
        return {"error": "there is not enough memory"}
    except Exception as error:  # whatever a library raises is this row's result
        traceback.print_exc()
        text = " ".join(str(error).split())[:600]
        return {"error": f"{type(error).__name__}: {text}" if text else type(error).__name__}
    found = dict(figures)
    return {"remark": str(found.pop("remark", "")), "figures": found}


def _say(line: str) -> None:
    print(line, flush=True)


def _end_with_parent() -> None:
    """Ends this process group when the check itself is killed: nobody would read the answer any more.

    The next call begins the row anew, and would find this one on its GPU and in its folder. The check holds a
    pipe open to which it writes nothing, and which ends with it.
    """
    own_group, piped = os.getpgrp() == os.getpid(), stat.S_ISFIFO(os.fstat(0).st_mode)
    if not (own_group and piped):  # started by hand
        return

    def watch() -> None:
        os.read(0, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Write the answer whole; a crash before that leaves none."""
    _end_with_parent()
    row, work, path = Row(**json.loads(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])
    work.mkdir(parents=True, exist_ok=True)
    text = json.dumps(answer(row, work), default=str)
    draft = path.with_suffix(".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


if __name__ == "__main__":
    main()
