"""From the words of the command line to an `Order`; whatever is wrong is found before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate.export.config import config_sha256, read_json
from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import CheckpointError, UsageError
from foveate.tools.bench import budgets, machine
from foveate.tools.bench.order import Order
from foveate.tools.demo import Report, resolve_bundle, resolve_checkpoint, resolve_image

MOST_AT_ONCE = 256


@dataclass(frozen=True)
class Asked:
    """The options as they were given, see `foveate bench --help`."""

    image: str
    prompt: str
    new_tokens: int
    layout: str | None
    rounds: int
    warm_up: int
    threads: int
    requests: int
    roofline: bool
    bundles: tuple[str, ...]
    budgets: tuple[str, ...] = ()
    cores: str | None = None
    concurrency: str | None = None
    against: str | None = None
    checkpoint: str | None = None
    models: tuple[str, ...] = ()
    pythons: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    backend: str | None = None

    def order(self, say: Callable[[str], None], report: Report) -> Order:
        """What they mean.

        Raises:
            UsageError: an option is malformed, out of range or without effect.
            FoveateError: the built-in model is wanted and cannot be exported.
        """
        self._require_ranges()
        wishes = budgets.parse(self.budgets or (budgets.ALL, budgets.OWN))
        cores = machine.choose_cores(self.threads, self.cores)
        levels = _levels(self.concurrency)
        named = _named(self.bundles, "bundle")
        rivals = self._rivals()
        pythons = {name: Path(place) for name, place in _named(self.pythons, "rival's Python").items()}
        _require_used(pythons, {name.partition(":")[0] for name in rivals}, "--rival-python")
        options = {name: _pairs(text) for name, text in _named(self.options, "rival's option").items()}
        _require_used(options, set(rivals), "--rival-option")
        found = {name: resolve_bundle(word, say=say, progress=report) for name, word in named.items()}
        return Order(
            bundles=found,
            wishes=wishes,
            image=resolve_image(self.image),
            image_name=self.image,
            prompt=self.prompt,
            new_tokens=self.new_tokens,
            warm_up=self.warm_up,
            rounds=self.rounds,
            threads=self.threads,
            cores=cores,
            layout=self.layout,
            backend=self.backend,
            concurrency=levels,
            requests=self.requests,
            roofline=self.roofline,
            rivals=rivals,
            pythons=pythons,
            options=options,
            checkpoint=self._checkpoint(found, named) if rivals else None,
        )

    def _require_ranges(self) -> None:
        least = {"rounds": 1, "warm_up": 0, "threads": 1, "new_tokens": 1, "requests": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(
                    f"{option} is out of range", found=str(getattr(self, name)), wanted=f"{low} or more"
                )
        if not self.prompt.strip():
            raise UsageError("the prompt is empty", mend='ask something: --prompt "What is this?"')
        if not self.bundles:
            raise UsageError("there is no bundle to measure", mend="foveate bench demo")
        alone = self.models or self.pythons or self.options or self.checkpoint
        if alone and not self.against:
            raise UsageError(
                "--rival-model, --rival-python, --rival-option and --checkpoint are for rivals",
                mend="name them: --against ...",
            )

    def _rivals(self) -> dict[str, Path | None]:
        """Labels of the rivals, each with its model. Raises `UsageError`."""
        if self.against is None:
            return {}
        from foveate.tools.bench.rivals import find

        labels = [word.strip() for word in self.against.split(",") if word.strip()]
        if not labels or len(set(labels)) < len(labels):
            raise UsageError("--against names nobody, or somebody twice", found=repr(self.against))
        for label in labels:
            find(label.partition(":")[0])
        models = _named(self.models, "rival's model")
        _require_used(models, set(labels), "--rival-model")
        return {label: Path(models[label]).expanduser() if label in models else None for label in labels}

    def _checkpoint(self, bundles: Mapping[str, Path], named: Mapping[str, str]) -> Path:
        """What rivals run: it has to be what the bundles were exported from, by its configuration."""
        first = next(iter(named))
        records = {name: Bundle.open(path, check="none").manifest.source for name, path in bundles.items()}
        given = self.checkpoint or (named[first] if named[first] == "demo" else records[first].path)
        folder = resolve_checkpoint(given)
        config = folder / "config.json"
        if not config.is_file():
            raise CheckpointError(
                "the checkpoint that rivals need is not there",
                found=str(folder),
                mend="name it with --checkpoint: what the bundles were exported from",
            )
        digest = config_sha256(read_json(config))
        for name, record in records.items():
            if record.config_sha256 != digest:
                raise UsageError(
                    f"the bundle {name} was not exported from this checkpoint",
                    found=f"{folder}, but the bundle is of {record.name}",
                    mend="name its own with --checkpoint: other weights are no comparison",
                )
        return folder


def _levels(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    wanted = f"numbers from 1 to {MOST_AT_ONCE}, each once, such as 1,2,4,8,16"
    try:
        levels = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError("--concurrency is no list of numbers", found=repr(text), wanted=wanted) from error
    if len(set(levels)) < len(levels) or not all(1 <= level <= MOST_AT_ONCE for level in levels):
        raise UsageError("--concurrency is out of range", found=text, wanted=wanted)
    return levels


def _named(words: Sequence[str], what: str) -> dict[str, str]:
    """`NAME=PLACE`; a bundle may go without a name, and is then called by the last part of its place."""
    named: dict[str, str] = {}
    for word in words:
        name, equals, place = word.partition("=")
        if not equals and what == "bundle":
            name, place = Path(word).name or word, word
        if not name or not place or name in named:
            raise UsageError(
                f"a {what} is malformed" if name not in named else f"a {what} is named twice",
                found=word,
                wanted="FOLDER or NAME=FOLDER, each name once"
                if what == "bundle"
                else "NAME=PLACE, each once",
            )
        named[name] = place
    return named


def _pairs(text: str) -> dict[str, str]:
    """`device=cuda,cache=static`."""
    found = {}
    for part in text.split(","):
        key, equals, value = (each.strip() for each in part.partition("="))
        if not (key and equals and value) or key in found:
            wanted = "NAME=KEY=VALUE,KEY=VALUE, each key once"
            raise UsageError("--rival-option is malformed", found=text, wanted=wanted)
        found[key] = value
    return found


def _require_used(given: Mapping[str, object], known: set[str], option: str) -> None:
    strange = [name for name in given if name not in known]
    if strange:
        raise UsageError(
            f"{option} names a rival that is not asked",
            found=", ".join(strange),
            wanted=", ".join(sorted(known)) or "none: there is no --against",
        )
