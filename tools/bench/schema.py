"""What a benchmark run leaves behind: its settings, the machine, and every sample, as one JSON document.

The document is strict: an unknown key is an error, so that figures of a newer Foveate are never half
understood. Everything that a figure depends on stands in `Settings`, `Machine` or `Subject`; runs in which
one of these differs are not compared (`foveate.tools.bench.compare`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foveate.runtime.errors import InputError

FORMAT: Final = 1

PARTS: Final = ("preprocess", "vision", "embed", "prefill", "host", "ttft", "decode", "total")
"""Of an answer, in seconds. `host` is what the parts before it leave of the time to the first token."""


class Record(BaseModel):
    """Base of all parts: immutable, and refuses unknown keys by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Settings(Record):
    """What was asked for. Figures of runs with different settings are never set side by side.

    Attributes:
        image: its name as it was given; `image_sha256` is of its pixels, `image_size` width and height.
        new_tokens: every answer has so many; the end-of-text token does not end it.
        warm_up: answers of each case before the first round; not counted.
        rounds: in each, every case answers once; their order moves on by one from round to round.
        cores: that the measured processes are bound to; empty where the system cannot bind.
        layout, backend: of all bundles; where they differ, those of each in turn.
        requests: of each case at each level of concurrency.
        huge_pages: whether weights were asked for into large pages.
    """

    image: str
    image_sha256: str
    image_size: tuple[int, int]
    prompt: str
    new_tokens: int
    warm_up: int
    rounds: int
    threads: int
    cores: tuple[int, ...]
    layout: str
    backend: str = "onnxruntime"
    requests: int
    huge_pages: bool = False


class Machine(Record):
    """Where it ran; `features` are the instruction sets that matrix products live on.

    `gpus` are names with driver and memory, where there are some; figures of a CPU do not depend on them.
    """

    system: str
    processor: str
    features: tuple[str, ...]
    cores: int
    memory_bytes: int | None
    gpus: tuple[str, ...] = ()


class Subject(Record):
    """A bundle that was measured.

    Attributes:
        name: what it is called in this run.
        weights_sha256: of the checkpoint's weights, so equal for all bundles of one checkpoint.
        precision: what the manifest says of it; empty for bundles of float32.
        plan: the cuts, as `foveate export --method` takes them.
        weight_bytes: of the files of weights that the layout maps; a decoding step reads fewer
            (`device_roofline.step_weight_bytes`).
        load: seconds of wall and processor time to open it.
        rss_base: resident bytes of its process before a graph is loaded: Python, the engine, the tokenizer.
        rss_loaded, rss_peak: with all graphs loaded, and at most, all cases together.
        device_peak: bytes of GPU memory that its process held at most; None without a GPU, or where the
            driver does not tell.
    """

    name: str
    family: str
    source: str
    weights_sha256: str
    manifest_sha256: str
    precision: dict[str, Any] = Field(default_factory=dict)
    plan: tuple[str, ...]
    weight_bytes: int
    load: tuple[float, float]
    rss_base: int
    rss_loaded: int
    rss_peak: int
    device_peak: int | None = None


class Segment(Record):
    """One group of the cache: its layers, tokens of the prompt in it, and their bytes in one request."""

    layers: tuple[int, ...]
    tokens: int
    bytes: int


class Sample(Record):
    """One answer.

    Attributes:
        round: counted from 0.
        wall, cpu: seconds of the `PARTS`; cpu is of all threads of the process.
        graphs: seconds of wall and processor time of each graph before the first token.
        steps: seconds of wall and processor time of each token after the first.
        token_ids: of the answer.
    """

    round: int
    wall: dict[str, float]
    cpu: dict[str, float]
    graphs: dict[str, tuple[float, float]]
    steps: tuple[tuple[float, float], ...]
    token_ids: tuple[int, ...]


class Tokens(Record):
    """Visual tokens of the prompt and behind each site, and all tokens that the decoder read.

    `layer_average` is the mean over the decoder's layers of the share of visual tokens that is present.
    """

    visual: int
    kept: dict[str, int]
    prompt: int
    layer_average: float


