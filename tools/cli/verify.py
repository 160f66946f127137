"""`foveate verify`: does the bundle compute what the checkpoint computes?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveate.tools.cli import output

EXAMPLES = (
    ("foveate verify bundle", "all rungs, against the checkpoint that the bundle was made of"),
    ("foveate verify bundle --checkpoint ./llava-1.5-7b-hf", "when the checkpoint has moved"),
    ("foveate verify demo --rung P2 --verbose", "one rung, every check of it"),
)


def command(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A folder that foveate export wrote, or demo.")
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="What the bundle was made of. [dim]\\[default: the one named in the manifest][/]",
        ),
    ] = None,
    rung: Annotated[
        list[str] | None,
        typer.Option(metavar="RUNG", help="P0 to P5; repeat it for several. [dim]\\[default: all][/]"),
    ] = None,
    new_tokens: Annotated[
        int, typer.Option(min=2, max=512, help="Tokens to generate per prompt in P4.")
    ] = 12,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="cuda, tensorrt-provider or tensorrt. [dim]\\[default: onnxruntime, on the CPU][/]",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of ONNX Runtime.")] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="List every check, not only failures.")
    ] = False,
    json_output: output.JsonFlag = False,
) -> None:
    """Compare a bundle with its checkpoint on the parity ladder, and say where they first part.

    P0 graphs are valid. P1 every stage and layer equals transformers. P2 kept indices equal a plain loop-
    written rule. P3 pruned logits equal transformers pruned by that rule. P4 greedy tokens are equal:
    cached and not, batched and single, fused and segmented, in conversations. P5 accuracy, where there is a
    task set.

    Bundles below fp32 climb the same rungs by distance, against limits stated for each precision; P5 is then
    the loss against the same plan in fp32.

    On a CPU, unless --backend names another one; then the bundle is climbed in that backend's own layout,
    and its record stays as it was.

    Runs transformers in float32 beside the bundle, so it needs memory for both. Writes parity.json into the
    bundle and leaves with exit code 5 if any rung fails or could not run.
    """
    from foveate.runtime.backends import CPU
    from foveate.tools.demo import resolve_bundle, resolve_checkpoint
    from foveate.tools.extras import needs

    path = resolve_bundle(bundle, say=output.remark)
    source: Path | None = None if checkpoint is None else resolve_checkpoint(checkpoint)
    with needs("export"):
        from foveate.tools.parity.ladder import Settings
        from foveate.tools.parity.report import print_report
        from foveate.tools.parity.verify import KEYS, require_parity, verify

        keys = tuple(name.upper() for name in rung) if rung else KEYS
        settings = Settings(new_tokens=new_tokens, threads=threads, backend=backend or CPU)
        report = verify(path, source, rungs=keys, settings=settings, say=output.remark)
    if json_output:
        output.emit(report.to_json())
    else:
        print_report(report, output.stdout(), verbose)
    require_parity(report)
