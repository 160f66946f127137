"""`foveate train`: the weights of a trained method become an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.export.adapter import Adapter

EXAMPLES = (
    (
        "foveate train dyvte --model demo -o gates.safetensors",
        "minutes on one thread; the model stays frozen",
    ),
    (
        "foveate train quecc --model demo -o quecc.safetensors --set stride=4",
        "one token for each 4 x 4 patches",
    ),
    ("foveate train quecc --model demo -o quecc.safetensors --resume", "go on where it was stopped"),
)


def command(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="dyvte, quecc, setok or vistog.")],
    adapter: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="The adapter to write, ending in .safetensors."),
    ],
    model: Annotated[
        str,
        typer.Option(metavar="CHECKPOINT", help="demo, or a checkpoint that was trained as it was."),
    ] = "demo",
    seed: Annotated[int | None, typer.Option(min=0, help="Of first weights and scenes.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Another setting of the recipe. Repeat it for several."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it is there.")] = False,
    json_output: output.JsonFlag = False,
) -> None:
    """Train the weights of a pruning method on the demo's scenes, with the model itself frozen.

    Beside the adapter stand a table of the checks on validation scenes (.csv) and their curve (.png). A run
    that is stopped leaves its state (.state), from which [cyan]--resume[/] goes on to the very weights that
    the whole run would have given.
    """
    from foveate.runtime.errors import UsageError
    from foveate.tools.demo import resolve_checkpoint
    from foveate.tools.extras import needs

    if adapter.suffix != ".safetensors":
        raise UsageError(
            "an adapter is a safetensors file", found=str(adapter), wanted="a name in .safetensors"
        )
    with needs("export"):
        from foveate.tools.train import loop, recipes

        recipe = recipes.make_recipe(method, settings or (), seed=seed, steps=steps)
        loop.check_place(adapter, resume=resume, overwrite=overwrite)
        trainer = recipes.make_trainer(method, resolve_checkpoint(model), recipe)
        with output.progress(quiet=json_output) as report:
            written = loop.train(trainer, adapter, resume=resume, overwrite=overwrite, progress=report)
    if json_output:
        output.emit(describe(written))
    else:
        _show(written, model)


def describe(adapter: Adapter) -> dict[str, object]:
    """What a script wants to know about a fresh adapter."""
    return {
        "adapter": str(adapter.path),
        "method": adapter.method,
        "cuts": adapter.params,
        "trained": adapter.trained,
        "source": {"name": adapter.source_name, "weights_sha256": adapter.source_weights},
        "bytes": adapter.path.stat().st_size,
    }


def _show(adapter: Adapter, model: str) -> None:
    out, figures = output.stdout(), adapter.trained["validation"]
    cuts = ", ".join(adapter.params)
    out.print(f"[bold green]wrote[/] {adapter.path}  ({output.size(adapter.path.stat().st_size)}; {cuts})")
    found = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())
    out.print(f"on validation scenes: {found}")
    curve = adapter.path.with_suffix(".png")
    out.print(f"[dim]curve: {curve}[/]")
    out.print(
        f"[dim]next: foveate export {model} -o bundle --method {adapter.method} --adapter {adapter.path}[/]"
    )
