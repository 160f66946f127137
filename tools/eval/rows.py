"""Which rows the table has: every registered method, known compositions, or a user's list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate.pruning.plan import UNPRUNED, PruningPlan, parse_plan
from foveate.pruning.registry import describe_method, list_methods, method_names
from foveate.pruning.spec import Site
from foveate.runtime.errors import UsageError
from foveate.tools.demo import CHECKPOINT, METHODS

ALL = "all"
DEFAULT = "default"  # the two cuts of the built-in model
# FastV's layer: where a method of the decoder cuts that says nothing about it.
LAYER = 2
# Methods whose rows are others than the plain ones. The demo model was trained on whole questions, so its
# question's words stay.
PLANS = {
    "text-relevance": (("text-relevance@2:profile=safe",),),
    "prumerge": (("prumerge",), ("prumerge:plus=true",)),
}
# Schedules that were searched for the built-in model.
SCHEDULES = CHECKPOINT.parent / "schedules"
# Methods that belong together; a row stands for them where all of them are registered.
YOPO = ("yopo:ffn=2,heads=3+3+0+1+3+1,window=5", "exit@4")  # all four parts; heads as measured on the demo
COMPOSED = (("aim-merge", "aim-rank"), YOPO, ("random", "random@2"))
TITLES = {
    METHODS: "Foveate's default",
    YOPO: "YOPO, all parts",
    ("random", "random@2"): "random, both sites",
    ("prumerge",): "LLaVA-PruMerge",
    ("prumerge:plus=true",): "PruMerge+",
}

_OPTION = re.compile(r"[a-z_]+=")
_KINDS = ("baseline", "training-free", "searched", "trained")


@dataclass(frozen=True)
class Row:
    """One plan of the table.

    Attributes:
        words: the plan, as `--method` takes it.
        title: the name of the paper's method.
        kind: of its methods, the one that asks for most: baseline, training-free, searched, trained.
        site: where it cuts: "encoder", "decoder", "both" or "layers"; "none" for the unpruned model.
        name: what the table calls it: the words in one line, or a schedule's file.
    """

    words: tuple[str, ...]
    title: str
    kind: str
    site: str
    name: str

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of its methods, each once."""
        return tuple(dict.fromkeys(_method(word) for word in self.words if word != UNPRUNED))


def make_row(text: str, num_layers: int) -> Row:
    """The row of a plan; a word that ends in `.toml` is a file that `foveate search` wrote.

    Raises:
        UsageError: the words are no plan for so many decoder layers.
    """
    words = METHODS if text == DEFAULT else tuple(word for each in text.split() for word in _read(each))
    plan = parse_plan(words, num_layers)
    beyond = [str(cut) for cut in plan.decoder if (cut.layer or 0) >= num_layers]
    if beyond:
        raise UsageError(
            f"the plan '{text}' cuts behind the last layer",
            found=", ".join(beyond),
            wanted=f"layer 1 to {num_layers - 1}, in a decoder of {num_layers} layers",
        )
    found = [describe_method(cut.method) for cut in plan.cuts]
    names = dict.fromkeys(info.title or info.name for info in found)
    return Row(
        words=words,
        title=TITLES.get(words) or " + ".join(names) or "all tokens",
        kind=max((info.kind for info in found), key=_KINDS.index, default="baseline"),
        site=_site(plan),
        name=" ".join(Path(each).name for each in text.split()),
    )


def unpruned() -> Row:
    """The row that everything is compared with."""
    return make_row(UNPRUNED, 1)


def all_rows(num_layers: int) -> tuple[Row, ...]:
    """A row for every registered method at each of its sites, and the compositions."""
    known = method_names()
    plans = [words for info in list_methods() for words in _plans(info.name)]
    plans += [words for words in COMPOSED if all(_method(word) in known for word in words)]
    texts = [DEFAULT, *(" ".join(words) for words in plans)] + [
        str(path) for path in sorted(SCHEDULES.glob("demo-*.toml"))
    ]
    rows = [make_row(text, num_layers) for text in texts]
    return tuple(sorted(rows, key=lambda row: (_KINDS.index(row.kind), row.name)))


def parse_rows(texts: Sequence[str], num_layers: int) -> tuple[Row, ...]:
    """Rows of a command line: plans separated by commas, the words of one plan by blanks; `all` is every one,
    `default` the built-in model's own two cuts.

    >>> [row.words for row in parse_rows(["cls-knee:min_keep=4,knee=iqr,random random@2"], 6)]
    [('cls-knee:min_keep=4,knee=iqr',), ('random', 'random@2')]

    Raises:
        UsageError: no plan, or one that does not fit the model.
    """
    rows: list[Row] = []
    for text in (part for each in texts for part in _split(each)):
        rows += all_rows(num_layers) if text == ALL else [make_row(text, num_layers)]
    # `none` is always there: everything is compared with it.
    rows = [row for row in dict.fromkeys(rows) if row.words != (UNPRUNED,)]
    if not rows:
        raise UsageError(
            "no methods to compare", wanted=f"{ALL}, or plans separated by commas", mend="--methods all"
        )
    return tuple(rows)


def _read(word: str) -> list[str]:
    if not word.endswith(".toml"):
        return [word]
    from foveate.pruning.schedule import read_schedule

    return read_schedule(Path(word))


def _split(text: str) -> list[str]:
    """At commas, save those between the options of a method: what follows them begins with `option=`."""
    parts: list[str] = []
    for part in text.split(","):
        if parts and _OPTION.match(part.strip()):
            parts[-1] += f",{part.strip()}"
        elif part.strip():
            parts.append(part.strip())
    return parts


def _plans(name: str) -> list[tuple[str, ...]]:
    """A method alone, at each of its sites."""
    info = describe_method(name)
    if name in PLANS:
        return list(PLANS[name])
    plans: list[tuple[str, ...]] = []
    if Site.ENCODER in info.sites or Site.LAYERS in info.sites:
        plans.append((name,))
    if Site.DECODER in info.sites:
        plans.append((name,) if info.schedule and not plans else (f"{name}@{LAYER}",))
    return plans


def _method(word: str) -> str:
    return re.split("[@:]", word)[0]


def _site(plan: PruningPlan) -> str:
    sites = dict.fromkeys(str(cut.site) for cut in plan.cuts)
    return "both" if len(sites) > 1 else next(iter(sites), "none")
