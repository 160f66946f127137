"""Visual tokens of images that were seen before, so that asking again about one skips the vision stage.

The key is a hash of everything that the vision stage reads for an image: the arrays that preprocessing made
of it, the budget and the seed, and the user's words where the method looks at them. So equal keys mean equal
inputs of the graph, whatever file, size or settings they came from, and nothing can be stale. It costs a pass
over the pixels (2 to 3 ms for 336 x 336, measured), and preprocessing still runs.

An entry holds the kept rows alone: a pruned image takes as little memory as its tokens.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np

from foveate.runtime.arrays import Array, Arrays, Ints, ints
from foveate.runtime.chunk import VisualTokens
from foveate.runtime.errors import UsageError
from foveate.runtime.families import VisualItem


class Looks(Protocol):
    """What is needed of a `Model`."""

    @property
    def reads_words(self) -> bool:
        """See `Model.reads_words`."""
        ...

    def look(self, items: Sequence[VisualItem], budgets: Arrays, words: Sequence[Ints]) -> VisualTokens:
        """See `Model.look`."""
        ...


@dataclass(frozen=True)
class CacheUse:
    """What a cache holds and did: `bytes` of at most `limit`, in `entries` images; `hits` and `misses`."""

    bytes: int
    limit: int
    entries: int
    hits: int
    misses: int


class VisionCache:
    """Keeps visual tokens up to `limit` bytes; the image that was asked about longest ago goes first.

    Belongs to one bundle and one layout. May be used by several threads.

    Raises:
        UsageError: the limit is no whole number, or negative.
    """

    def __init__(self, limit: int) -> None:
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            wanted = "a whole number of bytes; 0 keeps nothing"
            raise UsageError("vision_cache is out of range", found=repr(limit), wanted=wanted)
        self.limit = limit
        self._entries: OrderedDict[bytes, VisualTokens] = OrderedDict()
        self._bytes = self._hits = self._misses = 0
        self._lock = threading.Lock()

    @property
    def use(self) -> CacheUse:
        """Its state now."""
        with self._lock:
            return CacheUse(self._bytes, self.limit, len(self._entries), self._hits, self._misses)

    def clear(self) -> None:
        """Forget all images; the counts of hits and misses stay."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def look(
        self, model: Looks, items: Sequence[VisualItem], budgets: Arrays, words: Sequence[Ints]
    ) -> VisualTokens:
        """As `Model.look`, which is asked only for the items that are not here, and for each of them once."""
        said = words if model.reads_words else [ints([])] * len(items)
        keys = [
            _key(item.feeds, {name: value[i] for name, value in budgets.items()}, said[i])
            for i, item in enumerate(items)
        ]
        found = self._found(keys)
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in found}
        where = sorted(new.values())
        if where:
            own = {name: value[where] for name, value in budgets.items()}
            seen = model.look([items[i] for i in where], own, [words[i] for i in where])
            seen = replace(seen, features=np.asarray(seen.features))  # it may have stayed on a GPU
            made = {keys[i]: _alone(seen, place) for place, i in enumerate(where)}
            self._add(made)
            found |= made
        fresh = set(where)
        return VisualTokens.joined(
            [replace(found[key], reused=(i not in fresh,)) for i, key in enumerate(keys)]
        )

    def _found(self, keys: Sequence[bytes]) -> dict[bytes, VisualTokens]:
        with self._lock:
            found = {key: self._entries[key] for key in keys if key in self._entries}
            for key in found:
                self._entries.move_to_end(key)
            asked = set(keys)
            self._hits += len(keys) - len(asked - found.keys())
            self._misses += len(asked - found.keys())
        return found

    def _add(self, made: Mapping[bytes, VisualTokens]) -> None:
        with self._lock:
            for key, entry in made.items():
                size = _bytes(entry)
                if size > self.limit or key in self._entries:
                    continue  # it would push out all the others, and not even stay itself
                self._entries[key] = entry
                self._bytes += size
            while self._bytes > self.limit:
                self._bytes -= _bytes(self._entries.popitem(last=False)[1])


def _key(feeds: Arrays, budget: Arrays, words: Ints) -> bytes:
    """Of all that the vision stage reads for one item."""
    digest = hashlib.blake2b(digest_size=32)
    for part in (feeds, budget, {"words": words}):
        for name in sorted(part):
            value = np.asarray(part[name])
            digest.update(f"{name} {value.dtype} {value.shape} ".encode())
            digest.update(value.tobytes())
    return digest.digest()


def _alone(seen: VisualTokens, item: int) -> VisualTokens:
    """One item of several, as if seen alone: its kept rows, in memory of their own, unwritable."""
    first = int(seen.count[:item].sum())
    rows = seen.kept_index[first : first + int(seen.count[item])]
    entry = VisualTokens(
        features=seen.features[rows],
        kept_index=np.arange(len(rows)),
        order=(seen.order[item].copy(),),
        count=ints([len(rows)]),
        score=None if seen.score is None else (seen.score[item].copy(),),
    )
    for array in _arrays(entry):
        array.flags.writeable = False  # it will be handed out again
    return entry


def _arrays(entry: VisualTokens) -> Iterator[Array]:
    for field in fields(entry):
        value = getattr(entry, field.name)
        if isinstance(value, tuple):
            yield from (each for each in value if isinstance(each, np.ndarray))
        elif isinstance(value, np.ndarray):
            yield value


def _bytes(entry: VisualTokens) -> int:
    return sum(array.nbytes for array in _arrays(entry))
