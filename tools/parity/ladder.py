"""What all rungs stand on: a bundle, the reference for its checkpoint, prompts, budgets, and cached results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from foveate.runtime.bundle import Bundle
from foveate.tools.parity.choose import Budget
from foveate.tools.parity.drive import KEEP_ALL, Driver
from foveate.tools.parity.prompts import Prompt
from foveate.tools.parity.reference import Reference
from foveate.tools.parity.reference_parts import Cut, TurnTrace, VisionTrace


@dataclass(frozen=True)
class BudgetSet:
    """A name for reports, and a budget for each site that does not follow its method's own rule."""

    name: str
    sites: Mapping[str, Budget]


class Ladder:
    """Shared state of a verification. Everything that is slow is computed once."""

    def __init__(self, bundle: Bundle, reference: Reference, prompts: tuple[Prompt, ...], seed: int = 0) -> None:
        self.bundle, self.reference, self.prompts = bundle, reference, prompts
        self.manifest = bundle.manifest
        self.layouts = tuple(self.manifest.layouts)
        self.plan = tuple(Cut(cut.site, cut.layer, cut.method, cut.params) for cut in self.manifest.pruning)
        self.keep_all = BudgetSet("keep all", {cut.key: KEEP_ALL for cut in self.plan})
        self.budgets = self._budgets(seed)
        self._drivers: dict[tuple[str, bool], Driver] = {}
        self._traces: dict[tuple[str, str], TurnTrace] = {}
        self._vision: dict[str, VisionTrace] = {}
        self.replaced: list[str] = []

    def _budgets(self, seed: int) -> tuple[BudgetSet, ...]:
        """The method's own rule, a ratio and a number of tokens: the three ways to ask, different at each site."""
        if not self.plan:
            return (BudgetSet("unpruned", {}),)
        few = max(2, self.manifest.model.visual_tokens_per_image // 8)
        ratio = {cut.key: Budget(keep_ratio=0.6 - 0.1 * i, seed=seed + 1) for i, cut in enumerate(self.plan)}
        tokens = {cut.key: Budget(keep_tokens=max(1, few - i), seed=seed + 2) for i, cut in enumerate(self.plan)}
        return BudgetSet("own rule", {}), BudgetSet("ratio", ratio), BudgetSet("tokens", tokens)

    def driver(self, layout: str, *, probe: bool = False) -> Driver:
        """The graphs of a layout, driven by hand."""
        key = (layout, probe)
        if key not in self._drivers:
            self._drivers[key] = Driver(self.bundle, layout, probe=probe)
        return self._drivers[key]

    def trace(self, prompt: Prompt, budgets: BudgetSet) -> TurnTrace:
        """The reference's prefill of a prompt's last turn."""
        key = (prompt.name, budgets.name)
        if key not in self._traces:
            self._traces[key] = self.reference.prefill(
                prompt.turns, self.plan, budgets.sites, self.manifest.positions
            )
        return self._traces[key]

    def vision(self, prompt: Prompt) -> VisionTrace | None:
        """The reference's vision tower on the images of a prompt's last turn; None without images."""
        pixels = prompt.turns[-1].pixel_values
        if pixels is None:
            return None
        if prompt.name not in self._vision:
            self._vision[prompt.name] = self.reference.vision(pixels)
        return self._vision[prompt.name]

    def single_turns(self) -> Iterator[Prompt]:
        """Prompts of one turn: those that the graphs can be driven through by hand."""
        return (prompt for prompt in self.prompts if len(prompt.turns) == 1)

    def pruned(self) -> Iterator[tuple[Prompt, BudgetSet, TurnTrace]]:
        """Every single-turn prompt under every budget, but for those whose cuts rounding noise could turn."""
        for prompt in self.single_turns():
            for budgets in self.budgets:
                trace = self.trace(prompt, budgets)
                if trace.fragile:
                    self.replaced.append(f"{prompt.name}, {budgets.name}: {', '.join(trace.fragile)}")
                else:
                    yield prompt, budgets, trace
