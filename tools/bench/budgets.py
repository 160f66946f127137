"""Budgets of the cases: from words of the command line to options of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.runtime.errors import UsageError
from foveate.runtime.manifest import Manifest
from foveate.runtime.options import Budget, GenerateOptions

ALL, OWN = "all", "own"


@dataclass(frozen=True)
class Wish:
    """One `--budget`: everything, the methods' own rules, one amount for every site, or one for each.

    Attributes:
        word: as it was written.
        every: the amount for all sites; None where `sites` says it, and for the own rules.
        sites: amounts by site.
    """

    word: str
    every: Budget | None = None
    sites: tuple[tuple[str, Budget], ...] = ()

    @classmethod
    def parse(cls, word: str) -> Wish:
        """`all`, `own`, `0.5`, `64`, or `encoder=0.22,decoder@2=0.5`.

        Raises:
            UsageError: it is none of these, or a site stands there twice.
        """
        if word in (ALL, OWN):
            return cls(word, Budget(ratio=1.0) if word == ALL else None)
        if "=" not in word:
            return cls(word, _amount(word, word))
        sites: dict[str, Budget] = {}
        for part in word.split(","):
            site, _, amount = part.strip().partition("=")
            if not site or site in sites:
                raise _malformed(word)
            sites[site] = _amount(amount, word)
        return cls(word, None, tuple(sites.items()))

    def options(self, manifest: Manifest, new_tokens: int) -> GenerateOptions:
        """The request of this case; sites that are not named go by their own rule.

        Raises:
            UsageError: the bundle does not prune at a site.
        """
        known = [cut.name for cut in manifest.pruning if cut.site != "layers"]
        for site, _ in self.sites:
            if site not in known:
                raise UsageError(
                    f"the budget '{self.word}' names the site {site}, where the bundle does not prune",
                    wanted=", ".join(known) or "no budget: the bundle is unpruned",
                    mend="name one of these, or leave the bundle out",
                )
        keep = dict(self.sites) if self.every is None else dict.fromkeys(known, self.every)
        return GenerateOptions(max_new_tokens=new_tokens, keep=keep, allow_unpruned=True)


def parse(words: Sequence[str]) -> tuple[Wish, ...]:
    """The wishes, each once. Raises `UsageError`."""
    if len(set(words)) < len(words):
        raise UsageError("a budget is given twice", found=" ".join(words), mend="name each once")
    return tuple(Wish.parse(word) for word in words)


def wishes_for(manifest: Manifest, wishes: Sequence[Wish]) -> tuple[Wish, ...]:
    """Those that mean something for a bundle: an unpruned one answers with all tokens, whatever is asked."""
    return tuple(wishes) if manifest.pruning else (Wish.parse(ALL),)


def _amount(text: str, word: str) -> Budget:
    try:
        return Budget.parse(text)
    except UsageError as error:
        raise _malformed(word, error.found) from error


def _malformed(word: str, found: str = "") -> UsageError:
    return UsageError(
        f"the budget '{word}' is malformed",
        found=found,
        wanted="all, own, a share such as 0.5, a number such as 64, or encoder=0.22,decoder@2=0.5",
    )
