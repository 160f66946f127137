"""Runs `foveate ...` as a user does, and reads what it prints with `--json`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from foveate.tools.gpu_check.records import Job

EXPORTED = "manifest.json"


class CommandError(Exception):
    """A command left with another code than 0; the text is the end of what it said."""


def foveate(job: Job, *words: str) -> Any:
    """What `foveate WORDS --json` prints. Raises `CommandError`."""
    text = python(job, "-m", "foveate.tools.cli.main", *words, "--json")
    try:
        return json.loads(text)
    except ValueError as error:
        raise CommandError(f"foveate {words[0]} --json printed no JSON: {text[:200]!r}") from error


def python(job: Job, *words: str) -> str:
    """What a Python command prints on standard output; the rest goes into the row's log.

    Raises:
        CommandError: it left with another code than 0.
    """
    job.say(f"$ python {' '.join(words)}")
    words = (sys.executable, *words)
    run = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    job.say(run.stderr)
    if run.returncode:
        job.say(run.stdout[-4000:])
        last = " ".join(line.strip() for line in run.stderr.strip().splitlines()[-4:])
        raise CommandError(f"exit code {run.returncode}: {last[-700:]}")
    return run.stdout
