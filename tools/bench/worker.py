"""The process that measures bundles: `python -m foveate.tools.bench.worker`, asked as `child` says."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from foveate.runtime.errors import BackendError, FoveateError
from foveate.tools.bench.child import dumped
from foveate.tools.bench.machine import bind, rss


class Worker:
    """What a worker does; every method without an underscore is a verb."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self._say = say
        self._asked: Any = None

    def open(
        self,
        bundle: str,
        layout: str | None,
        threads: int,
        cores: list[int],
        profile: str = "",
        backend: str | None = None,
    ) -> dict[str, Any]:
        """Bind to the cores and open a bundle; what it is."""
        bind(tuple(cores))
        from foveate.tools.bench.asking import Asked, weight_bytes

        place = Path(profile) if profile else None
        self._asked = Asked(Path(bundle), layout, threads, place, backend)
        return {
            "load": list(self._asked.load),
            "rss_base": self._asked.rss_base,
            "rss_loaded": rss()[0],
            "weight_bytes": weight_bytes(self._asked.bundle, self._asked.layout),
        }

    def ask(self, image: str, prompt: str, budget: str, new_tokens: int, number: int) -> dict[str, Any]:
        """One answer."""
        answer = self._asked.ask(Path(image), prompt, self._options(budget, new_tokens), number)
        return {
            "sample": answer.sample.model_dump(),
            "tokens": answer.tokens.model_dump(),
            "cache": [each.model_dump() for each in answer.cache],
        }

    def serve(
        self, image: str, prompt: str, budget: str, new_tokens: int, clients: int, requests: int
    ) -> dict[str, Any]:
        """Several requests at once."""
        from foveate.tools.bench.clients import serve

        options = self._options(budget, new_tokens)
        return serve(self._asked.pipeline, Path(image), prompt, options, clients, requests)

    def trace(
        self, image: str, prompt: str, budgets: list[str], new_tokens: int, rounds: int
    ) -> dict[str, Any]:
        """The parts of some answers at each budget; for a bundle that was opened with a profile, once."""
        from dataclasses import asdict

        from foveate.tools.bench.trace import trace

        def ask(budget: str) -> Any:
            return self._asked.ask(Path(image), prompt, self._options(budget, new_tokens), 0)

        found = trace(self._asked, ask, budgets, rounds)
        return {budget: [asdict(row) for row in rows] for budget, rows in found.items()}

    def ceilings(self, threads: int, cores: list[int]) -> dict[str, Any]:
        """What the machine can do at most."""
        bind(tuple(cores))
        from foveate.tools.bench.ceilings import measure

        return measure(threads, self._progress).model_dump()

    def device_ceilings(self) -> dict[str, Any]:
        """What the GPU can do at most."""
        from foveate.tools.bench.device_ceilings import measure

        sys.modules.pop("torch", None)  # which `main` keeps out; here it measures
        return measure(self._progress).model_dump()

    def notes(self) -> list[str]:
        """What the backend does otherwise than one might expect; some come as it runs."""
        return list(self._asked.backend.notes)

    def rss(self) -> list[int]:
        """Resident bytes now and at most."""
        return list(rss())

    def _options(self, budget: str, new_tokens: int) -> Any:
        from foveate.tools.bench.budgets import Wish

        return Wish.parse(budget).options(self._asked.bundle.manifest, new_tokens)

    def _progress(self, done: float, total: float) -> None:
        self._say({"progress": [done, total]})


def serve(requests: TextIO, say: Callable[[dict[str, Any]], None]) -> None:
    """Answer requests until there are no more."""
    worker = Worker(say)
    for line in requests:
        request = json.loads(line)
        verb = str(request.pop("verb"))
        try:
            say({"result": getattr(worker, verb)(**request)})
        except FoveateError as error:
            say({"error": dumped(error)})
        except MemoryError:
            say({"error": dumped(BackendError("there is not enough memory", mend="measure less at once"))})


def main() -> None:
    """Speak on standard output alone: what libraries print there goes to standard error."""
    # The runtime needs no torch, but transformers imports one that is there: 0.3 GB that is not the bundle's.
    sys.modules["torch"] = None  # type: ignore[assignment]
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    serve(sys.stdin, say)


if __name__ == "__main__":
    main()
