"""Everything that decides what the demo checkpoint becomes: sizes, schedules, seeds."""

from __future__ import annotations

from dataclasses import dataclass, field

IMAGE_MEAN = (0.42, 0.42, 0.42)
IMAGE_STD = (0.25, 0.25, 0.25)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the LLaVA. The grid (8 x 8 patches of 16 pixels) is fixed by `scenes`."""

    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    vision_mlp: int = 512
    text_width: int = 128
    text_layers: int = 6
    text_heads: int = 4
    text_kv_heads: int = 2
    text_mlp: int = 352
    max_positions: int = 1024
    vocabulary: int = 400


@dataclass(frozen=True)
class VisionStage:
    """The vision encoder learns from per-patch labels and from which objects its CLS token can name."""

    steps: int = 1300
    batch: int = 32
    rate: float = 2.5e-3
    warmup: int = 100
    weight_decay: float = 0.02
    crowded: float = 0.7  # the first fraction of the steps sees crowded scenes
    background_weight: float = 0.2
    seed: int = 11


@dataclass(frozen=True)
class CaptionStage:
    """Projector and decoder learn to caption, which teaches them to look single objects up."""

    steps: int = 800
    schedule: int = 4800  # the learning rate falls as if it went on for so long
    easy: int = 288  # so many steps with captions about single objects, then with relations too
    batch: int = 12
    variants: int = 5  # captions per scene
    rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.02
    projector_spread: float = 0.06  # standard deviation of the projector's first weights
    subset_keep: tuple[float, float] = (0.15, 0.9)
    seed: int = 12


@dataclass(frozen=True)
class QuestionStage:
    """They learn to answer, on all visual tokens and then also on uniformly random subsets.

    A throw-away read-out after layer `middle` has to name the object that the first look-up is about.
    """

    steps: int = 3400
    batch: int = 12
    questions: int = 12
    rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.02
    middle: int = 3
    name_weight: float = 0.15  # of naming kind and colour
    place_weight: float = 0.4  # of naming row and column
    # What batches see in turn: `all` tokens, all with positions `closed` up at random, random `subset`s, or
    # random subsets of a `crowd`.
    early: tuple[str, ...] = ("all", "closed")
    late: tuple[str, ...] = ("all", "subset")
    late_from: float = 0.6  # from this fraction of the steps on
    subset_keep: tuple[float, float] = (0.15, 0.9)
    seed: int = 13


SETTLE = QuestionStage(
    steps=480,
    rate=7e-4,
    warmup=20,
    early=("closed", "subset", "closed", "all"),
    late=("closed", "subset", "closed", "all"),
    subset_keep=(0.12, 0.6),
    seed=14,
)


# Parts of crowded scenes: what pruning leaves of a scene looks like that (see `crowds`).
CROWDS = QuestionStage(
    steps=700,
    rate=1e-3,
    warmup=20,
    early=("all", "crowd", "crowd", "closed", "crowd"),
    late=("all", "crowd", "crowd", "closed", "crowd"),
    subset_keep=(0.25, 0.65),
    seed=15,
)


@dataclass(frozen=True)
class Recipe:
    """The whole training run."""

    shape: ModelShape = field(default_factory=ModelShape)
    vision: VisionStage = field(default_factory=VisionStage)
    captions: CaptionStage = field(default_factory=CaptionStage)
    questions: QuestionStage = field(default_factory=QuestionStage)
    settle: QuestionStage = SETTLE
    crowds: QuestionStage = CROWDS
    threads: int = 1
    save_every: int = 200
