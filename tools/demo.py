"""The built-in model: what the word `demo` stands for as a checkpoint, as a bundle and as an image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.runtime.errors import CheckpointError, InputError
from foveate.tools.cache import cached_bundle, is_exported
from foveate.tools.extras import needs

if TYPE_CHECKING:
    from PIL.Image import Image

WORD = "demo"
# The demo's two cuts. `safe` keeps the question's own words: the demo model was trained on whole questions.
METHODS = ("cls-knee:knee_scale=2,min_keep=14", "text-relevance@2:ratio=0.5,profile=safe")

_HERE = Path(__file__).parent
CHECKPOINT = _HERE / "demo_model" / "checkpoint"
ADAPTERS = _HERE / "demo_model" / "adapters"
SCENES = 1000  # demo:0 to demo:999, drawn when they are asked for

Report = Callable[[str, int, int], None]  # called as progress(what, done, total)


def _silent(what: str, done: int, total: int) -> None: ...


def resolve_checkpoint(word: str | Path) -> Path:
    """The folder that `word` stands for: the built-in checkpoint for `demo`, itself otherwise.

    A folder of your own that is called `demo` is written `./demo`.

    Raises:
        CheckpointError: if this install lacks the built-in checkpoint.
    """
    if str(word) != WORD:
        return Path(word).expanduser()
    if not (CHECKPOINT / "config.json").is_file():
        raise CheckpointError(
            "this install has no built-in model",
            wanted=f"a checkpoint at {CHECKPOINT}",
            mend="reinstall foveate, or train it with python -m foveate.tools.demo_model.train",
        )
    return CHECKPOINT


def resolve_bundle(
    word: str | Path, *, say: Callable[[str], None] = lambda text: None, progress: Report = _silent
) -> Path:
    """The bundle that `word` stands for; `demo` is exported into the cache on first use (`say` tells).

    Raises:
        MissingDependencyError: if `demo` must be exported and torch is not installed.
        CheckpointError: if this install lacks the built-in checkpoint.
        ExportError: if the export could not be finished.
    """
    if str(word) != WORD:
        return Path(word).expanduser()
    checkpoint = resolve_checkpoint(WORD)
    bundle = cached_bundle("demo", checkpoint_hash(checkpoint), METHODS)
    if not is_exported(bundle):
        say(f"exporting the built-in model into {bundle} (first use only)")
        export_demo(bundle, progress=progress)
    return bundle


def export_demo(output: Path, *, progress: Report = _silent, overwrite: bool = False) -> None:
    """Export the built-in model with its two cuts, in both layouts. Raises as `resolve_bundle` does."""
    with needs("export"):
        from foveate.export import export_model
        from foveate.pruning.plan import parse_plan

        output.parent.mkdir(parents=True, exist_ok=True)
        plan = parse_plan(list(METHODS))
        export_model(resolve_checkpoint(WORD), output, plan=plan, overwrite=overwrite, progress=progress)


def shipped_adapters(words: Iterable[str]) -> list[Path]:
    """Adapters that come with the built-in model, for those methods of a plan that are trained."""
    names = {word.partition(":")[0].partition("@")[0] for word in words}
    return [path for path in sorted(ADAPTERS.glob("*.safetensors")) if path.stem in names]


def resolve_image(word: str) -> Path | Image:
    """The picture that `word` stands for: `demo` or `demo:3` is a scene of the built-in model, else a path.

    Raises:
        InputError: if there is no such scene.
    """
    name, _, number = word.partition(":")
    if name != WORD or (number and not number.isdigit()):
        return Path(word).expanduser()
    if int(number or 0) >= SCENES:
        mend = "name one of these, or a picture of your own"
        raise InputError(f"there is no picture {word}", wanted=f"demo:0 to demo:{SCENES - 1}", mend=mend)
    from foveate.tools.demo_model.scenes import make_scene

    return make_scene(int(number or 0), "test").pil()


def checkpoint_hash(checkpoint: Path = CHECKPOINT) -> str:
    """sha256 over the names and contents of a small checkpoint's files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        digest.update(path.relative_to(checkpoint).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
