"""`foveate export`: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.runtime.bundle import Bundle

EXAMPLES = (
    ("foveate export ./llava-1.5-7b-hf -o bundle", "the main method at both sites, both layouts"),
    ("foveate export demo -o bundle --method cls-knee", "the built-in model, cut after the encoder only"),
    (
        "foveate export demo -o bundle --method cls-knee --method text-relevance@2:ratio=0.3,profile=safe",
        "options follow the colon; @2 cuts after two decoder layers",
    ),
    (
        "foveate export demo -o bundle --method aim-merge --method aim-rank",
        "merging, then many cuts",
    ),
    ("foveate export demo -o plain --method none", "no pruning: the yardstick to compare with"),
    (
        "foveate export demo -o gpu --target tensorrt",
        "for TensorRT, in fp16: then foveate check gpu --target tensorrt, and foveate build gpu",
    ),
    ("foveate export demo -o small --dtype int8", "8-bit weights and activations"),
    (
        "foveate export demo -o small --dtype int4,vision=fp32",
        "4-bit decoder, 8-bit head and projector, the encoder as it is",
    ),
)

LAYOUTS = {"both": ("fused", "segmented"), "fused": ("fused",), "segmented": ("segmented",)}
POSITIONS = ("compact", "original")
TARGETS = ("onnxruntime", "portable", "cuda", "tensorrt")
_ANY_DEPTH = 1 << 20  # layers: any schedule fits; the model's own depth is known when its config is read


def command(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A Hugging Face folder (config.json, safetensors), or demo."
        ),
    ],
    bundle: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="BUNDLE", help="The folder to write, whole or not at all."),
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="NAME, NAME@LAYER or NAME@LAYER:OPTION=VALUE,... Without @ it cuts after the vision encoder"
            " (or where its own schedule says), with @2 after two decoder layers, with @2+4 after two"
            " and four. Repeat it for several cuts; none for no pruning. "
            "See [cyan]foveate methods[/]. [dim]\\[default: the family's, see foveate families][/]",
        ),
    ] = None,
    schedule: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Decoder cuts from a file that [cyan]foveate search[/] wrote, besides those of --method.",
        ),
    ] = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Weights of a trained method, from [cyan]foveate train[/]; one for each. The built-in model "
            "has its own.",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT",
            help="fused (one decoder graph, for CPUs), segmented (no data-dependent shapes, for GPUs), or "
            "both; they share one weights file. [dim]\\[default: both; segmented for cuda and tensorrt][/]",
        ),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            metavar="POSITIONS",
            help="Where tokens kept by the encoder cut stand: compact (closed up, as the papers' code does) "
            "or original. [dim]\\[default: the family's][/]",
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="onnxruntime (its own operators: the fastest on CPUs), portable (standard ONNX only), cuda "
            "(ONNX Runtime on NVIDIA GPUs, in half precision) or tensorrt (standard ONNX that its parser "
            "takes; see [cyan]foveate check[/] and [cyan]foveate build[/]).",
        ),
    ] = "onnxruntime",
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="PRECISION",
            help="How linear layers are stored and multiplied: fp32, fp16, int8, int4 or auto (cuda: fp16, "
            "bf16, int8, int4; tensorrt: fp32, fp16, bf16, int8, fp8, int4); for single stages "
            "STAGE=PRECISION,... with stages vision, projector, decoder, head. int4 is for the decoder; "
            "the rest becomes int8, or fp16 on GPUs. See docs/precision.md. "
            "[dim]\\[default: fp32; fp16 for cuda and tensorrt][/]",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Pictures to measure errors of layers on, under a lower precision. "
            "[dim]\\[default: built-in ones][/]",
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            help="Whether to run the graphs in fp32 first, and keep layers higher that would be harmed.",
        ),
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace BUNDLE if it is there.")] = False,
    json_output: output.JsonFlag = False,
) -> None:
    """Export a checkpoint to a bundle: ONNX graphs with pruning inside, tokenizer, processor, manifest.

    The budget is an input of the graphs, so one bundle serves every keep ratio: choose it in [cyan]foveate
    run[/]. Weights are read while they are written; memory stays far below the size of the model.
    """
    from foveate.pruning.plan import parse_plan
    from foveate.pruning.schedule import load_schedule
    from foveate.tools.demo import WORD, resolve_checkpoint, shipped_adapters
    from foveate.tools.extras import needs

    if layout is not None:
        output.one_of("--layout", layout, tuple(LAYOUTS))
    output.one_of("--target", target, TARGETS)
    if positions is not None:
        output.one_of("--positions", positions, POSITIONS)
    words, depth = list(method or ()), None
    if schedule is not None:
        found = load_schedule(schedule)
        words, depth = words + found.words(), found.num_layers
    if words:
        parse_plan(words, _ANY_DEPTH)  # before torch is imported: a misspelt method is refused at once
    source = resolve_checkpoint(checkpoint)
    adapters = list(adapter or ())
    if checkpoint == WORD and not adapters:
        adapters = shipped_adapters(words)
        for each in adapters:
            output.remark(f"with the weights that come with the built-in model: {each.name}")
    with needs("export"), output.progress(quiet=json_output) as report:
        from foveate.export import export_model
        from foveate.export.precision import parse_precision
        from foveate.tools.precision.choose import Settings, chooser

        if dtype is not None:
            parse_precision(dtype, target)  # before the calibration pictures are read
        settings = Settings(calibration, measure=measure)
        written = export_model(
            source,
            bundle,
            plan=words or None,
            layouts=None if layout is None else LAYOUTS[layout],
            positions=positions,
            target=target,
            dtype=dtype,
            choose=chooser(settings, say=output.remark, progress=report),
            adapters=adapters,
            depth=depth,
            overwrite=overwrite,
            progress=report,
            warn=output.warn,
        )
    if json_output:
        output.emit(describe(written))
    else:
        _show(written)


def describe(bundle: Bundle) -> dict[str, object]:
    """What a script wants to know about a fresh bundle."""
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.path),
        "family": manifest.family,
        "pruning": [cut.model_dump() for cut in manifest.pruning],
        "positions": manifest.positions,
        "target": manifest.target,
        "precision": manifest.precision.model_dump(),
        "layouts": {name: list(stages) for name, stages in manifest.layouts.items()},
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "files": len(manifest.files),
    }


def _show(bundle: Bundle) -> None:
    manifest = bundle.manifest
    total = output.size(sum(file.bytes for file in manifest.files.values()))
    cuts = " + ".join(f"{cut.method} at {cut.name}" for cut in manifest.pruning) or "no pruning"
    layouts = " and ".join(manifest.layouts)
    out = output.stdout()
    precision = manifest.precision.name
    out.print(f"[bold green]wrote[/] {bundle.path}  ({total}, {precision}, {layouts}; {cuts})")
    if manifest.precision.reason:
        out.print(f"[dim]{manifest.precision.reason}[/]")
    out.print(f"[dim]next: foveate verify {bundle.path}[/]")
