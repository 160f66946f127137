"""Where the memory of a bundle goes: this process's pages after loading, at the first token, and at the end.

    python -m foveate.tools.memory BUNDLE
    python -m foveate.tools.memory BUNDLE --keep-ratio 0.22 --words 500 --json

One drawn picture and a text of so many words are read and an answer of `--tokens` tokens is given, twice. The
process has to be a fresh one, for what is measured is its peak. The last line says whether it stays below
1.15 x weights + caches + the constant of docs/memory.md; if not, the exit code is 1.

`private` are the process's own pages (packed weights, caches, intermediate results), `mapped` those of files
(embedding tables, libraries), which other processes may share and the system may drop. Linux only.

transformers imports torch wherever it is installed, for 330 MB. The runtime does not need it, and an
installation for running alone has none, so it is hidden here; `--torch` counts it.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from foveate.runtime import GenerateOptions, Generation, Pipeline, load
from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import FoveateError, UsageError

CONSTANT: Final = 400_000_000
"""Python with its libraries, and intermediate results of a prompt of some 600 tokens: see docs/memory.md."""
FACTOR: Final = 1.15
_STATUS: Final = Path("/proc/self/status")


@dataclass(frozen=True)
class Moment:
    """Bytes of this process at one time: resident, of these private and mapped, and the peak until then."""

    name: str
    resident: int
    private: int
    mapped: int
    peak: int

    @classmethod
    def now(cls, name: str) -> Moment:
        """Read from Linux's /proc. Raises `UsageError` where there is none."""
        if not _STATUS.is_file():
            raise UsageError("memory can only be measured on Linux", found=f"no {_STATUS}")
        lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines())
        names = ("VmRSS", "RssAnon", "RssFile", "VmHWM")
        resident, private, mapped, peak = (int(lines[each].split()[0]) * 1024 for each in names)
        return cls(name, resident, private, mapped, peak)


@dataclass(frozen=True)
class Usage:
    """A whole measurement: `weights` as stored, `caches` of the prompt, both in bytes."""

    moments: tuple[Moment, ...]
    weights: int
    caches: int
    prompt_tokens: int

    @property
    def peak(self) -> int:
        """At any time."""
        return self.moments[-1].peak

    @property
    def bound(self) -> int:
        """What the peak must not exceed."""
        return int(FACTOR * self.weights) + self.caches + CONSTANT


def measure(
    path: Path,
    *,
    layout: str | None = None,
    backend: str | None = None,
    words: int = 12,
    tokens: int = 32,
    keep_ratio: float | None = None,
) -> Usage:
    """Load a bundle in this process and ask it twice; on one thread.

    Raises:
        FoveateError: the bundle cannot be loaded, or the question not be asked.
    """
    moments = [Moment.now("start")]
    pipeline = load(path, layout=layout, backend=backend, threads=1, check="none")
    moments.append(Moment.now("loaded"))
    options = GenerateOptions(max_new_tokens=tokens, keep_ratio=keep_ratio, allow_unpruned=True)
    for time in ("first", "second"):
        moments.append(Moment.now(f"{time} prompt"))
        answer = _ask(pipeline, words, options, moments)
        moments.append(Moment.now(f"{time} answer"))
    return Usage(
        tuple(moment for moment in moments if not moment.name.endswith("prompt")),
        _weight_bytes(pipeline.bundle),
        answer.report.cache_bytes,
        len(answer.report.positions),
    )


def _ask(pipeline: Pipeline, words: int, options: GenerateOptions, moments: list[Moment]) -> Generation:
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    stream = pipeline.stream(" ".join(["what"] * words), [picture], options)
    next(stream)
    moments.append(Moment.now("first token"))
    return stream.generation


def _weight_bytes(bundle: Bundle) -> int:
    """Of the weights file, which all graphs share."""
    return sum(path.stat().st_size for path in (bundle.path / "onnx").glob("*.bin"))


def as_table(usage: Usage) -> str:
    """The moments, and the bound with its parts, in MB."""
    rows = [f"{'MB':12}{'resident':>10}{'private':>10}{'mapped':>10}{'peak':>10}"]
    for moment in usage.moments:
        sizes = (moment.resident, moment.private, moment.mapped, moment.peak)
        rows.append(f"{moment.name:12}" + "".join(f"{size / 1e6:10.0f}" for size in sizes))
    verdict = "within" if usage.peak <= usage.bound else "OVER"
    rows.append(
        f"peak {usage.peak / 1e6:.0f} is {verdict} {usage.bound / 1e6:.0f} = {FACTOR} x weights "
        f"{usage.weights / 1e6:.0f} + caches {usage.caches / 1e6:.1f} ({usage.prompt_tokens} tokens) "
        f"+ {CONSTANT / 1e6:.0f}; peak / weights {usage.peak / usage.weights:.2f}"
    )
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--layout", help="fused or segmented [the backend's own]")
    parser.add_argument("--backend", help="onnxruntime, cuda, ... [the bundle's]")
    parser.add_argument("--words", type=int, default=12, help="words of the question [12]")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of the answer [32]")
    parser.add_argument("--keep-ratio", type=float, help="kept share after the encoder; the methods' rules")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--torch", action="store_true", help="let transformers import torch")
    given = parser.parse_args()
    if not given.torch:
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    try:
        usage = measure(
            given.bundle,
            layout=given.layout,
            backend=given.backend,
            words=given.words,
            tokens=given.tokens,
            keep_ratio=given.keep_ratio,
        )
    except FoveateError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps({**asdict(usage), "bound": usage.bound}, indent=2) if given.json else as_table(usage))
    return int(usage.peak > usage.bound)


if __name__ == "__main__":
    sys.exit(main())
