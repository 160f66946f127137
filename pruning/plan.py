"""Which cuts a bundle makes: at most one after the encoder, any number in the decoder. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from foveate.pruning.registry import MethodInfo, describe_method
from foveate.pruning.spec import Site
from foveate.runtime.errors import UsageError

DEFAULT_PLAN = ("cls-knee", "text-relevance@2")
UNPRUNED = "none"


@dataclass(frozen=True)
class CutSpec:
    """One cut.

    Attributes:
        site: encoder or decoder.
        layer: decoder layers that have run when the cut is made (2 = after layers 0 and 1); None at the
        encoder.
        method: the method's name.
        params: its options, all of them.
    """

    site: Site
    layer: int | None
    method: str
    params: dict[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``encoder`` or ``decoder@2``: how budgets address this cut."""
        return str(self.site) if self.layer is None else f"{self.site}@{self.layer}"

    def __str__(self) -> str:
        return self.method if self.layer is None else f"{self.method}@{self.layer}"


@dataclass(frozen=True)
class PruningPlan:
    """The cuts in the order in which a token meets them.

    Raises: UsageError: two encoder cuts, two cuts after one layer, an order that is not ascending, a layer
        below 1.
    """

    cuts: tuple[CutSpec, ...] = ()

    def __post_init__(self) -> None:
        places = [_place(cut) for cut in self.cuts]
        for cut in self.cuts:
            if (cut.layer is None) != (cut.site is not Site.DECODER) or (
                cut.layer is not None and cut.layer < 1
            ):
                raise _plan_error(f"Cut '{cut}' has no valid place.", self, "a decoder layer of at least 1")
        if len(set(places)) != len(places):
            raise _plan_error("Two pruning methods stand at the same place.", self, "one method per place")
        if places != sorted(places):
            raise _plan_error("Cuts are out of order.", self, "the encoder first, then rising decoder layers")

    @property
    def encoder(self) -> CutSpec | None:
        """The cut after the vision encoder."""
        return next((cut for cut in self.cuts if cut.site is Site.ENCODER), None)

    @property
    def layers(self) -> CutSpec | None:
        """What is left out of the decoder's layers, where a method skips computation."""
        return next((cut for cut in self.cuts if cut.site is Site.LAYERS), None)

    @property
    def decoder(self) -> tuple[CutSpec, ...]:
        """The cuts inside the decoder, by rising layer."""
        return tuple(cut for cut in self.cuts if cut.site is Site.DECODER)

    def to_list(self) -> list[dict[str, object]]:
        """For the manifest: ``[{site, layer, method, params}]``."""
        return [
            {"site": str(cut.site), "layer": cut.layer, "method": cut.method, "params": dict(cut.params)}
            for cut in self.cuts
        ]

    @classmethod
    def from_list(cls, cuts: Iterable[Mapping[str, object]]) -> PruningPlan:
        """The plan in a manifest. Methods are not looked up: a bundle runs without the package that made it.

        Raises:
            UsageError: an entry that is not ``{site, layer, method, params}``.
        """
        return cls(tuple(_cut_from_dict(cut) for cut in cuts))

    def __str__(self) -> str:
        return " + ".join(map(str, self.cuts)) or UNPRUNED


def parse_plan(words: Iterable[str], num_layers: int | None = None) -> PruningPlan:
    """The plan that ``words`` describe: ``method[@layer[+layer...]][:option=value,...]`` each.

    No words give the default plan; the single word ``none`` gives the unpruned model. A method with a
    schedule of its own may be named without a layer: its cuts are laid out over the decoder's
    ``num_layers``. Options are checked here and completed with their defaults, without importing torch;
    options that contradict each other are found when the method is made. Cuts may come in any order.

    Raises:
        UsageError: bad syntax, an unknown method or option, a value out of range, clashing cuts, or a
            schedule without ``num_layers``.
    """
    given = tuple(words) or DEFAULT_PLAN
    if given == (UNPRUNED,):
        return PruningPlan()
    if UNPRUNED in given:
        raise UsageError(
            "'none' means no pruning and cannot be combined with methods.",
            found=" ".join(given),
            wanted="either 'none' or methods",
            mend="Drop one of them.",
        )
    cuts = [cut for word in given for cut in _parse_cuts(word, num_layers)]
    return PruningPlan(tuple(sorted(cuts, key=_place)))