class Case(Record):
    """One subject at one budget."""

    subject: str
    budget: str
    tokens: Tokens
    cache: tuple[Segment, ...]
    samples: tuple[Sample, ...]


class Level(Record):
    """One subject at one budget, with so many requests in flight all the time.

    Attributes:
        requests: that ended; `wall` and `cpu` seconds from the first to the last.
        tokens: new tokens of all of them.
        first: wall seconds to each request's first token, its wait in the queue included.
        between: wall seconds between tokens of one request, all requests together.
    """

    subject: str
    budget: str
    concurrency: int
    round: int
    requests: int
    tokens: int
    wall: float
    cpu: float
    first: tuple[float, ...]
    between: tuple[float, ...]


class Ceiling(Record):
    """What this machine gave on the spot, with the same cores and threads: the best of some rounds.

    `gflops` by kind of product (fp32, int8, int8-block, int4-block); `gbytes` by what is read over and over:
    "memory" is more than caches hold, "cache" what a large one does.
    """

    gflops: dict[str, float]
    gbytes: dict[str, float]


class Stage(Record):
    """One part of a case as onnxruntime's own record of it shows, medians over the traced answers.

    Attributes:
        phase: "prefill" (everything before the first token) or "decode" (one step).
        part: vision, select, embed, segment 0, segment 1, head.
        seconds: of all its nodes; `products` of its matrix products and attention alone.
        flops: of these by kind, two operations for a multiply-add, attention as whole squares.
        bytes: of weights and caches that a step of decoding reads; 0 for prefill.
        slowest: kinds of nodes with their seconds, the longest first.
    """

    subject: str
    budget: str
    phase: Literal["prefill", "decode"]
    part: str
    seconds: float
    products: float
    flops: dict[str, float]
    bytes: float
    slowest: tuple[tuple[str, float], ...]


class Rival(Record):
    """Another engine that answered in the same rounds.

    Attributes:
        name: of the engine; what stands behind a colon tells two of one engine apart.
        settings: its own, as its process told them.
        device_peak: as `Subject.device_peak`.
        wall, cpu: of each round, seconds of preprocess, vision, prefill, decode, ttft and total; None is
            what the engine does not tell, which is then in the next part that it does.
    """

    name: str
    versions: dict[str, str]
    settings: dict[str, str]
    load: tuple[float, float]
    rss_peak: int
    device_peak: int | None = None
    prompt_tokens: int
    new_tokens: int
    wall: tuple[dict[str, float | None], ...]
    cpu: tuple[dict[str, float | None], ...]
    text: str

    def seconds(self, part: str, clock: str) -> list[float]:
        """A part, round by round; empty where the engine does not tell it. Of decoding, seconds per step."""
        taken = [each[part] for each in (self.wall if clock == "wall" else self.cpu)]
        known = [each for each in taken if each is not None]
        if len(known) < len(taken):
            return []
        return [each / max(self.new_tokens - 1, 1) for each in known] if part == "decode" else known


class Result(Record):
    """The whole document. `remarks` are the lines that were said aloud: what was skipped and why."""

    format: Literal[1] = FORMAT
    foveate: str
    created: str
    settings: Settings
    machine: Machine
    versions: dict[str, str]
    subjects: tuple[Subject, ...]
    cases: tuple[Case, ...]
    levels: tuple[Level, ...] = ()
    ceiling: Ceiling | None = None
    stages: tuple[Stage, ...] = ()
    rivals: tuple[Rival, ...] = ()
    remarks: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Result:
        """A document that `write` wrote.

        Raises:
            InputError: no such file, or not one of these.
        """
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise InputError(f"{path} cannot be read", found=str(error.strerror or error)) from error
        except (ValueError, ValidationError) as error:
            raise InputError(
                f"{path} is no result of foveate bench",
                found=str(error).splitlines()[0],
                wanted=f"a file that foveate bench --out wrote, format {FORMAT}",
                mend="run the benchmark again with this version",
            ) from error

    def write(self, path: Path) -> Path:
        """Write the document whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".part")
        draft.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return draft.replace(path)
