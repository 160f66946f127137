"""What all rungs stand on: a bundle, the reference for its checkpoint, prompts, budgets, results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from foveate.runtime.backend import Backend, BackendOptions
from foveate.runtime.backends import CPU, choose, open_backend
from foveate.runtime.bundle import Bundle
from foveate.runtime.families import VisualItem, find_preprocessor
from foveate.runtime.manifest import CutRecord
from foveate.runtime.pipeline import Pipeline, load
from foveate.tools.parity.drive import KEEP_ALL, Driver
from foveate.tools.parity.facts import Budget, NoOracleError
from foveate.tools.parity.families import ItemTrace
from foveate.tools.parity.prompts import CASES, Case, Front, Prompt
from foveate.tools.parity.reference import Reference
from foveate.tools.parity.reference_parts import Cut, TurnTrace
from foveate.tools.parity.tolerances import ACCURACY_SCENES

USUAL_SIZE = 36  # visual tokens of an item, where the family has no fixed number: sets budgets
ATTEMPTS = 6  # pictures to draw per case before giving up on one without ties


@dataclass(frozen=True)
class BudgetSet:
    """A name for reports, a seed for methods that draw, and a budget for each site that gets one."""

    name: str
    sites: Mapping[str, Budget]
    seed: int = 0


@dataclass(frozen=True)
class Settings:
    """How much to test: fewer cases and budgets for tests of the ladder itself.

    `backend` runs the graphs; on another one than ONNX Runtime's CPU, in the layout that is its own.
    """

    cases: Sequence[Case] = CASES
    budgets: Sequence[str] = ("own rule", "ratio", "tokens")
    new_tokens: int = 12
    threads: int | None = None
    scenes: int = ACCURACY_SCENES
    backend: str = CPU


DEFAULTS = Settings()


class Ladder:
    """Shared state of a verification. Everything that is slow is computed once."""

    def __init__(
        self, bundle: Bundle, reference: Reference, front: Front, settings: Settings = DEFAULTS
    ) -> None:
        """Draws the prompts. Raises nothing of its own: what cannot be tested is in `untested`."""
        self.bundle, self.reference, self.front, self.settings = bundle, reference, front, settings
        self.manifest = bundle.manifest
        self.written = bundle  # what P0 looks at: `bundle` may be a twin of it that a CPU can run
        name, own = choose(bundle, settings.backend)
        self.layouts = tuple(self.manifest.layouts) if name == CPU else (own,)
        self._backends: dict[str, Backend] = {}
        self.plan = plan_of(bundle)
        self.cuts = tuple(cut for cut in self.plan if cut.site != "layers")
        self.keep_all = BudgetSet("keep all", dict.fromkeys((cut.key for cut in self.cuts), KEEP_ALL))
        self.budgets = tuple(b for b in self._budgets() if b.name in settings.budgets or not self.cuts)
        self._drivers: dict[tuple[str, bool], Driver] = {}
        self._pipelines: dict[str, Pipeline] = {}
        self._traces: dict[tuple[str, str], TurnTrace] = {}
        self._items: dict[str, list[VisualItem]] = {}
        self._preprocessor: Any = None
        self._tokens: dict[tuple[str, ...], list[int]] = {}
        self.scripts: dict[str, Any] = {}
        self.untested: list[str] = []
        self.missing_oracle = ""
        self.prompts = tuple(self._decisive(case) for case in front.cases(settings.cases))

    def _budgets(self) -> tuple[BudgetSet, ...]:
        """The method's own rule, a ratio, a number of tokens: the three ways to ask, other at each site."""
        if not self.cuts:
            return (self.keep_all,)
        few = max(3, (self.manifest.model.visual_tokens or USUAL_SIZE) // 6)
        ratio = {cut.key: Budget(keep_ratio=0.6 - 0.1 * i, seed=1) for i, cut in enumerate(self.cuts)}
        tokens = {cut.key: Budget(keep_tokens=max(1, few - i), seed=2) for i, cut in enumerate(self.cuts)}
        return BudgetSet("own rule", {}), BudgetSet("ratio", ratio, 1), BudgetSet("tokens", tokens, 2)

    def _decisive(self, case: Case) -> Prompt:
        """The case with pictures on which no cut is a tie in float32, so that equality can be asked for.

        Only the reference's own scores decide what is a tie; the graphs have no say. When no attempt is
        free of ties the last one stays, and the budgets that it cannot test are listed in `untested`.
        """
        prompt = self.front.prompt(case)
        for attempt in range(ATTEMPTS if case.sizes or case.videos else 1):
            prompt = self.front.prompt(case, attempt)
            for key in [key for key in self._traces if key[0] == case.name]:
                del self._traces[key]
            try:
                if not any(self.trace(prompt, budgets).fragile for budgets in self.budgets):
                    return prompt
            except NoOracleError as error:
                self.missing_oracle = str(error)
                return prompt
        for budgets in self.budgets:
            if sites := self.trace(prompt, budgets).fragile:
                self.untested.append(f"{case.name}, {budgets.name}: a tie in float32 at {', '.join(sites)}")
        return prompt

    def driver(self, layout: str, *, probe: bool = False) -> Driver:
        """The graphs of a layout, driven by hand."""
        key = (layout, probe)
        if key not in self._drivers:
            self._drivers[key] = Driver(self.bundle, layout, probe=probe, backend=self._backend(layout))
        return self._drivers[key]

    def _backend(self, layout: str) -> Backend | None:
        """The backend that drivers use; None: sessions of the ladder's own."""
        name = self.settings.backend
        if name == CPU:
            return None
        if layout not in self._backends:
            options = BackendOptions(threads=self.settings.threads)
            self._backends[layout] = open_backend(name, self.bundle, layout, options)
        return self._backends[layout]

    def pipeline(self, layout: str) -> Pipeline:
        """The runtime, as users load it."""
        if layout not in self._pipelines:
            self._pipelines[layout] = load(
                self.bundle.path,
                layout=layout,
                backend=self.settings.backend,
                threads=self.settings.threads,
                check="none",
            )
        return self._pipelines[layout]

    def plan_of(self, budgets: BudgetSet) -> tuple[Cut, ...]:
        """What the reference has to do under a budget set.

        Keeping all is transformers as it is, and needs no oracle; but layers that skip work take no budget.
        """
        always = tuple(cut for cut in self.plan if cut not in self.cuts)
        return always if budgets is self.keep_all else self.plan

    def trace(self, prompt: Prompt, budgets: BudgetSet) -> TurnTrace:
        """The reference's prefill of a prompt. Raises NoOracleError."""
        key = (prompt.name, budgets.name)
        if key not in self._traces:
            self._traces[key] = self.reference.prefill(
                [prompt.turn], self.plan_of(budgets), budgets.sites, self.manifest.positions
            )
        return self._traces[key]

    def wanted_items(self, prompt: Prompt) -> list[ItemTrace]:
        """The reference's images and videos of a prompt."""
        return self.reference.items(prompt.turn)

    def items(self, prompt: Prompt) -> list[VisualItem]:
        """The same images and videos as the runtime's preprocessor makes them, in the order of the text."""
        if prompt.name not in self._items:
            if self._preprocessor is None:
                token = self.front.token(self.manifest.model.image_token_id)
                make = find_preprocessor(self.manifest.family)
                self._preprocessor = make(self.bundle.path / "processor", self.manifest.model.vision, token)
            made = [self._preprocessor.image(image, len(prompt.images)) for image in prompt.images]
            made += [self._preprocessor.video(list(frames), fps) for frames, fps in prompt.videos]
            self._items[prompt.name] = prompt.turn.source.in_order(made) if prompt.turn.source else []
        return self._items[prompt.name]

    def cached(self, key: tuple[str, ...], make: Callable[[], Sequence[int]]) -> list[int]:
        """Tokens under a name, made on first use."""
        if key not in self._tokens:
            self._tokens[key] = list(make())
        return self._tokens[key]

    def pruned(self) -> Iterator[tuple[Prompt, BudgetSet, TurnTrace]]:
        """Every prompt under every budget, but for ties (see `untested`)."""
        if self.missing_oracle:
            return
        for prompt in self.prompts:
            for budgets in self.budgets:
                trace = self.trace(prompt, budgets)
                if not trace.fragile:
                    yield prompt, budgets, trace

    def why_untested(self) -> str:
        """The reason, where nothing could be tested."""
        return self.missing_oracle or "every prompt was a tie in float32: " + "; ".join(self.untested[:4])


def plan_of(bundle: Bundle) -> tuple[Cut, ...]:
    """A bundle's cuts, with the trained weights that it keeps."""
    stages = bundle.manifest.stages
    reads_text = any(spec.name == "text_feature" for stage in stages.values() for spec in stage.inputs)
    return tuple(
        Cut(cut.site, cut.layer, cut.method, cut.params, _adapter(bundle, cut), reads_text)
        for cut in bundle.manifest.pruning
    )


def _adapter(bundle: Bundle, cut: CutRecord) -> dict[str, np.ndarray]:
    """A cut's trained weights in float32, by the names of the method's parameters."""
    if cut.adapter is None:
        return {}
    tensors = load_file(bundle.path / "adapters" / f"{cut.method}.safetensors")
    prefix = f"{cut.site if cut.layer is None else f'l{cut.layer}'}."
    own = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    return {name: each.astype(np.float32) for name, each in own.items()}
