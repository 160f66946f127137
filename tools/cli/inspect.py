"""`foveate inspect`: the manifest of a bundle as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foveate.runtime.bundle import Bundle
    from foveate.runtime.manifest import Manifest, TensorSpec

EXAMPLES = (
    ("foveate inspect bundle", "stages, pruning, caches, files and the last parity result"),
    ("foveate inspect bundle --full", "and hash every file again"),
    ("foveate inspect demo --json", "the manifest as it is"),
)

Row = tuple[str, str]


def command(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A folder that foveate export wrote, or demo.")
    ],
    full: Annotated[
        bool, typer.Option("--full", help="Hash every file, even if none seems to have changed.")
    ] = False,
    json_output: output.JsonFlag = False,
) -> None:
    """Show what a bundle is: model, cuts, graphs with their inputs and outputs, caches, files, parity.

    The files are checked against their hashes on the way, as every command does before it uses a bundle.
    """
    from foveate.runtime.bundle import Bundle
    from foveate.tools.demo import resolve_bundle

    with output.progress(quiet=json_output) as report:
        path = resolve_bundle(bundle, say=output.remark, progress=report)
        opened = Bundle.open(
            path,
            check="full" if full else "fast",
            progress=lambda done, total: report("checking files", done, total),
        )
    if json_output:
        output.emit({"path": str(opened.path), **opened.manifest.model_dump(mode="json")})
    else:
        _show(opened)


def _show(bundle: Bundle) -> None:
    manifest, out = bundle.manifest, output.stdout()
    out.print(output.table(f"Bundle {bundle.path}", ("what", "value"), list(_facts(manifest))))
    cuts = [
        (cut.name, cut.method, ", ".join(f"{key}={value}" for key, value in cut.params.items()))
        for cut in manifest.pruning
    ]
    out.print(output.table("Pruning", ("site", "method", "options"), cuts or [("-", "none", "")]))
    stages = [
        (name, file, _specs(stage.inputs), _specs(stage.outputs))
        for name, stage in manifest.stages.items()
        for file in [stage.file]
    ]
    out.print(output.table("Stages", ("stage", "file", "inputs", "outputs"), stages))
    groups = [
        (
            index,
            _span(group),
            f"{manifest.cache.num_kv_heads} heads of {manifest.cache.head_dim}, {manifest.cache.dtype}",
        )
        for index, group in enumerate(manifest.cache.groups)
    ]
    out.print(
        output.table("Caches: one length for each group of layers", ("group", "layers", "each row"), groups)
    )
    files = [(name, output.size(file.bytes), file.sha256[:16]) for name, file in manifest.files.items()]
    out.print(output.table("Files", ("file", "size", "sha256"), files, numbers=(1,)))


def _facts(manifest: Manifest) -> Iterator[Row]:
    model, source = manifest.model, manifest.source
    rows, columns = model.patch_grid
    height, width = model.image_size
    total = sum(file.bytes for file in manifest.files.values())
    yield "format", f"{manifest.format}, written by foveate {manifest.foveate} for {manifest.target}"
    yield "model", f"{manifest.family}: {source.name} (config {source.config_sha256[:12]})"
    yield "decoder", f"{model.num_layers} layers, width {model.hidden_size}, {model.num_heads} heads"
    yield "vocabulary", f"{model.vocab_size} tokens, up to {model.max_positions} positions"
    yield (
        "images",
        f"{height} x {width} pixels, {rows} x {columns} patches: {model.visual_tokens_per_image} tokens each",
    )
    yield "positions", f"{manifest.positions} after the encoder cut"
    for layout, stages in manifest.layouts.items():
        yield f"layout {layout}", " > ".join(stages)
    yield "size", f"{output.size(total)} in {len(manifest.files)} files"
    yield "versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    yield "parity", _parity(manifest)


def _parity(manifest: Manifest) -> str:
    if manifest.parity is None:
        return "not verified yet: foveate verify BUNDLE"
    facts = ", ".join(f"{key} {value}" for key, value in manifest.parity.summary.items())
    return f"{'passed' if manifest.parity.passed else 'FAILED'}{f' ({facts})' if facts else ''}"


def _specs(specs: tuple[TensorSpec, ...]) -> str:
    """One tensor a line; the caches of all layers, which come last and look alike, share one."""
    lines = [_spec(spec) for spec in specs if not _is_cache(spec)]
    caches = [spec for spec in specs if _is_cache(spec)]
    if caches:
        first, last = caches[0], caches[-1]
        lines.append(f"{first.name} … {last.name} ({len(caches)}) {_shape(first)}")
    return "\n".join(lines)


def _is_cache(spec: TensorSpec) -> bool:
    return spec.name.startswith(("past_", "present_"))


def _spec(spec: TensorSpec) -> str:
    return f"{spec.name} {_shape(spec)}"


def _shape(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"


def _span(group: tuple[int, ...]) -> str:
    return str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}"
