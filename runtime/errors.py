"""Every error that a user can cause, each with an exit code and a mend.

`FoveateError` and its children are the user's errors: the command line prints one paragraph for them and
leaves with `exit_code`. Any other exception is a bug of ours and keeps its trace. Standard library only, so
that every package may import this.
"""

from __future__ import annotations

from typing import ClassVar


class FoveateError(Exception):
    """What went wrong, what was found, what was wanted, and what to do about it.

    `str(error)` joins the four parts into one readable paragraph. The parts stay apart as attributes, for
    callers that show them otherwise.

    >>> print(UsageError("keep_ratio is out of range", found="1.5", wanted="0 < keep_ratio <= 1"))
    keep_ratio is out of range. Found: 1.5. Wanted: 0 < keep_ratio <= 1.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, found: str = "", wanted: str = "", mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.found = found
        self.wanted = wanted
        self.mend = mend

    def __str__(self) -> str:
        parts = [_sentence(self.message)]
        labelled = (("Found", self.found), ("Wanted", self.wanted), ("To mend it", self.mend))
        parts += [_sentence(f"{label}: {text}") for label, text in labelled if text]
        return " ".join(parts)


class UsageError(FoveateError):
    """An option is unknown, contradictory or out of range; the message lists what exists."""

    exit_code = 2


class CheckpointError(FoveateError):
    """A checkpoint cannot be read: a file or tensor is missing, truncated, misshapen or of unknown kind."""

    exit_code = 3


class BundleError(FoveateError):
    """A bundle is missing, half-written, changed since its export, or of another format version."""

    exit_code = 4


class ParityError(FoveateError):
    """A comparison with the reference failed."""

    exit_code = 5


class MissingDependencyError(FoveateError):
    """An optional package is not installed; the mend names the extra that brings it."""

    exit_code = 6

    @classmethod
    def of(cls, package: str, extra: str = "") -> MissingDependencyError:
        """The error for a `package` that the extra named `extra` (or the base install) brings."""
        wanted = f"foveate[{extra}]" if extra else "foveate"
        return cls(f"the package '{package}' is not installed", mend=f'pip install "{wanted}"')


class InputError(FoveateError):
    """An image or prompt cannot be used: corrupt, empty, too large or long, or placeholders do not match."""

    exit_code = 7


class ExportError(FoveateError):
    """An export could not be finished: the disk is full, or tracing or writing a graph failed."""

    exit_code = 8


class BackendError(FoveateError):
    """A backend could not load or run a graph."""

    exit_code = 9


class DeviceMemoryError(BackendError):
    """The GPU has not enough memory; the message says what was needed and what was free."""


class EngineError(BackendError):
    """No TensorRT engine fits this machine and bundle, or one cannot be used; says which, and the mend."""


class ProfileError(BackendError):
    """More of something than the engines were built for; says which option of `--profile` to raise."""


class NothingPrunedError(FoveateError):
    """A pruned bundle kept every visual token although nobody asked it to."""

    exit_code = 10


class RequestError(FoveateError):
    """A request to a scheduler got no whole answer, for no fault of what it asked: see its children."""

    exit_code = 11


class CheckError(FoveateError):
    """A target would not take a graph: the node, the rule that it breaks, and what to do instead."""

    exit_code = 12


class QueueFullError(RequestError):
    """So many requests are waiting that no more are taken."""


class CancelledError(RequestError):
    """The request was cancelled."""


class TimedOutError(RequestError):
    """The request was not finished in time."""


class SchedulerClosedError(RequestError):
    """The scheduler takes no requests any more, or was closed before this one was finished."""


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
