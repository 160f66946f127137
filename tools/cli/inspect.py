"""`foveate inspect`: the manifest of a bundle as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.runtime.bundle import Bundle
    from foveate.runtime.manifest import Manifest, TensorSpec

EXAMPLES = (
    ("foveate inspect bundle", "model, cuts, graphs, caches, files, engines and the last parity result"),
    ("foveate inspect bundle --full", "and hash every file again"),
    ("foveate inspect demo --json", "the manifest as it is"),
)

Row = tuple[object, ...]


def command(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A folder that foveate export wrote, or demo.")
    ],
    full: Annotated[
        bool, typer.Option("--full", help="Hash every file, even if none seems to have changed.")
    ] = False,
    json_output: output.JsonFlag = False,
) -> None:
    """Show what a bundle is: model, cuts, graphs with inputs and outputs, caches, files, parity, engines.

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
        manifest = opened.manifest.model_dump(mode="json")
        output.emit({"path": str(opened.path), **manifest, "engines": _engine_facts(opened)})
    else:
        _show(opened)


def _show(bundle: Bundle) -> None:
    manifest = bundle.manifest
    tables = [
        output.table(f"Bundle {bundle.path}", ("what", "value"), list(_facts(manifest))),
        output.table("Pruning", ("site", "method", "options"), list(_cuts(manifest))),
        output.table("Graphs", ("stage", "", "tensor", "type and axes"), list(_tensors(manifest))),
        output.table(
            "Caches: one length for each group", ("group", "layers", "row"), list(_caches(manifest))
        ),
        output.table("Files", ("file", "size", "sha256"), list(_files(manifest)), numbers=(1,)),
    ]
    if manifest.precision.layers:
        columns = ("layer", "kernel", "error of its stage's kernel")
        rows = list(_kernels(manifest))
        tables.insert(2, output.table("Layers that deviate from their stage", columns, rows, numbers=(2,)))
    if engines := list(_engines(bundle)):
        heads = ("engines", "for", "profile", "size")
        tables.append(output.table("TensorRT engines", heads, engines, numbers=(3,)))
    for table in tables:
        output.stdout().print(table)


def _facts(manifest: Manifest) -> Iterator[Row]:
    model, source = manifest.model, manifest.source
    total = sum(file.bytes for file in manifest.files.values())
    yield "format", f"{manifest.format}, by foveate {manifest.foveate} for {manifest.target}"
    yield "model", f"{manifest.family}: {source.name} (config {source.config_sha256[:12]})"
    yield "decoder", f"{model.num_layers} layers, width {model.hidden_size}, {model.num_heads} heads"
    yield "vocabulary", f"{model.vocab_size} tokens, up to {model.max_positions} positions"
    yield "image", ", ".join(f"{name} {value}" for name, value in model.vision.items())
    yield "visual tokens", f"{model.visual_tokens or 'as many as its size asks for,'} for each image"
    yield "positions", f"{manifest.positions} after the encoder cut"
    for layout, stages in manifest.layouts.items():
        yield f"layout {layout}", " > ".join(stages)
    yield "precision", _precision(manifest)
    yield "size", f"{output.size(total)} in {len(manifest.files)} files"
    yield "versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    yield "parity", _parity(manifest)


def _cuts(manifest: Manifest) -> Iterator[Row]:
    if not manifest.pruning:
        yield "-", "none", "every visual token goes through"
    for cut in manifest.pruning:
        yield cut.name, cut.method, ", ".join(f"{key}={_word(value)}" for key, value in cut.params.items())


def _precision(manifest: Manifest) -> str:
    """Words of the stages, how many layers deviate, and how that was decided."""
    precision = manifest.precision
    words = ", ".join(f"{stage} {word}" for stage, word in precision.stages.items())
    found = Counter(layer.kernel for layer in precision.layers.values())
    others = "".join(f"; {count} layers {kernel}" for kernel, count in sorted(found.items()))
    errors = "" if set(precision.stages.values()) <= {"fp32"} else "; errors not measured"
    return words + others + ("; errors measured" if precision.measured else errors)


def _kernels(manifest: Manifest) -> Iterator[Row]:
    for name, layer in manifest.precision.layers.items():
        yield name, layer.kernel, "" if layer.error is None else f"{100 * layer.error:.1f} %"


def _tensors(manifest: Manifest) -> Iterator[Row]:
    """One tensor a row, each stage and direction named once; the caches of all layers share a row."""
    for name, stage in manifest.stages.items():
        label = name
        for way, specs in (("in", stage.inputs), ("out", stage.outputs)):
            for tensor, shape in _grouped(specs):
                yield label, way, tensor, shape
                label = way = ""


def _grouped(specs: tuple[TensorSpec, ...]) -> Iterator[tuple[str, str]]:
    caches: dict[str, list[str]] = {}
    for spec in specs:
        if spec.name.startswith(("past_", "present_")):
            caches.setdefault(_shape(spec), []).append(spec.name)
        else:
            yield spec.name, _shape(spec)
    for shape, names in caches.items():
        yield f"{names[0]} … {names[-1]}", f"{len(names)} x {shape}"


def _caches(manifest: Manifest) -> Iterator[Row]:
    cache = manifest.cache
    for index, layers in enumerate(cache.groups):
        span = f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else str(layers[0])
        few, all_heads = sum(cache.heads(layer)[1] for layer in layers), len(layers) * cache.num_kv_heads
        text = f"; {few} of {all_heads} in all layers hold text only" if few else ""
        yield index, span, f"{cache.num_kv_heads} heads of {cache.head_dim}, {cache.dtype}{text}"


def _files(manifest: Manifest) -> Iterator[Row]:
    for name, file in manifest.files.items():
        yield name, output.size(file.bytes), file.sha256[:16]


def _engines(bundle: Bundle) -> Iterator[Row]:
    """A folder of engines a row; those that this bundle's graphs have outgrown say so."""
    from foveate.runtime.engines import graph_hashes, records

    graphs = graph_hashes(bundle.manifest)
    for folder, record in records(bundle.path):
        if isinstance(record, str):
            yield folder.name, f"not readable: {record}", "", ""
            continue
        machine = f"TensorRT {record.tensorrt}, {record.gpu} ({record.compute_capability})"
        fits = {name: plan.graph_sha256 for name, plan in record.stages.items()} == graphs
        profile = f"{record.profile.words()}; {record.attention}, {record.precision}"
        yield folder.name, machine if fits else f"{machine}, other graphs", profile, output.size(record.bytes)


def _engine_facts(bundle: Bundle) -> list[dict[str, object]]:
    from foveate.runtime.engines import records

    return [
        {"folder": str(folder), "error": found}
        if isinstance(found, str)
        else {"folder": str(folder), **found.model_dump(mode="json"), "bytes": found.bytes}
        for folder, found in records(bundle.path)
    ]


def _parity(manifest: Manifest) -> str:
    if manifest.parity is None:
        return "not verified yet: foveate verify BUNDLE"
    rungs = [
        f"{name} {facts.get('status', '?') if isinstance(facts, dict) else facts}"
        for name, facts in manifest.parity.summary.items()
    ]
    return ", ".join(["passed" if manifest.parity.passed else "FAILED", *rungs])


def _shape(spec: TensorSpec) -> str:
    return f"{spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _word(value: object) -> str:
    """As it is typed on the command line."""
    if isinstance(value, list):
        return "+".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
