"""The public interface: a bundle that answers questions about images.

>>> pipeline = load("bundle")                                                          # doctest: +SKIP
>>> answer = pipeline.generate("What is this?", images=["cat.jpg"])                    # doctest: +SKIP
>>> answer.text, answer.report.visual_tokens, answer.report.kept                       # doctest: +SKIP
('A cat.', 576, 64)
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from foveate.runtime.arrays import Arrays, Ints
from foveate.runtime.backend import BackendOptions
from foveate.runtime.backends import choose, open_backend
from foveate.runtime.budgets import least_lengths, require_known_sites
from foveate.runtime.bundle import Bundle, Check
from foveate.runtime.cache import KVCache
from foveate.runtime.chunk import PreparedPrompt, Row, VisualTokens, arrange, collate
from foveate.runtime.errors import InputError, UsageError
from foveate.runtime.families import VisualItem
from foveate.runtime.generate import Generation, Prefill, Run, TokenStream, prefill
from foveate.runtime.images import Images
from foveate.runtime.manifest import Manifest
from foveate.runtime.model import Model
from foveate.runtime.options import GenerateOptions
from foveate.runtime.processor import Processor
from foveate.runtime.prompt import Prompt, TokenizedPrompt, read_prompt, tokenize
from foveate.runtime.report import Timings
from foveate.runtime.sharing import keep_best, require_share, shared_feeds
from foveate.runtime.steps import Steps, finish
from foveate.runtime.videos import Videos
from foveate.runtime.vision_cache import VisionCache
from foveate.runtime.visuals import Visual

if TYPE_CHECKING:
    from foveate.runtime.chat import Chat

_DEFAULTS = GenerateOptions()
# Far above any machine; thread pools of such a size fail in ways of their own.
_MOST_THREADS = 4096


class Request(NamedTuple):
    """A prompt with its images and videos, for `Pipeline.generate_batch`."""

    prompt: Prompt
    images: Images = ()
    videos: Videos = ()


AnyRequest: TypeAlias = "Request | tuple[Prompt, Images] | Prompt"


def load(
    path: str | os.PathLike[str],
    *,
    layout: str | None = None,
    backend: str | None = None,
    threads: int | None = None,
    check: Check = "fast",
    vision_cache: int = 0,
    device: int = 0,
    graphs: bool = True,
) -> Pipeline:
    """Open a bundle, load its graphs and its processor.

    Args:
        path: the folder that `foveate export` wrote.
        layout: "fused" (one decoder graph) or "segmented" (one per segment); equal tokens out of both. None:
            the backend's own, or the only one there is.
        backend: what runs the graphs: "onnxruntime" (on the CPU), "cuda", "tensorrt-provider" or "tensorrt",
            see `foveate.runtime.backends`. None: what the bundle was exported for.
        threads: of one operator, 1 to 4096; None takes all cores.
        check: how to verify the files, see `Bundle.open`.
        vision_cache: bytes for the visual tokens of images that may be asked about again; 0 keeps none.
        device: number of the GPU, of backends that use one.
        graphs: whether decoding steps are replayed as CUDA graphs where that is legal.

    Raises:
        BundleError: missing, changed or unfinished bundle, or one of another format version.
        UsageError: no such layout, backend or check, or a number is out of range.
        BackendError: a graph cannot be loaded, or the backend cannot run here.
        MissingDependencyError: the backend's package or transformers is not installed.
    """
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= _MOST_THREADS):
        raise UsageError("threads is out of range", found=str(threads), wanted=f"1 to {_MOST_THREADS}")
    cache = VisionCache(vision_cache)
    bundle = Bundle.open(path, check=check)
    name, layout = choose(bundle, backend, layout)
    bundle.layout_stages(layout)  # before a GPU is woken for nothing
    options = BackendOptions(threads=threads, device=device, graphs=graphs)
    model = Model(bundle, layout, open_backend(name, bundle, layout, options))
    processor = Processor(bundle.processor_path, bundle.manifest.model, bundle.manifest.family)
    # Now, so that it does not count as time to the first token.
    processor.warm_up()
    return Pipeline(bundle, model, processor, vision_cache=cache if cache.limit else None)


class Pipeline:
    """Answers prompts with images. One thread at a time; streams may be interleaved.

    A prompt is a text (one user turn; images come first, or where the text says `<image>`) or a list of
    messages as of chat APIs. An image is a path, the bytes of a file, a Pillow image or a uint8 array; a
    single one may stand for a list of one. A video is a path, the bytes of a file, a list of images or a
    `foveate.runtime.videos.Video`, which also says how many frames to look at.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: Model,
        processor: Processor,
        *,
        vision_cache: VisionCache | None = None,
    ) -> None:
        self.bundle = bundle
        self.model = model
        self.processor = processor
        self.vision_cache = vision_cache

    def close(self) -> None:
        """Give memory and libraries back now, above all a GPU's; the pipeline cannot be used any more.

        May be called twice. Otherwise that happens with the last reference to the pipeline and its answers.
        """
        self.model.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def manifest(self) -> Manifest:
        """What the bundle is."""
        return self.bundle.manifest

    def generate(
        self,
        prompt: Prompt,
        images: Images = (),
        options: GenerateOptions = _DEFAULTS,
        *,
        videos: Videos = (),
    ) -> Generation:
        """The answer to a prompt.

        Raises:
            InputError: an image or the prompt cannot be used.
            UsageError: an option does not fit the bundle.
            NothingPrunedError: a pruned bundle kept everything, and nobody asked it to.
            BackendError: a graph failed.
        """
        return self.stream(prompt, images, options, videos=videos).generation

    def stream(
        self,
        prompt: Prompt,
        images: Images = (),
        options: GenerateOptions = _DEFAULTS,
        *,
        videos: Videos = (),
    ) -> TokenStream:
        """The answer, token by token; then `.generation` of the stream is the whole. Raises as `generate`."""
        return self.stream_prepared(self.prepare(prompt, images, options, videos=videos), options)

    def generate_batch(
        self,
        requests: Sequence[AnyRequest],
        options: GenerateOptions = _DEFAULTS,
    ) -> list[Generation]:
        """The answers to several prompts, run together; the same tokens as one by one. Raises as `generate`.

        pipeline.generate_batch([Request("What is this?", ["cat.jpg"]), Request("Tell a joke.")])
        """
        asked = as_requests(requests)
        if not asked:
            return []
        start = time.perf_counter()
        prompts = [self.tokenize(*request) for request in asked]
        prepared = self.prepare_batch(prompts, options, started=start)
        return self.stream_prepared(prepared, options).generations

    def chat(self, system: str | None = None) -> Chat:
        """A conversation that keeps its caches between turns."""
        from foveate.runtime.chat import Chat

        return Chat(self, system)

    # --- the steps, for tools that look inside --------------------------------------------------------------

    def open(self, source: object, kind: Literal["image", "video"] = "image") -> Visual:
        """An image or video, ready for several prompts: may be given in its place. Raises `InputError`."""
        return self.processor.made(Visual.given(kind, source))

    def tokenize(self, prompt: Prompt, images: Images = (), videos: Videos = ()) -> TokenizedPrompt:
        """The prompt rendered and tokenised, one token per run of visual tokens. Raises `InputError`."""
        return tokenize(read_prompt(prompt, self.processor.places, images, videos), self.processor)

    def prepare(
        self,
        prompt: Prompt,
        images: Images = (),
        options: GenerateOptions = _DEFAULTS,
        *,
        videos: Videos = (),
    ) -> PreparedPrompt:
        """Everything before the decoder: tokens, and visual tokens as the encoder's cut leaves them."""
        start = time.perf_counter()
        tokenized = self.tokenize(prompt, images, videos)
        return self.prepare_batch([tokenized], options, started=start)

    def prepare_batch(
        self,
        prompts: Sequence[TokenizedPrompt],
        options: GenerateOptions = _DEFAULTS,
        *,
        first_position: int = 0,
        started: float | None = None,
    ) -> PreparedPrompt:
        """As `prepare`, for several prompts; images of one size go through the vision stage together.

        `first_position` is for a chunk that continues a cache; `started` says when preprocessing began.
        """
        steps = self.prepare_steps(prompts, options, first_position=first_position, started=started)
        return finish(steps)

    def prepare_steps(
        self,
        prompts: Sequence[TokenizedPrompt],
        options: GenerateOptions = _DEFAULTS,
        *,
        at_once: int | None = None,
        first_position: int = 0,
        started: float | None = None,
    ) -> Steps[PreparedPrompt]:
        """As `prepare_batch`, with a pause behind each `at_once` images (None: none), which timings count."""
        require_known_sites(self.manifest, options)
        require_share(options, gives_scores=self.model.gives_scores)
        start = time.perf_counter() if started is None else started
        items = [self._items(prompt) for prompt in prompts]
        self._require_fit(prompts, items, options)
        seen = time.perf_counter()
        visual = yield from self._look(prompts, items, options, at_once)
        timings = Timings(preprocess=seen - start, vision=time.perf_counter() - seen)
        rows, first, slot = [], 0, 0
        for prompt, own in zip(prompts, items, strict=True):
            kept = [visual.kept(first + i) for i in range(len(own))]
            rows.append(self.arrange(prompt, own, kept, first_slot=slot, first_position=first_position))
            first, slot = first + len(own), slot + sum(map(len, kept))
        return collate(rows, items, visual, timings)

    def arrange(
        self,
        prompt: TokenizedPrompt,
        items: Sequence[VisualItem],
        kept: Sequence[Ints],
        *,
        first_slot: int = 0,
        first_position: int = 0,
    ) -> Row:
        """A prompt with the kept visual tokens of its items in their places, see `chunk.arrange`."""
        return arrange(
            prompt.input_ids,
            prompt.user_text,
            items,
            kept,
            visual_ids=self.processor.visual_ids,
            mode=self.manifest.positions,
            axes=self.manifest.model.position_axes,
            first_slot=first_slot,
            first_position=first_position,
        )

    def _items(self, prompt: TokenizedPrompt) -> list[VisualItem]:
        """The items of a prompt, with feeds: those of earlier turns that are read again have lost theirs."""
        made = [self.processor.made(visual) for visual in prompt.visuals]
        return [visual.item for visual in made if visual.item is not None]

    def _require_fit(
        self,
        prompts: Sequence[TokenizedPrompt],
        items: Sequence[Sequence[VisualItem]],
        options: GenerateOptions,
    ) -> None:
        """Raises `BackendError` for what the decoder cannot read, whatever the encoder's cut leaves of it."""
        lengths = []
        for prompt, own in zip(prompts, items, strict=True):
            sizes = [item.visual_tokens for item in own]
            text = int(np.count_nonzero(~prompt.visual))
            lengths.append(least_lengths(self.manifest, options, text, sizes))
        self.model.require_prompts(lengths)

    def _look(
        self,
        prompts: Sequence[TokenizedPrompt],
        items: Sequence[Sequence[VisualItem]],
        options: GenerateOptions,
        at_once: int | None,
    ) -> Steps[VisualTokens]:
        """The visual tokens of all prompts, as the encoder's cut and the shared budget leave them."""
        sizes = [[item.visual_tokens for item in own] for own in items]
        words = [prompt.words for prompt, own in zip(prompts, items, strict=True) for _ in own]
        every = [item for own in items for item in own]
        budgets = shared_feeds(self.manifest, options, sizes)
        seen, step = [], at_once or max(1, len(every))
        for start in range(0, max(1, len(every)), step):
            if start:
                yield "vision"
            some = slice(start, start + step)
            own = {name: value[some] for name, value in budgets.items()}
            seen.append(self._seen(every[some], own, words[some]))
        return keep_best(VisualTokens.joined(seen), options, [len(own) for own in items])

    def _seen(self, items: Sequence[VisualItem], budgets: Arrays, words: Sequence[Ints]) -> VisualTokens:
        """The visual tokens of some items as the encoder's cut leaves them; seen before, from the cache."""
        if self.vision_cache is None or not items:
            return self.model.look(items, budgets, words)
        return self.vision_cache.look(self.model, items, budgets, words)

    def prefill(
        self,
        prepared: PreparedPrompt,
        options: GenerateOptions = _DEFAULTS,
        *,
        logits: Literal["last", "all"] = "last",
    ) -> Prefill:
        """Read a prepared prompt into a fresh cache and give logits. Does not mind if nothing was pruned.

        With `logits="all"`, rows of tokens that a cut dropped are NaN.
        """
        cache = self.model.new_cache(len(prepared.length))
        read = prefill(self.model, prepared, options, cache, logits=logits)
        if logits == "all":
            read.logits[~read.present] = np.nan
        return read

    def stream_prepared(
        self, prepared: PreparedPrompt, options: GenerateOptions = _DEFAULTS, cache: KVCache | None = None
    ) -> TokenStream:
        """Generate from a prepared prompt, or batch of them; `cache` holds what precedes it."""
        run = Run(self.model, prepared, options, self.processor.decode, cache, cache_reused=cache is not None)
        return TokenStream(run)


def as_requests(requests: Sequence[AnyRequest]) -> list[Request]:
    """Several requests in their general form. Raises `InputError`, also for a text, which is a sequence."""
    if isinstance(requests, (str, Mapping)):
        mend = "put it into a list, or ask it alone"
        raise InputError("a batch is a list of requests", found=repr(requests)[:200], mend=mend)
    return [as_request(request) for request in requests]


def as_request(request: AnyRequest) -> Request:
    """A request in its general form. Raises `InputError`."""
    if isinstance(request, str):
        return Request(request)
    if isinstance(request, tuple) and len(request) in (2, 3):
        return Request(*request)
    if isinstance(request, list):
        return Request(request)
    raise InputError("a request is malformed", found=repr(request)[:200], wanted="Request(prompt, images)")
