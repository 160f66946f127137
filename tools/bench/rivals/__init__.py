"""What users would run instead: each in its own process and environment, asked as our own bundles are.

A rival is one file here, found by its name (`openvino-genai` is `openvino_genai.py`). Such a file says how
its environment and its model are made, and holds the engine itself, which a child process loads (`serve.py`).
In the child there may be no Foveate: engines import the standard library and their own packages.

>>> NAMES
('foveate', 'onnxruntime-genai', 'openvino-genai', 'transformers')
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol

from foveate.runtime.errors import BackendError, MissingDependencyError, UsageError
from foveate.tools.bench.child import Child

_HERE: Final = Path(__file__).parent
_SERVE: Final = _HERE / "serve.py"
NAMES: Final = tuple(
    sorted(
        file.stem.replace("_", "-") for file in _HERE.glob("*.py") if file.stem not in ("__init__", "serve")
    )
)


@dataclass(frozen=True)
class RivalSettings:
    """Where and how a rival runs.

    Attributes:
        threads: of one operator.
        cores: the child is bound to these; none leaves it where this process is.
        python: of the rival's environment; None takes FOVEATE_<NAME>_PYTHON, else our own.
        model: the folder that the rival reads; None takes FOVEATE_<NAME>_MODEL, else the checkpoint, where
            the rival can read that.
        options: what only this rival knows, see its file.
    """

    threads: int = 1
    cores: tuple[int, ...] = ()
    python: Path | None = None
    model: Path | None = None
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """One picture, one turn of a user, and how many tokens the answer has."""

    image: Path
    prompt: str
    new_tokens: int


@dataclass(frozen=True)
class Split:
    """Seconds of the parts of one answer.

    None: the engine does not tell, and the part is inside the next one that is told. `prefill` ends, as
    `ttft` does, when the first token is out; `decode` is the rest.
    """

    preprocess: float | None
    vision: float | None
    prefill: float | None
    decode: float | None
    ttft: float
    total: float


@dataclass(frozen=True)
class Answer:
    """A finished answer: wall and processor time (all threads of the process), lengths, memory in bytes.

    `peak_rss` is of the time since loading, where the system can forget the peak of loading; else of all.
    """

    wall: Split
    cpu: Split
    prompt_tokens: int
    new_tokens: int
    text: str
    rss: int
    peak_rss: int

    @property
    def decode_rate(self) -> float | None:
        """Tokens after the first per second of wall time."""
        return (self.new_tokens - 1) / self.wall.decode if self.wall.decode and self.new_tokens > 1 else None


@dataclass(frozen=True)
class Started:
    """A rival that is loaded: what it took, what it is, and its first answer, where one was asked for.

    The first call of an engine may compile kernels; it is told apart, and never part of the figures.
    """

    load_seconds: float
    load_cpu: float
    rss_bytes: int
    load_peak_rss: int
    versions: dict[str, str]
    settings: dict[str, str]
    first: Answer | None


class Rival(Protocol):
    """A contestant."""

    name: str

    @property
    def pid(self) -> int:
        """Of its process; 0 if it does not run."""

    def start(self, warm_up: Question | None = None) -> Started:
        """Start its process, load the model, and answer once.

        Raises:
            MissingDependencyError: it has no environment or no model; the mend says how to make it.
            UsageError: the folder that was given as its model is not there.
            BackendError: it failed.
        """

    def ask(self, question: Question) -> Answer:
        """One answer. Raises `InputError`, `BackendError`."""

    def stop(self) -> None:
        """End its process."""


def make(name: str, checkpoint: Path, settings: RivalSettings) -> Rival:
    """The rival of this name, not started yet; `checkpoint` is what all contestants were made of.

    Raises:
        UsageError: there is no such rival.
    """
    return ChildRival(name, checkpoint, settings, find(name))


def find(name: str) -> ModuleType:
    """The file of a rival. Raises `UsageError`."""
    if name not in NAMES:
        raise UsageError("unknown rival", found=repr(name), wanted=", ".join(NAMES))
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


class ChildRival:
    """A rival in a child process."""

    def __init__(self, name: str, checkpoint: Path, settings: RivalSettings, file: ModuleType) -> None:
        self.name = name
        self._checkpoint, self._settings, self._file = checkpoint, settings, file
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """See `Rival.pid`."""
        return self._child.pid if self._child is not None else 0

    def start(self, warm_up: Question | None = None) -> Started:
        """See `Rival.start`."""
        self.stop()
        python, model = self._python(), self._model()
        words = [str(python), str(_SERVE), str(self._file.__file__)]
        try:
            self._child = Child(self.name, words, threads=self._settings.threads)
        except OSError as error:
            raise self._missing(f"its Python cannot be started: {error}") from error
        try:
            values = self._child.call(
                "open",
                model=str(model),
                checkpoint=str(self._checkpoint),
                threads=self._settings.threads,
                cores=list(self._settings.cores),
                options=self._settings.options,
            )
            first = self.ask(warm_up) if warm_up else None
        except MissingDependencyError as error:
            self.stop()
            raise self._missing(error.message) from error
        except BaseException:
            self.stop()
            raise
        return Started(**values, first=first)

    def ask(self, question: Question) -> Answer:
        """See `Rival.ask`."""
        if self._child is None:
            raise BackendError(f"{self.name} is not running", mend="call start first")
        values: dict[str, Any] = self._child.call(
            "ask", image=str(question.image), prompt=question.prompt, new_tokens=question.new_tokens
        )
        wall, cpu = Split(**values.pop("wall")), Split(**values.pop("cpu"))
        return Answer(wall=wall, cpu=cpu, **values)

    def stop(self) -> None:
        """See `Rival.stop`."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _variable(self, what: str) -> str:
        return f"FOVEATE_{self.name.replace('-', '_').upper()}_{what}"

    def _python(self) -> Path:
        return Path(self._settings.python or os.environ.get(self._variable("PYTHON")) or sys.executable)

    def _model(self) -> Path:
        """The folder that the engine reads."""
        given = self._settings.model or os.environ.get(self._variable("MODEL"))
        if not given and self._file.MODEL:
            raise MissingDependencyError(
                f"{self.name} is absent: it reads no checkpoint, but a model that is made of it",
                wanted=f"the folder of that model, or {self._variable('MODEL')}",
                mend=f"{self._file.SETUP}; {self._file.MODEL.format(checkpoint=self._checkpoint)}",
            )
        folder = Path(given or self._checkpoint)
        if not folder.is_dir():
            mend = self._file.MODEL.format(checkpoint=self._checkpoint) or "name a checkpoint's folder"
            raise UsageError(f"the model of {self.name} is not there", found=str(folder), mend=mend)
        return folder

    def _missing(self, message: str) -> MissingDependencyError:
        return MissingDependencyError(
            f"{self.name} is absent: {message}",
            found=f"Python {self._python()}",
            mend=f"{self._file.SETUP}; then name its Python, or set {self._variable('PYTHON')}",
        )