def _place(cut: CutSpec) -> tuple[int, int]:
    """By this the cuts are in the order in which a token meets them."""
    return (Site.ENCODER, Site.LAYERS, Site.DECODER).index(cut.site), cut.layer or 0


def _parse_cuts(word: str, num_layers: int | None) -> list[CutSpec]:
    head, _, tail = word.partition(":")
    name, at, place = head.partition("@")
    info, params = describe_method(name), _parse_options(word, tail)
    if at and place != Site.ENCODER.value:
        layers = [_parse_layer(word, each) for each in place.split("+")]
        return [CutSpec(Site.DECODER, layer, name, info.check(Site.DECODER, params)) for layer in layers]
    if at or Site.ENCODER in info.sites:
        return [CutSpec(Site.ENCODER, None, name, info.check(Site.ENCODER, params))]
    if Site.LAYERS in info.sites:
        return [CutSpec(Site.LAYERS, None, name, info.check(Site.LAYERS, params))]
    if not info.schedule:
        raise UsageError(
            f"Method '{name}' prunes inside the decoder and needs a layer.",
            found=word,
            wanted=f"{name}@LAYER",
            mend=f"Write {name}@2 to cut after the first two decoder layers.",
        )
    return _scheduled(word, info, params, num_layers)


def _scheduled(
    word: str, info: MethodInfo, params: dict[str, object], num_layers: int | None
) -> list[CutSpec]:
    """The cuts of a method's own schedule; shares of the depth become layers, the deeper one of two wins."""
    if num_layers is None:
        raise UsageError(
            f"Where '{word}' cuts depends on the model's depth.",
            found="no depth",
            wanted=f"{info.name}@LAYER+LAYER+...",
            mend="Name the layers, or give the number of decoder layers.",
        )
    cuts: dict[int, CutSpec] = {}
    for place, own in info.schedule:
        clash = sorted(set(own) & set(params))
        if clash:
            raise UsageError(
                f"'{word}' sets '{clash[0]}', which the method's own schedule sets at each of its cuts.",
                found=f"{clash[0]}={params[clash[0]]}",
                wanted=f"{info.name} alone, or {info.name}@LAYER:{clash[0]}={params[clash[0]]}",
                mend="Name the layers, one word for each cut.",
            )
        wanted = place if isinstance(place, int) else round(place * num_layers)
        layer = min(max(wanted, 1), max(num_layers - 1, 1))
        cuts[layer] = CutSpec(Site.DECODER, layer, info.name, info.check(Site.DECODER, {**own, **params}))
    return list(cuts.values())


def _parse_layer(word: str, place: str) -> int:
    if not place.isdecimal() or int(place) < 1:
        raise UsageError(
            f"'{word}' does not name a decoder layer after '@'.",
            found=place or "nothing",
            wanted="a whole number of at least 1 (layers that run before the cut)",
            mend="Write for example text-relevance@2, or fastv@2+4 for two cuts.",
        )
    return int(place)


def _parse_options(word: str, tail: str) -> dict[str, object]:
    params: dict[str, object] = {}
    for part in filter(None, tail.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name or not value or name in params:
            raise UsageError(
                f"'{word}' has a malformed or repeated option.",
                found=part,
                wanted="option=value, separated by commas, each option once",
                mend="Write for example text-relevance@2:ratio=0.5,profile=safe.",
            )
        params[name] = value
    return params


def _cut_from_dict(cut: Mapping[str, object]) -> CutSpec:
    site, layer, method = cut.get("site"), cut.get("layer"), cut.get("method")
    params = cut.get("params")
    shaped = isinstance(method, str) and isinstance(params, Mapping) and _is_layer(layer)
    if set(cut) != {"site", "layer", "method", "params"} or not shaped or site not in tuple(map(str, Site)):
        raise UsageError(
            "A pruning plan has an entry that is not a cut.",
            found=repr(dict(cut)),
            wanted="site (encoder or decoder), layer, method, params",
            mend="Export the bundle again.",
        )
    assert isinstance(layer, (int, type(None)))
    assert isinstance(params, Mapping)
    return CutSpec(Site(str(site)), layer, str(method), dict(params))


def _is_layer(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _plan_error(message: str, plan: PruningPlan, wanted: str) -> UsageError:
    return UsageError(
        message,
        found=", ".join(map(str, plan.cuts)),
        wanted=wanted,
        mend="Give each place its own cut, for example: cls-knee text-relevance@2.",
    )
