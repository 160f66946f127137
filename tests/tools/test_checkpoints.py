"""Random checkpoints of the benchmark, at toy sizes: what reads them, and that they answer at any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from foveate.runtime.errors import CheckpointError, UsageError
from foveate.tools.bench import checkpoints, random_weights
from foveate.tools.bench.checkpoints import BASE_VOCABULARY, CHECKPOINTS, Checkpoint, write_checkpoint
from foveate.tools.bench.language_model import write_language_model

LIBRARY: Any = transformers
SMALL_TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def small(name: str) -> Checkpoint:
    """The checkpoint `name`, as narrow as can be; vocabulary and pictures as they are."""
    full = CHECKPOINTS[name]
    text = {**full.config["text_config"], **SMALL_TEXT, "num_key_value_heads": 2}
    vision = {**full.config["vision_config"], **SMALL_VISION}
    config = {**full.config, "text_config": text, "vision_config": vision}
    return Checkpoint(config, full.specials, full.processor, full.images)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`llava-1b`, narrow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "CHECKPOINTS", {"llava-1b": small("llava-1b")})
        patch.setattr(random_weights, "SHARD_BYTES", 1_500_000)
        return write_checkpoint("llava-1b", tmp_path_factory.mktemp("checkpoints") / "llava")


def test_transformers_reads_every_weight_and_the_processor(llava: Path) -> None:
    assert len(list(llava.glob("*.safetensors"))) > 1
    model, info = LIBRARY.AutoModelForImageTextToText.from_pretrained(llava, output_loading_info=True)
    assert not any(info.values())
    assert model.config.vision_config.image_size == 336
    processor = LIBRARY.AutoProcessor.from_pretrained(llava)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    inputs = processor(images=[np.zeros((40, 60, 3), np.uint8)], text=text, return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert inputs["pixel_values"].shape == (1, 3, 336, 336)
    assert ids.count(model.config.image_token_id) == 576
    # One token a word: the beginning, USER, colon and space, a line's end, three words and their marks, ...
    assert len(ids) - 576 < 16


def test_no_answer_ends_by_itself_or_has_a_token_without_text(llava: Path) -> None:
    model = LIBRARY.AutoModelForImageTextToText.from_pretrained(llava).float()
    tokenizer = LIBRARY.AutoTokenizer.from_pretrained(llava)
    quiet = model.lm_head.weight.abs().amax(1) < 0.01
    assert quiet.nonzero().flatten().tolist() == [0, 1, *range(BASE_VOCABULARY, 32064)]
    assert tokenizer.bos_token_id == 0
    assert tokenizer.eos_token_id == 1
    made = model.generate(input_ids=torch.tensor([[0, 500, 600]]), max_new_tokens=24, do_sample=False)
    assert made.shape[1] == 3 + 24
    assert all(tokenizer.decode([token]) for token in made[0, 3:].tolist())


def test_the_seed_decides_the_weights(llava: Path) -> None:
    one = random_weights.Tensor((5, 4), table=False, head=False)
    first = random_weights.draw("a.weight", one, 2, 0)
    assert torch.equal(first, random_weights.draw("a.weight", one, 2, 0))
    assert not torch.equal(first, random_weights.draw("b.weight", one, 2, 0))
    assert not torch.equal(first, random_weights.draw("a.weight", one, 2, 1))


def test_the_language_model_alone_computes_the_same(llava: Path, tmp_path: Path) -> None:
    folder = write_language_model(llava, tmp_path / "text")
    alone, info = LIBRARY.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    whole = LIBRARY.AutoModelForImageTextToText.from_pretrained(llava)
    ids = torch.tensor([[0, 500, 600, 700]])
    with torch.inference_mode():
        torch.testing.assert_close(alone(ids).logits, whole(ids).logits, rtol=0, atol=0)
    with pytest.raises(UsageError, match="there already"):
        write_language_model(llava, tmp_path / "text")
    with pytest.raises(CheckpointError, match="text_config"):
        write_language_model(folder, tmp_path / "again")


@pytest.mark.slow
def test_the_shape_of_onevision_reads_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "siglip-qwen2-0.5b"
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", {name: small(name)})
    folder = write_checkpoint(name, tmp_path / "onevision")
    _, info = LIBRARY.AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    (shard,) = folder.glob("*.safetensors")
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in load_file(shard)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there already"):
        write_checkpoint("llava-1b", tmp_path)
    with pytest.raises(UsageError, match="siglip-qwen2"):
        write_checkpoint("llava-2b", tmp_path / "new")
