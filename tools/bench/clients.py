"""Many requests at once: clients that each have one request in flight, and ask again when it is answered."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from foveate.runtime.images import open_image
from foveate.runtime.options import GenerateOptions
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.scheduler import Scheduler
from foveate.tools.bench.asking import Moment


@dataclass
class Heard:
    """What clients saw; `lock` guards it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    errors: list[BaseException] = field(default_factory=list)


def serve(
    pipeline: Pipeline, image: Path, prompt: str, options: GenerateOptions, clients: int, requests: int
) -> dict[str, object]:
    """Let so many clients ask so many requests each; the figures of a `schema.Level`.

    Raises:
        FoveateError: of the first request that failed.
    """
    picture = open_image(image)
    heard = Heard()
    with Scheduler(pipeline, slots=clients, queue=clients) as scheduler:

        def client() -> None:
            try:
                for _ in range(requests):
                    start = time.perf_counter()
                    handle = scheduler.submit(prompt, [picture], options, wait=None)
                    times = [time.perf_counter() for _ in handle]
                    with heard.lock:
                        heard.first.append(times[0] - start)
                        heard.between += [b - a for a, b in pairwise(times)]
                        heard.tokens += len(times)
            except BaseException as error:  # it is raised where the clients were started
                heard.errors.append(error)

        threads = [threading.Thread(target=client) for _ in range(clients)]
        begin = Moment.now()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent = Moment.now().since(begin)
    if heard.errors:
        raise heard.errors[0]
    return {
        "concurrency": clients,
        "requests": len(heard.first),
        "tokens": heard.tokens,
        "wall": spent.wall,
        "cpu": spent.cpu,
        "first": heard.first,
        "between": heard.between,
    }
