"""The requests that are being decoded: one step gives each of them a token."""

from __future__ import annotations

import numpy as np

from foveate.runtime.arrays import Array, Floats, ints
from foveate.runtime.budgets import decoder_feeds
from foveate.runtime.cache import KVCache
from foveate.runtime.generate import decode
from foveate.runtime.model import Model
from foveate.runtime.scheduler.job import Job
from foveate.runtime.scheduler.slots import SlotCache

# Room for so many new tokens at once; longer answers let the caches grow.
_CACHE_AHEAD = 256


class Batch:
    """Jobs and their rows of the cache: `jobs[i]` has row `i`."""

    def __init__(self, model: Model, slots: int) -> None:
        self._model = model
        self.cache = SlotCache(model.manifest.cache, slots, model.allocate, model.capacity)
        self.jobs: list[Job] = []
        self._budgets: dict[str, Array] = {}

    def add(self, job: Job, cache: KVCache) -> None:
        """A job whose prompt is in `cache`, with its first token."""
        self.cache.place(cache, min(job.options.max_new_tokens, _CACHE_AHEAD))
        self.jobs.append(job)
        self._changed()

    def remove(self, job: Job, *, broken: bool = False) -> None:
        """Free a job's row; the last job moves there. Of a broken one no numbers stay behind."""
        row = next(i for i, each in enumerate(self.jobs) if each is job)
        self.cache.remove(row, wipe=broken)
        self.jobs[row] = self.jobs[-1]
        self.jobs.pop()
        self._changed()

    def clear(self) -> None:
        """Free all rows and their memory."""
        self.jobs = []
        self.cache.clear()
        self._changed()

    def _changed(self) -> None:
        each = [decoder_feeds(self._model.manifest, job.options, 1) for job in self.jobs]
        names = each[0] if each else {}
        self._budgets = {name: np.concatenate([feeds[name] for feeds in each]) for name in names}

    def step(self) -> Floats:
        """Feed the latest token of every job; gives the logits `[b, v]` of the next ones.

        Raises:
            BackendError: a graph failed.
        """
        ids = ints([[job.answer.token_ids[-1]] for job in self.jobs if job.answer])  # b 1
        positions = ints([[job.position] for job in self.jobs])
        out = decode(self._model, ids, positions, self._budgets, self.cache)
        for job in self.jobs:
            job.position += 1
        return out.logits[:, 0]  # b 1 v -> b v
