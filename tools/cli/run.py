"""`foveate run`: ask a bundle about images."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.runtime.errors import InputError, UsageError
from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.runtime.generate import Generation, Token
    from foveate.runtime.model import Model
    from foveate.runtime.options import Budget
    from foveate.runtime.prompt import TokenizedPrompt
    from foveate.runtime.videos import Video

EXAMPLES = (
    (
        'foveate run bundle --image cat.jpg --prompt "What is this?"',
        "the methods' own rules decide how much stays",
    ),
    (
        'foveate run bundle --image cat.jpg --prompt "What is this?" --keep-ratio 0.3',
        "30 % after the encoder",
    ),
    (
        'foveate run bundle --image cat.jpg --prompt "What is this?" --keep encoder=64 --keep decoder@2=0.5',
        "a budget for each site: 64 tokens, then half of them",
    ),
    (
        'foveate run demo --image demo:1 --prompt "What color is the star?" --show kept.png',
        "the built-in model on one of its own pictures; draws what was kept",
    ),
    (
        'foveate run bundle --video cat.mp4 --fps 2 --prompt "What does it do?"',
        "two frames for each second, 16 at most",
    ),
    (
        'foveate run bundle --image a.jpg --image b.jpg -p "Compare." --keep-tokens 256 --share proportional',
        "one budget for both images",
    ),
    ("foveate run bundle --image cat.jpg --chat", "a conversation; caches are kept between turns"),
)

BUDGETS = "Budget"
SAMPLING = "Sampling"


def command(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A folder that foveate export wrote, or demo.")
    ],
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="An image; repeat it for several. demo:0 to demo:999 are scenes of the demo model.",
        ),
    ] = None,
    video: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="A video file, an animated GIF, WebP or PNG, or a folder of frames; repeatable.",
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            help="Frames to look at for each second of a video; of single frames: how many there are."
        ),
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option(help="At most so many frames of a video, taken evenly (16).")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="The question; - reads it from standard input."),
    ] = None,
    keep_ratio: Annotated[
        float | None,
        typer.Option(help="Kept share of the visual tokens after the encoder.", rich_help_panel=BUDGETS),
    ] = None,
    keep_tokens: Annotated[
        int | None,
        typer.Option(help="Kept number, for each image, after the encoder.", rich_help_panel=BUDGETS),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE=AMOUNT",
            help="Budget of one site: with a point it is a share (decoder@2=0.5, 1.0 is all), without one a "
            "number of tokens (encoder=64).",
            rich_help_panel=BUDGETS,
        ),
    ] = None,
    share: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="each: the encoder's budget is for each image. proportional or saliency: --keep-tokens is "
            "for the whole prompt, shared by the images' numbers of tokens or by the method's scores.",
            rich_help_panel=BUDGETS,
        ),
    ] = "each",
    pruning_seed: Annotated[
        int | None, typer.Option(help="Seed of methods that draw at random.", rich_help_panel=BUDGETS)
    ] = None,
    allow_unpruned: Annotated[
        bool,
        typer.Option("--allow-unpruned", help="Do not fail if nothing was pruned.", rich_help_panel=BUDGETS),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(help="At most so many new tokens.", rich_help_panel=SAMPLING)
    ] = 64,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token every time.", rich_help_panel=SAMPLING)
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option(help="Sample among so many best tokens.", rich_help_panel=SAMPLING)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Sample among the best tokens of this total probability.", rich_help_panel=SAMPLING
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.", rich_help_panel=SAMPLING)] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="End the answer before this text; repeatable.", rich_help_panel=SAMPLING
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT",
            help="fused or segmented; both give the same tokens. [dim]\\[default: the backend's own][/]",
        ),
    ] = None,
    backend: output.BackendOption = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of one operator; all cores if not given.")
    ] = None,
    show: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURE", help="Draw the images with dropped patches dimmed, a panel for each site."
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Talk: one question a line, caches kept.")] = False,
    json_output: output.JsonFlag = False,
) -> None:
    """Ask about images and videos: prints the answer as it comes, then a line on what was kept and how fast.

    The budget is an input of the graphs, so it may change with every request. Without one, each method's own
    rule decides: the knee of the score curve after the encoder, half of the tokens in the decoder.
    """
    _require_sense(prompt, chat, show, json_output)
    from foveate.runtime.options import GenerateOptions
    from foveate.tools.demo import resolve_bundle, resolve_image

    options = GenerateOptions(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
        keep_ratio=keep_ratio,
        keep_tokens=keep_tokens,
        keep=_budgets(keep or ()),
        share=share,
        pruning_seed=pruning_seed,
        allow_unpruned=allow_unpruned,
    )
    images = [resolve_image(name) for name in image or ()]
    videos = _videos(video or (), fps, max_frames)
    question = _read(prompt) if prompt is not None else ""
    from foveate.runtime.budgets import require_used_seed
    from foveate.runtime.pipeline import load

    with output.progress(quiet=json_output) as report:
        path = resolve_bundle(bundle, say=output.remark, progress=report)
    pipeline = load(path, layout=layout, backend=backend, threads=threads)
    require_used_seed(pipeline.manifest, options)
    if chat:
        from foveate.tools.cli.conversation import converse

        converse(pipeline, question, images, options, videos)
        return
    start = time.perf_counter()
    tokenized = pipeline.tokenize(question, images, videos)
    stream = pipeline.stream_prepared(pipeline.prepare_batch([tokenized], options, started=start), options)
    if not json_output:
        print_tokens(stream)
    generation = stream.generation
    if show is not None:
        _draw(show, generation, tokenized, question)
    _report(generation, path, pipeline.model, show, json_output)


def print_tokens(stream: Iterable[Token]) -> None:
    """The text as it comes, on stdout, and a line end."""
    started = False
    for token in stream:
        text = token.text if started else token.text.lstrip()  # templates end before the first word's space
        started = started or bool(text)
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _require_sense(prompt: str | None, chat: bool, show: Path | None, json_output: bool) -> None:
    if prompt is None and not chat:
        raise UsageError("there is no question", mend='add --prompt "What is this?", or talk with --chat')
    if chat and (show or json_output):
        raise UsageError("--chat goes with neither --json nor --show", mend="ask one question with --prompt")


def _budgets(words: Iterable[str]) -> dict[str, Budget]:
    """`["decoder@2=0.5"]` as budgets by site."""
    from foveate.runtime.options import Budget

    found: dict[str, Budget] = {}
    for word in words:
        site, equals, amount = word.partition("=")
        if not equals or site in found:
            wanted = "SITE=AMOUNT, each site once, such as encoder=64 or decoder@2=0.5"
            raise UsageError("--keep is malformed", found=repr(word), wanted=wanted)
        found[site] = Budget.parse(amount)
    return found


def _videos(names: Iterable[str], fps: float | None, max_frames: int | None) -> list[Video]:
    from foveate.runtime.videos import MAX_FRAMES, Video

    videos = [Video(name, fps, MAX_FRAMES if max_frames is None else max_frames) for name in names]
    if not videos and (fps is not None or max_frames is not None):
        raise UsageError("--fps and --max-frames are for videos", mend="add a --video")
    return videos


def _read(prompt: str) -> str:
    text = sys.stdin.read().strip() if prompt == "-" else prompt
    if not text.strip():
        raise InputError("the prompt is empty", mend='ask something: --prompt "What is this?"')
    return text


def _draw(path: Path, generation: Generation, prompt: TokenizedPrompt, question: str) -> None:
    from foveate.tools.account import picture

    caption = f"{question}\n{generation.text.strip()}"
    output.save_picture(picture(generation, [each.pictures() for each in prompt.visuals], caption), path)


def _report(generation: Generation, path: Path, model: Model, show: Path | None, json_output: bool) -> None:
    from foveate.tools import account

    notes = model.backend.notes
    if json_output:
        picture = str(show) if show else None
        ran = {"layout": model.layout, "backend": model.backend.name, "notes": notes}
        output.emit({"bundle": str(path), **ran, **account.to_json(generation), "picture": picture})
        return
    for note in notes:
        output.remark(note)
    out = output.stdout()
    out.print(f"[dim]{account.summary(generation)}[/]")
    if show is not None:
        out.print(f"[dim]drawn: {show}[/]")
