"""`foveate build`: a bundle's graphs become TensorRT engines for this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.runtime.errors import UsageError
from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.export.engines.build import Outcome
    from foveate.export.engines.intent import Intent
    from foveate.runtime.engines import EngineRecord

EXAMPLES = (
    ("foveate build bundle", "engines for this GPU, into bundle/engines; only what is not there yet"),
    ("foveate build bundle --dry-run", "profiles and what TensorRT would say; needs no GPU"),
    (
        "foveate build bundle --profile batch=8,prompt=2048,new=512",
        "up to 8 requests at once, prompts of 2048 tokens, answers of 512",
    ),
    (
        "foveate build bundle --profile visual=576,buckets=192+640,logits=1",
        "kernels chosen for pruned and for whole prompts",
    ),
    ("foveate build bundle --attention portable", "standard operators only: for TensorRT 10"),
    ("foveate build bundle --workspace 4GiB --level 5", "less memory while building, more time to choose"),
)


def command(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A folder from foveate export --target tensorrt.")
    ],
    profile: Annotated[
        str,
        typer.Option(
            metavar="KEY=NUMBER,...",
            help="How large inputs may be: batch (requests at once), prompt (tokens that are read, behind "
            "the encoder's cut), new (tokens of the answer), images (of a prompt), visual (tokens of a "
            "picture), frames (of a video), kept (tokens behind each cut in the decoder, as 300+150), logits "
            "(rows of a prompt), buckets (shorter prompts to choose kernels for, as 256+512). "
            "[dim]\\[default: by the model][/]",
        ),
    ] = "",
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="LOWERING",
            help="native (TensorRT's cache and attention layers with lengths) or portable (standard "
            "operators and masks). [dim]\\[default: native from TensorRT 11 on][/]",
        ),
    ] = None,
    fused_only: Annotated[
        bool,
        typer.Option("--fused-only", help="Fail where TensorRT has no fused kernel for an attention."),
    ] = False,
    level: Annotated[int, typer.Option(metavar="0-5", help="How long to look for fast kernels.")] = 3,
    workspace: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Most memory of one layer, as 4GiB. [dim]\\[default: all][/]"),
    ] = None,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let float32 products round their inputs to 10 bits.")
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Engines load in later TensorRT, too; slower.")
    ] = False,
    hardware: Annotated[
        str,
        typer.Option(
            metavar="GPUS",
            help="Other GPUs to run on: none, ampere-plus (all since Ampere; slower) or same-capability.",
        ),
    ] = "none",
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Weights may stay in host memory.")
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Weights may be replaced later.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build everything, whatever is there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show profiles; build nothing. Needs no GPU.")
    ] = False,
    json_output: output.JsonFlag = False,
) -> None:
    """Build TensorRT engines of a bundle on the machine that will run them.

    Every graph is checked first, so that a refusal names node, rule and mend. Plans are built again only when
    graph, weights, TensorRT, GPU, driver, profile or options changed, and it says which. They are written
    whole or not at all; Ctrl-C stops the builder and leaves what was there before.
    """
    from foveate.runtime.bundle import Bundle
    from foveate.tools.extras import needs

    words = {
        "attention": attention,
        "fused_only": fused_only,
        "level": level,
        "workspace": workspace,
        "tf32": tf32,
        "version_compatible": version_compatible,
        "hardware": hardware,
        "weight_streaming": weight_streaming,
        "refit": refit,
    }
    with needs("export"), output.progress(quiet=json_output) as report:
        from foveate.export.engines.intent import CHECKED_VERSION, intend
        from foveate.export.engines.machine import look_around
        from foveate.export.engines.options import make_options
        from foveate.export.engines.profiles import read_words

        # A misspelt word is refused before anything is looked for.
        make_options(None, **words)
        read_words(profile)
        opened = Bundle.open(_folder(bundle))
        here = None if dry_run else look_around()
        options = make_options(here, **words)
        intent = intend(opened, options, profile, here.machine.tensorrt if here else CHECKED_VERSION)
        if here is None:
            _show_intent(intent, json_output)
            return
        with needs("tensorrt"):
            from foveate.export.engines.build import build

            outcome = build(intent, here, rebuild=rebuild, progress=_ended(report))
    _show_outcome(outcome, json_output)


def _folder(bundle: str) -> Path:
    """Raises `UsageError` for the built-in bundle, which is one for ONNX Runtime."""
    from foveate.tools.demo import WORD

    if bundle == WORD:
        raise UsageError(
            "the built-in bundle is for ONNX Runtime",
            wanted="a bundle for TensorRT",
            mend="foveate export demo -o bundle --target tensorrt, then foveate build bundle",
        )
    return Path(bundle).expanduser()


def _ended(report: output.ProgressBars) -> Any:
    """Bars for a terminal; elsewhere a line for each graph that is finished."""
    if sys.stderr.isatty():
        return report

    def line(what: str, done: float, total: float) -> None:
        if done >= total:
            output.remark(f"built {what}")

    return line


def describe(record: EngineRecord) -> dict[str, Any]:
    """What a script wants to know about engines."""
    return record.model_dump(mode="json", exclude={"stages": {"__all__": {"profiles"}}}) | {
        "bytes": record.bytes
    }


def _show_outcome(outcome: Outcome, json_output: bool) -> None:
    for warning in outcome.warnings:
        output.warn(warning)
    record = outcome.record
    if json_output:
        names = ("built", "reused", "reasons", "warnings")
        facts = {name: getattr(outcome, name) for name in names}
        output.emit({"engines": str(outcome.folder), **describe(record), "finished": record.built, **facts})
        return
    out = output.stdout()
    if not outcome.reasons:
        out.print(f"[bold green]up to date[/] {outcome.folder}: nothing has changed")
        return
    out.print(f"because: {'; '.join(outcome.reasons)}", markup=False)
    rows = [
        (
            name,
            "built" if name in outcome.built else "as before",
            f"{plan.seconds:.1f} s",
            output.size(plan.bytes),
        )
        for name, plan in record.stages.items()
    ]
    out.print(output.table("Engines", ("stage", "", "time", "size"), rows, numbers=(2, 3)))
    out.print(f"[bold green]wrote[/] {outcome.folder}  ({output.size(record.bytes)}, {record.gpu})")
    bundle = outcome.folder.parent.parent
    out.print(f'[dim]next: foveate run {bundle} --image PICTURE --prompt "What is this?"[/]')


def _show_intent(intent: Intent, json_output: bool) -> None:
    if json_output:
        stages = {
            stage.name: {
                "verdict": stage.report.verdict.value,
                "capturable": stage.report.capturable,
                "segments": stage.report.segments,
                "least_plan_bytes": stage.least_plan_bytes,
                "inputs_added": list(stage.flavoured.added),
                "inputs_removed": list(stage.flavoured.removed),
                "profiles": [record.model_dump(mode="json") for record in stage.profiles],
            }
            for stage in intent.stages
        }
        output.emit(
            {
                "bundle": str(intent.bundle.path),
                "profile": intent.profile.model_dump(mode="json"),
                "options": intent.options.model_dump(mode="json"),
                "capacity": list(intent.capacity),
                "stages": stages,
            }
        )
        return
    out = output.stdout()
    rows = [
        (stage.name if number == 0 else "", profile, _ranges(axes))
        for stage in intent.stages
        for number, (profile, axes) in enumerate(stage.axes.items())
    ]
    out.print(output.table("Profiles", ("stage", "profile", "axes"), rows))
    checked = [
        (
            stage.name,
            stage.report.verdict.value,
            "yes" if stage.report.capturable else "; ".join(stage.report.why_not),
            output.size(stage.least_plan_bytes),
        )
        for stage in intent.stages
    ]
    out.print(output.table("Check", ("stage", "TensorRT", "CUDA graph", "weights"), checked, numbers=(3,)))
    out.print(f"profile {intent.profile.words()}", markup=False)
    out.print(f"caches of {', '.join(map(str, intent.capacity))} tokens; nothing was built")


def _ranges(axes: Mapping[str, tuple[int, int, int]]) -> str:
    """`batch 1-4 (1), sequence 1-576`: from, to, and in brackets what kernels are chosen for, if less."""
    words = []
    for name, (least, usual, most) in axes.items():
        span = str(most) if least == most else f"{least}-{most}"
        words.append(f"{name} {span}" + ("" if usual == most else f" ({usual})"))
    return ", ".join(words)
