"""Tiny LLaVA-1.5 checkpoints: CLIP on a 5 x 5 grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tiny.rows import BOTH, Row
from tiny.shared import CHAT_TEMPLATE, IMAGE_TOKEN, TEXT_CONFIGS, draw_weights, make_tokenizer
from tiny.shared import text_options as sizes

IMAGE_SIZE, PATCH_SIZE = 70, 14


def make(
    path: Path,
    *,
    text: str = "llama",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    vision_options: dict[str, Any] | None = None,
    text_options: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Writes a LLaVA checkpoint folder (weights, tokenizer, image processor) and returns it."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    vision = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    }
    language = sizes(tokenizer)
    if text == "qwen2":
        language.pop("head_dim")  # Qwen2 has none: the width is divided by the heads
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**(vision | (vision_options or {}))),
        text_config=TEXT_CONFIGS[text](**(language | (text_options or {}))),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        **options,
    )
    model = LlavaForConditionalGeneration(config).eval()
    draw_weights(model)
    model.to(dtype).save_pretrained(path, max_shard_size=shard_size)
    save_processor(path, tokenizer, config.vision_feature_select_strategy, config.vision_config.image_size)
    return path


def save_processor(
    path: Path, tokenizer: PreTrainedTokenizerFast, strategy: str, side: int = IMAGE_SIZE
) -> None:
    """Writes the processor of a LLaVA whose pictures are 5 x 5 patches, or `side` pixels square."""
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(path)


def model(text: str = "llama", layers: int = 3, **options: Any) -> dict[str, Any]:
    """Options of `make`: `vision_*` and `text_*` go to the two halves, the rest to LLaVA."""
    halves: dict[str, dict[str, Any]] = {
        "vision_": {"num_hidden_layers": 3},
        "text_": {"num_hidden_layers": layers},
    }
    own: dict[str, Any] = {"text": text}
    for name, value in options.items():
        half = next(
            (prefix for prefix in halves if name.startswith(prefix) and name != "vision_feature_layer"), ""
        )
        if half and not name.startswith("vision_feature"):
            halves[half][name.removeprefix(half)] = value
        else:
            own[name] = value
    return own | {"vision_options": halves["vision_"], "text_options": halves["text_"]}


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    """A RoPE section of a text configuration."""
    return {"rope_type": kind, "rope_theta": 5000.0, **parameters}


FEW = ("two images", "text only")

DEFAULT = Row(
    "default: llama, grouped queries, the main method at both sites",
    ("cls-knee:min_keep=3", "text-relevance@2"),
    BOTH,
    checkpoint={},
    cases=(),
)

ROWS = (
    DEFAULT,
    Row(
        "mistral, tied head, bfloat16 shards, linear RoPE, original positions, safe profile",
        ("cls-knee:score=cls_mean,knee=cumulative,min_keep=2", "text-relevance@1:profile=safe,ratio=0.4"),
        positions="original",
        checkpoint=model(
            "mistral",
            dtype=torch.bfloat16,
            shard_size="200KB",
            seed=1,
            tie_word_embeddings=True,
            text_rope_parameters=rope("linear", factor=2.0),
        ),
        slow=True,
    ),
    Row(
        "qwen2, projection biases, YaRN, two decoder cuts, knee in the decoder",
        (
            "cls-knee:score=cosine,knee=iqr,min_keep=2,max_keep=20",
            "text-relevance@1:ratio=0.6,profile=faithful",
            "text-relevance@2:rule=knee,knee=chord,profile=faithful",
        ),
        BOTH,
        checkpoint=model(
            "qwen2",
            seed=2,
            text_rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=128),
        ),
        slow=True,
    ),
    Row(
        "random at both sites, llama3 RoPE, float16 file",
        ("random:ratio=0.4,seed=5", "random@1:ratio=0.5"),
        ("segmented",),
        checkpoint=model(
            dtype=torch.float16,
            seed=3,
            text_rope_parameters=rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
        slow=True,
    ),
    Row(
        "several feature layers, CLS among the features, dynamic RoPE, scores without RoPE",
        ("cls-knee:knee=recursive,min_keep=2,round_to=4", "text-relevance@2:query=last,rope_free=true"),
        checkpoint=model(
            seed=4,
            vision_feature_layer=[-3, -2],
            vision_feature_select_strategy="full",
            text_rope_parameters=rope("dynamic", factor=2.0),
        ),
        slow=True,
    ),
    Row(
        "last feature layer, every row asks, one head per group, biases",
        ("cls-knee:knee=derivative,smooth=5,skip=2,min_keep=2,knee_scale=1.5", "text-relevance@1:query=all"),
        ("segmented",),
        checkpoint=model(
            seed=5,
            vision_feature_layer=-1,
            text_num_key_value_heads=6,
            text_attention_bias=True,
            text_mlp_bias=True,
        ),
        slow=True,
    ),
    Row(
        "unpruned, one key-value head, other activations",
        ("none",),
        checkpoint=model(
            seed=6,
            projector_hidden_act="gelu_pytorch_tanh",
            text_num_key_value_heads=1,
            vision_hidden_act="gelu",
        ),
    ),
    # Each published method once, as many in one model as have places there; then the trained ones.
    Row(
        "VTC-CLS, FastV, static exit",
        ("vtc-cls", "fastv@1", "exit@2"),
        checkpoint=model(),
        cases=FEW,
        slow=True,
    ),
    Row(
        "PruMerge+, PyramidDrop on its own schedule",
        ("prumerge:plus=true,neighbours=4", "pyramiddrop"),
        ("segmented",),
        checkpoint=model(layers=4),
        cases=FEW,
        slow=True,
    ),
    Row(
        "VisionZip, searched layers",
        ("visionzip", "layer-rank@1:share=0.5", "layer-rank@2:share=0.2"),
        checkpoint=model(),
        cases=FEW,
        slow=True,
    ),
    Row(
        "DivPrune, AIM, DART", ("divprune", "aim-rank@1", "dart@2"), checkpoint=model(), cases=FEW, slow=True
    ),
    Row(
        "CDPruner, SparseVLM with recycling",
        ("cdpruner", "sparsevlm@1+2"),
        BOTH,
        checkpoint=model(),
        cases=FEW,
        slow=True,
    ),
    Row("AIM merging", ("aim-merge", "uniform@1"), checkpoint=model(), cases=FEW, slow=True),
    Row(
        "downsampling, YOPO",
        ("downsample", "yopo:ffn=2,heads=3+1+2,window=3", "text-relevance@2"),
        checkpoint=model(),
        cases=FEW,
        slow=True,
    ),
    Row("uniform grid", ("uniform",), checkpoint=model(), cases=FEW, slow=True),
    Row("VisToG, DyVTE", ("vistog", "dyvte@1+2"), BOTH, checkpoint=model(), cases=FEW),
    Row(
        "QueCC",
        ("quecc:stride=3",),
        ("segmented",),
        checkpoint=model(vision_image_size=84, vision_num_hidden_layers=4),
        cases=FEW,
    ),
    Row("SeTok", ("setok",), checkpoint=model(), cases=FEW),
)
