"""`python -m foveate.tools.demo_model train|measure`: make the demo checkpoint, or say what it can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from foveate.tools.demo_model.measure import measure, show
from foveate.tools.demo_model.recipe import Recipe
from foveate.tools.demo_model.train import train

SHIPPED = Path(__file__).with_name("checkpoint")
app = typer.Typer(help=__doc__, add_completion=False)


@app.command("train")
def train_command(
    out: Annotated[Path, typer.Option(help="Folder of the run: state, log and finished checkpoint.")],
    resume: Annotated[bool, typer.Option(help="Go on from the last saved state.")] = False,
) -> None:
    """Run the whole recipe."""
    train(Recipe(), out, resume)


@app.command("measure")
def measure_command(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder.")] = SHIPPED,
    scenes: Annotated[int, typer.Option(min=1)] = 1000,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    layers: Annotated[str, typer.Option(help="Decoder layers to cut after, e.g. 1,2,3.")] = "1,2,3",
    knee_scale: float = 2.0,
    min_keep: int = 14,
    generated: Annotated[int, typer.Option(help="Items to cross-check with generate.")] = 50,
    out: Annotated[Path | None, typer.Option(help="Write the figures as JSON.")] = None,
) -> None:
    """Measure a checkpoint: a table for people on the terminal, JSON in a file."""
    cuts = tuple(int(layer) for layer in layers.split(",") if layer)
    result = measure(checkpoint, scenes, split, cuts, knee_scale, min_keep, generated)
    show(result, Console())
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    app()
