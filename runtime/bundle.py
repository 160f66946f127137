"""The bundle: one folder that holds everything needed to run an exported model.

    bundle/
      manifest.json     what is in it (`foveate.runtime.manifest`)
      onnx/             graphs, and one weights file shared by all of them
      processor/        tokenizer, chat template and image processor
      parity.json       what `foveate verify` found (optional)
      engines/          what `foveate build` made for single machines (optional, `foveate.runtime.engines`)

`Bundle.open` gives a bundle whose files were checked; `BundleWriter` writes one whole or not at all.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from foveate.runtime import integrity
from foveate.runtime.bundle_writer import BundleWriter
from foveate.runtime.errors import BundleError, UsageError
from foveate.runtime.manifest import FORMAT, MANIFEST_NAME, Manifest, ParityRecord

__all__ = ["Bundle", "BundleWriter", "Check"]

Check = Literal["fast", "full", "none"]
_EXPORT = "foveate export CHECKPOINT -o {path} --overwrite"


@dataclass(frozen=True)
class Bundle:
    """A folder with a valid manifest, whose files were found to be the ones that were exported."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        check: Check = "fast",
        progress: integrity.Progress | None = None,
    ) -> Bundle:
        """The bundle at `path`, with its files verified.

        `check`: "fast" skips hashing while size and time of each file are those of the last successful check,
        "full" hashes always, "none" looks at the manifest only.

        Raises:
            BundleError: no bundle there, half-written, a file missing or changed, or another format version.
            UsageError: `check` is none of the three words.
        """
        if check not in get_args(Check):
            raise UsageError(f"unknown check '{check}'", wanted=" or ".join(get_args(Check)))
        folder = Path(path)
        bundle = cls(folder, _read_manifest(folder))
        if check != "none":
            bundle._verify(check, progress)
        return bundle

    @property
    def processor_path(self) -> Path:
        """Folder of the tokenizer, chat template and image processor."""
        return self.path / "processor"

    def stage_path(self, name: str) -> Path:
        """The graph file of a stage.

        Raises:
            BundleError: the bundle has no such stage.
        """
        stage = self.manifest.stages.get(name)
        if stage is None:
            raise BundleError(f"the bundle has no stage '{name}'", wanted=", ".join(self.manifest.stages))
        return self.path / stage.file

    def layout_stages(self, layout: str) -> tuple[str, ...]:
        """Names of the stages of a layout ("fused", "segmented"), in the order in which they run.

        Raises:
            UsageError: the bundle was exported without this layout.
        """
        layouts = self.manifest.layouts
        if layout not in layouts:
            mend = f"choose one of these, or export again with --layout {layout}"
            raise UsageError(f"the bundle has no layout '{layout}'", wanted=", ".join(layouts), mend=mend)
        return layouts[layout]

    def record_parity(self, passed: bool, summary: dict[str, Any], report: dict[str, Any]) -> Bundle:
        """Write `report` to `parity.json` and the verdict to the manifest; gives the renewed bundle.

        Raises:
            BundleError: the bundle cannot be written to.
        """
        names = list(self.manifest.files)
        trusted = integrity.stamp_fits(self.path, names)
        parity = ParityRecord(passed=passed, summary=summary)
        manifest = self.manifest.model_copy(update={"parity": parity})
        try:
            _replace_text(self.path / integrity.PARITY_NAME, json.dumps(report, indent=2))
            _replace_text(self.path / MANIFEST_NAME, manifest.model_dump_json(indent=2))
        except OSError as error:
            raise BundleError(
                f"the parity report cannot be written to {self.path}", found=str(error)
            ) from error
        if trusted:
            integrity.write_stamp(self.path, names)
        return Bundle(self.path, manifest)

    def _verify(self, check: Check, progress: integrity.Progress | None) -> None:
        files = self.manifest.files
        missing = [name for name in files if not (self.path / name).is_file()]
        strange = [f"{name} was added" for name in integrity.strangers(self.path, files)]
        if check == "fast" and not missing and not strange and integrity.stamp_fits(self.path, list(files)):
            return
        problems = strange or integrity.differences(self.path, files, progress)
        if problems:
            differ = f"{len(problems)} of {len(files)} files differ"
            raise BundleError(
                f"bundle {self.path} is not what was exported: {'; '.join(problems[:5])}",
                found=f"files that the manifest does not list: {len(strange)}" if strange else differ,
                mend=f"copy the bundle again, or export it again: {_EXPORT.format(path=self.path)}",
            )
        integrity.write_stamp(self.path, list(files))


def _read_manifest(folder: Path) -> Manifest:
    """The checked manifest of a folder; the format version is looked at before anything else."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise _no_manifest(folder)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _bad_manifest(path, f"it is not readable as JSON ({error})") from error
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version != FORMAT:
        newer = version > FORMAT
        age, upgrade = ("a newer", "pip install --upgrade foveate, or ") if newer else ("an older", "")
        raise BundleError(
            f"bundle {folder} was written by {age} Foveate ({content.get('foveate', 'version unknown')})",
            found=f"bundle format {version}",
            wanted=f"format {FORMAT}",
            mend=f"{upgrade}export the bundle again with this version",
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise _bad_manifest(path, "; ".join(map(_phrase, error.errors()[:5]))) from error
    if not manifest.files:
        raise _bad_manifest(path, "it lists no files, so the export was not finished")
    if manifest.sha256 != manifest.digest():
        raise BundleError(
            f"{path} was changed since the export",
            found=f"its own sha256 is {manifest.sha256[:12] or 'missing'}",
            wanted=manifest.digest()[:12],
            mend=f"copy the bundle again, or export it again: {_EXPORT.format(path=folder)}",
        )
    return manifest


def _phrase(problem: Any) -> str:
    """One pydantic complaint in words: `model.image_size: field required`."""
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{where}'"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{where}: {message[:1].lower()}{message[1:]}" if where else message


def _bad_manifest(path: Path, reason: str) -> BundleError:
    mend = f"export the bundle again: {_EXPORT.format(path=path.parent)}"
    return BundleError(f"{path} is not a manifest of format {FORMAT}: {reason}", mend=mend)


def _no_manifest(folder: Path) -> BundleError:
    """Says what the folder is instead of a bundle, as far as one can tell."""
    if not folder.exists():
        return BundleError(f"there is no bundle at {folder}", mend=f"foveate export CHECKPOINT -o {folder}")
    if not folder.is_dir():
        return BundleError(f"{folder} is a file", wanted="the folder that foveate export wrote")
    if (folder / "config.json").is_file():
        mend = f"foveate export {folder} -o BUNDLE, then use BUNDLE"
        return BundleError(f"{folder} is a checkpoint, not a bundle", found="config.json", mend=mend)
    return BundleError(
        f"{folder} is not a bundle: it has no {MANIFEST_NAME}, which is written last",
        found="another folder, or an export that was broken off",
        # The writer never replaces a folder without a manifest, whatever the flag says.
        mend=f"remove the folder or choose another, and export again: foveate export CHECKPOINT -o {folder}",
    )


def _replace_text(path: Path, text: str) -> None:
    """Write a small file so that readers see the old or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
