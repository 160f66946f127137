"""The model that methods are trained on, with its scenes: frozen, in eager PyTorch, one thread."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.export.checkpoint import Checkpoint
from foveate.pruning.budget import Budget
from foveate.pruning.evidence import EncoderEvidence, EncoderShape, ModelShape
from foveate.runtime.errors import UsageError
from foveate.tools.demo_model.model import pixels
from foveate.tools.demo_model.packed import PackedQuestions, pack
from foveate.tools.demo_model.scenes import (
    CELL,
    GRID,
    SIZE,
    TEST_QUOTA,
    TRAIN_QUOTA,
    Question,
    Scene,
    make_scene,
)

QUESTIONS = 8  # per validation scene, as `foveate eval` asks


class Bench:
    """The demo model, or another checkpoint of its make.

    Attributes:
        model: ``LlavaForConditionalGeneration`` in float32 without gradients.
        tokenizer: its tokenizer.
        source: the checkpoint's folder.
        weights_sha256: what an adapter for it names.
    """

    def __init__(self, source: Path) -> None:
        """Raises CheckpointError (not a checkpoint) or UsageError (not one that answers about the scenes)."""
        self.source = source
        checkpoint = Checkpoint(source)
        self.weights_sha256 = checkpoint.weights_sha256()
        _check_make(source, checkpoint.config)
        from transformers import AutoTokenizer, LlavaForConditionalGeneration

        torch.set_num_threads(1)
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
        self.model: Any = loaded.eval().requires_grad_(False)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(source)

    @cached_property
    def shape(self) -> ModelShape:
        """The sizes that methods are built for."""
        config = self.model.config
        vision, depth = config.vision_config, config.vision_config.num_hidden_layers
        return ModelShape(
            encoder=EncoderShape(
                num_layers=depth,
                feature_layer=self.feature_layer,
                global_layers=tuple(range(depth)),
                has_cls=True,
                has_taps=True,
                grid=(GRID, GRID),
            ),
            encoder_width=vision.hidden_size,
            feature_width=vision.hidden_size,
            hidden_size=config.text_config.hidden_size,
            num_layers=config.text_config.num_hidden_layers,
            candidates=GRID * GRID,
        )

    @property
    def feature_layer(self) -> int:
        """The hidden state that becomes the features, counted from 0."""
        asked: int = self.model.config.vision_feature_layer
        return asked if asked >= 0 else self.model.config.vision_config.num_hidden_layers + 1 + asked

    # Scenes

    def scenes(self, recipe_seed: int, step: int, batch: int) -> list[Scene]:
        """Training scenes of one step; no two steps of a seed share one."""
        first = (100 + recipe_seed) * 10**7 + step * batch  # none of the demo model's own
        return [make_scene(first + i, "train") for i in range(batch)]

    def held_out(self, number: int, split: str = "val") -> list[Scene]:
        """Scenes that nothing is trained on."""
        return [make_scene(seed, split) for seed in range(number)]

    def ask(self, scenes: Sequence[Scene], number: int, *, training: bool) -> list[tuple[Question, ...]]:
        """``number`` questions for each scene: as the model was trained (12 in balance), or examined (8)."""
        return [scene.ask(TRAIN_QUOTA if training else TEST_QUOTA, number) for scene in scenes]

    def pack(self, asked: Sequence[Sequence[Question]]) -> PackedQuestions:
        """Questions tokenised for ``packed.decode``, the same number for each scene."""
        return pack(self.tokenizer, asked)

    # What the frozen model says

    @torch.no_grad()
    def hidden_states(self, scenes: Sequence[Scene]) -> dict[int, Tensor]:
        """Hidden states of the encoder ``[b, 1 + n, w]`` by layer, 0 the embeddings, CLS first."""
        tower = self.model.model.vision_tower
        states = [tower.pre_layrnorm(tower.embeddings(pixels(scenes)))]
        for layer in tower.encoder.layers:
            states.append(layer(states[-1], None))
        return dict(enumerate(states))

    @torch.no_grad()
    def text_states(self, asked: Sequence[Question]) -> Tensor:
        """``[q, d]``: the language model's last hidden state, behind its norm, of BOS and the words alone.

        At the last word, as the runtime gives it to methods with ``needs_text``.
        """
        tokenizer, bos = self.tokenizer, [self.tokenizer.bos_token_id]
        ids = [bos + tokenizer(each.text, add_special_tokens=False).input_ids for each in asked]
        width = max(map(len, ids))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])  # right padding: causal anyway
        hidden: Tensor = self.model.model.language_model(input_ids=padded).last_hidden_state  # q t d
        return hidden[torch.arange(len(ids)), torch.tensor([len(row) - 1 for row in ids])]

    def evidence(
        self, states: dict[int, Tensor], layers: Sequence[int] = (), text: Tensor | None = None
    ) -> EncoderEvidence:
        """What a method at the encoder sees, from ``hidden_states``; ``layers`` it asked for."""
        last = states[self.feature_layer]
        b, n = last.shape[0], last.shape[1] - 1
        return EncoderEvidence(
            features=last[:, 1:],
            patches=last[:, 1:],
            cls=last[:, 0],
            query={},
            key={},
            num_heads=self.model.config.vision_config.num_attention_heads,
            pool=lambda score: score,
            tile=torch.zeros((b, n), dtype=torch.int64),
            hidden={layer: states[layer] for layer in layers},
            text=text,
        )


def no_budget(batch: int) -> Budget:
    """A request that leaves the count to the method."""
    return Budget(torch.zeros(batch), torch.zeros(batch, dtype=torch.int64))


def _check_make(source: Path, config: Any) -> None:
    """Raises UsageError unless the checkpoint is of the demo model's make."""
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    found = (
        *(config.get("model_type"), text.get("model_type")),
        *(vision.get("image_size"), vision.get("patch_size")),
    )
    if found != ("llava", "llama", SIZE, CELL):
        raise UsageError(
            f"{source} cannot be trained on the demo's scenes",
            found="{}, a {} decoder, pictures of {}, patches of {} pixels".format(*found),
            wanted=f"llava, a llama decoder, pictures of {SIZE}, patches of {CELL}: the demo model's make",
            mend="use --model demo, or a checkpoint trained by python -m foveate.tools.demo_model",
        )
