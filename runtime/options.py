"""What a request may ask for: how to sample, when to stop, how many visual tokens to keep.

Standard library only. Every value is checked when the object is made, so a bad option is reported before any
work is done.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from foveate.runtime.errors import UsageError

ENCODER = "encoder"
# Graphs and numpy take 64-bit numbers.
_LARGEST = 2**63 - 1
_SAMPLING = ("top_k", "top_p")
SHARES = ("each", "proportional", "saliency")


@dataclass(frozen=True)
class Budget:
    """How much to keep at one site: a fraction `ratio`, or a number of `tokens`; neither: the method's rule.

    >>> Budget.parse("0.25"), Budget.parse("64")
    (Budget(ratio=0.25, tokens=None), Budget(ratio=None, tokens=64))

    Raises:
        UsageError: both are given, or one is out of range.
    """

    ratio: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None and self.tokens is not None:
            raise UsageError("keep_ratio and keep_tokens exclude each other", mend="give one of them")
        if self.ratio is not None and not (_is_number(self.ratio) and 0 < self.ratio <= 1):
            raise UsageError(
                "keep_ratio is out of range", found=str(self.ratio), wanted="0 < keep_ratio <= 1"
            )
        if self.tokens is not None and not (_is_whole(self.tokens) and self.tokens >= 1):
            raise UsageError(
                "keep_tokens is out of range",
                found=str(self.tokens),
                wanted="a whole number, 1 or more (below 2**63)",
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`0.25` or `1.0` is a ratio, `64` a number of tokens."""
        try:
            return cls(ratio=float(text)) if "." in text else cls(tokens=int(text))
        except ValueError as error:
            wanted = "a ratio such as 0.25, or a number of tokens such as 64"
            raise UsageError("a budget is not a number", found=repr(text), wanted=wanted) from error

    @property
    def given(self) -> bool:
        """Whether the caller asked for anything."""
        return self.ratio is not None or self.tokens is not None

    def keeps_all(self, n: int) -> bool:
        """Whether the caller asked, in so many words, to keep all of `n` tokens."""
        return self.ratio == 1 or (self.tokens is not None and self.tokens >= n)


@dataclass(frozen=True)
class GenerateOptions:
    """One request's options; the defaults are greedy decoding with the budgets of the methods' own rules.

    Attributes:
        max_new_tokens: at most so many tokens; fewer when the model's positions run out.
        temperature: 0 is greedy; otherwise logits are divided by it before sampling.
        top_k: sample among so many best tokens; None for all.
        top_p: sample among the smallest set of best tokens that has this probability; None for all.
        seed: of the sampling. Rows of a batch use it each for itself, as if they were alone.
        stop: strings that end the text; they are not part of it.
        keep_ratio, keep_tokens: budget of the encoder's site.
        keep: budgets by site, `{"encoder": Budget(ratio=0.3), "decoder@2": Budget(tokens=64)}`.
        share: what the encoder's budget is for, with several images (or videos): "each" of them; or, with a
            number of tokens, the whole prompt, shared "proportional" to their visual tokens or by "saliency".
        pruning_seed: for methods that draw at random; added to the one that was exported (None adds nothing).
        allow_unpruned: a pruned bundle that pruned nothing is an error unless this is set.

    Raises:
        UsageError: a value is out of range or has no effect, or the encoder's budget is given twice.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    keep_ratio: float | None = None
    keep_tokens: int | None = None
    keep: Mapping[str, Budget] = field(default_factory=dict)
    share: str = "each"
    pruning_seed: int | None = None
    allow_unpruned: bool = False

    def __post_init__(self) -> None:
        self._require_sampling()
        if not isinstance(self.stop, (tuple, list)) or not all(isinstance(text, str) for text in self.stop):
            wanted = "a tuple of texts, such as ('USER:',)"
            raise UsageError("stop is no list of texts", found=repr(self.stop), wanted=wanted)
        _require("stop", self.stop, all(self.stop), "no empty text")
        if not isinstance(self.keep, Mapping) or not all(isinstance(b, Budget) for b in self.keep.values()):
            wanted = 'budgets by site, such as {"decoder@2": Budget(ratio=0.5)}'
            raise UsageError("keep is no mapping to budgets", found=repr(self.keep), wanted=wanted)
        encoder = Budget(self.keep_ratio, self.keep_tokens)
        if encoder.given and ENCODER in self.keep:
            raise UsageError(
                "the encoder's budget is given twice", mend="drop keep_ratio / keep_tokens or keep"
            )
        if self.share not in SHARES:
            raise UsageError("unknown share", found=repr(self.share), wanted=", ".join(SHARES))
        if self.share != "each" and self.budgets().get(ENCODER, Budget()).tokens is None:
            raise UsageError(
                f"share {self.share} needs a number of tokens for the whole prompt",
                mend="give keep_tokens, or leave share out",
            )

    def _require_sampling(self) -> None:
        _require("max_new_tokens", self.max_new_tokens, _is_whole(self.max_new_tokens, 1), "1 or more")
        _require("temperature", self.temperature, _is_number(self.temperature, 0), "0 or more")
        if self.top_k is not None:
            _require("top_k", self.top_k, _is_whole(self.top_k, 1), "1 or more")
        if self.top_p is not None:
            good = _is_number(self.top_p) and 0 < self.top_p <= 1
            _require("top_p", self.top_p, good, "0 < top_p <= 1")
        _require("seed", self.seed, _is_whole(self.seed, 0), "0 or more")
        if self.pruning_seed is not None:
            _require("pruning_seed", self.pruning_seed, _is_whole(self.pruning_seed, 0), "0 or more")
        unused = [name for name in _SAMPLING if getattr(self, name) is not None]
        if self.temperature == 0 and unused:
            raise UsageError(
                f"{' and '.join(unused)} would have no effect: temperature 0 takes the best token every time",
                mend=f"set a temperature such as 0.7, or leave {' and '.join(unused)} out",
            )

    def budgets(self) -> dict[str, Budget]:
        """All budgets that the caller gave, by site."""
        encoder = Budget(self.keep_ratio, self.keep_tokens)
        given = {ENCODER: encoder, **self.keep}
        return {site: budget for site, budget in given.items() if budget.given}


def _require(name: str, value: object, good: bool, wanted: str) -> None:
    if not good:
        if isinstance(value, int) and value > _LARGEST:
            wanted += " and below 2**63"
        raise UsageError(f"{name} is out of range", found=repr(value)[:200], wanted=wanted)


def _is_number(value: object, low: float = -sys.float_info.max) -> bool:
    return isinstance(value, (int, float)) and low <= value <= sys.float_info.max


def _is_whole(value: object, low: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= _LARGEST
