"""Damaged, foreign and unusual checkpoint folders."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveate.export import export_model
from foveate.export.blocks.text_models import tied_weights
from foveate.export.checkpoint import Checkpoint
from foveate.export.families import find_family
from foveate.export.families.llava import rename_weight
from foveate.export.pipeline import computed_weights, plan_stages
from foveate.export.targets import find_target
from foveate.export.trace import read_parameters
from foveate.export.weights import match_weights, merge_parameters
from foveate.pruning.plan import parse_plan
from foveate.runtime.errors import CheckpointError, FoveateError

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_llava(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Everything that an export does before tracing, and then every tensor by its graph name."""
    source = Checkpoint(folder)
    _, family = find_family(source.config)
    config = family.Config.read(source.config)
    plan = parse_plan(["cls-knee", "text-relevance@2"])
    stages = plan_stages(family, config, plan, find_target("onnxruntime"))
    parameters = merge_parameters(read_parameters(stage) for stage in stages["fused"])
    tied, constants = tied_weights(config.text), computed_weights(family, config)
    loaders = match_weights(parameters, source, family, config, tied, constants)
    return {name: load() for name, load in loaders.items()}


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def assert_same_weights(ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert ours.keys() == wanted.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, wanted[name]), name


# --- the same weights in other clothes ---


def current_names(name: str) -> str:
    name = re.sub(r"^language_model\.lm_head", "lm_head", name)
    name = re.sub(r"^language_model\.model", "model.language_model", name)
    return re.sub(r"^(vision_tower|multi_modal_projector)", r"model.\1", name)


def legacy_names(name: str) -> str:
    return name.replace("vision_tower.", "vision_tower.vision_model.")


@pytest.mark.parametrize("renamed", [current_names, legacy_names], ids=["current", "legacy"])
def test_other_names_for_the_same_tensors(folder: Path, renamed: Callable[[str], str]) -> None:
    wanted = load_weights(folder)
    rewrite(folder, lambda tensors: {renamed(name): t for name, t in tensors.items()})
    assert any(renamed(name) != name for name in ("vision_tower.x", "language_model.model.x"))
    assert_same_weights(load_weights(folder), wanted)


def test_sharded_equals_single(pristine: Path, tmp_path: Path) -> None:
    sharded = tiny.make_llava(tmp_path / "sharded", shard_size="300KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    assert_same_weights(load_weights(sharded), load_weights(pristine))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_widened(folder: Path, dtype: torch.dtype) -> None:
    wanted = {name: t for name, t in load_weights(folder).items() if "rope" not in name}
    rewrite(folder, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    found = load_weights(folder)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor.to(dtype).float()), name


def test_tied_head_reads_the_embedding(folder: Path) -> None:
    tiny.edit_config(folder, tie_word_embeddings=True)
    rewrite(folder, lambda tensors: {n: t for n, t in tensors.items() if "lm_head" not in n})
    weights = load_weights(folder)
    assert torch.equal(weights["lm_head.weight"], weights["language_model.embed_tokens.weight"].t())


def test_stored_head_wins_over_a_tie(folder: Path) -> None:
    """transformers 5 does not tie two tensors that differ."""
    wanted = load_weights(folder)
    tiny.edit_config(folder, tie_word_embeddings=True)
    assert_same_weights(load_weights(folder), wanted)


def test_rotary_buffers_and_unread_layers_are_not_extra(folder: Path) -> None:
    buffers = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(12),
        "vision_tower.vision_model.embeddings.position_ids": torch.zeros(1, 26, dtype=torch.int64),
    }
    rewrite(folder, lambda tensors: tensors | buffers)
    load_weights(folder)


def test_rename_weight_agrees_on_all_spellings() -> None:
    spellings = ["language_model.model.norm.weight", "model.language_model.norm.weight"]
    assert {rename_weight(name) for name in spellings} == {"language_model.norm.weight"}
    assert (
        rename_weight("language_model.lm_head.weight") == rename_weight("lm_head.weight") == "lm_head.weight"
    )


# --- what is wrong is said precisely ---


def test_missing_tensor_is_named_with_its_shape(folder: Path) -> None:
    name = "language_model.model.layers.3.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(
        CheckpointError, match=r"1 tensor .* missing.*layers\.3\.mlp\.up_proj\.weight \[96, 96\]"
    ):
        load_weights(folder)


def test_misshapen_tensor_is_named_with_both_shapes(folder: Path) -> None:
    name = "multi_modal_projector.linear_1.weight"
    rewrite(folder, lambda tensors: tensors | {name: torch.zeros(95, 48)})
    with pytest.raises(CheckpointError, match=r"linear_1\.weight is \[95, 48\], wanted \[96, 48\]"):
        load_weights(folder)


def test_extra_tensor_is_named(folder: Path) -> None:
    rewrite(
        folder,
        lambda tensors: tensors | {"language_model.model.layers.0.self_attn.q_norm.weight": torch.ones(24)},
    )
    with pytest.raises(CheckpointError, match=r"not part of this model.*q_norm"):
        load_weights(folder)


def test_vision_layers_beyond_the_configured_ones_are_extra(folder: Path) -> None:
    """With one layer more than config.json says, feature layer -2 would be another layer."""
    rewrite(
        folder,
        lambda tensors: (
            tensors
            | {
                n.replace("layers.3", "layers.4"): t.clone()
                for n, t in tensors.items()
                if "encoder.layers.3" in n
            }
        ),
    )
    with pytest.raises(CheckpointError, match=r"not part of this model.*encoder\.layers\.4"):
        load_weights(folder)


def test_integer_weights_are_refused(folder: Path) -> None:
    name = "multi_modal_projector.linear_1.weight"
    rewrite(folder, lambda tensors: tensors | {name: torch.zeros(96, 48, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match=r"linear_1\.weight.*I8.*unquantised"):
        load_weights(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_truncated_file(folder: Path, keep: int) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        Checkpoint(folder)


def test_missing_shard(tmp_path: Path) -> None:
    folder = tiny.make_llava(tmp_path / "sharded", shard_size="300KB")
    victim = sorted(folder.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(CheckpointError, match=f"shard {victim.name} is missing"):
        Checkpoint(folder)


def test_only_pickled_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*save_pretrained"):
        Checkpoint(folder)


def test_quantised_checkpoint(folder: Path) -> None:
    tiny.edit_config(folder, quantization_config={"quant_method": "awq"})
    with pytest.raises(CheckpointError, match=r"awq.*unquantised"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model_type", "llava_next_video", r"not supported.*llava_next_video.*llava"),
        ("model_type", None, r"not supported.*None"),
        ("vision_feature_layer", 9, r"vision_feature_layer.*9.*-5 to 4"),
        ("vision_feature_select_strategy", "cls", r"select_strategy.*default, full"),
        ("projector_hidden_act", "mish", r"activation.*mish"),
        ("text_config", {"model_type": "gpt2"}, r"unsupported text model.*gpt2.*llama, mistral, qwen2"),
        ("text_config", {"model_type": "llama", "hidden_size": "big"}, r"text_config\.hidden_size.*big"),
        ("text_config", {"model_type": "llama", "num_attention_heads": 7}, r"hidden_size is not a multiple"),
        ("vision_config", {"model_type": "siglip_vision_model"}, r"vision tower.*siglip"),
        ("vision_config", "clip", r"config\.vision_config.*'clip'.*an object"),
        ("vision_config", {"patch_size": 300}, r"vision_config\.patch_size.*300.*at most image_size"),
        ("vision_config", {"num_channels": 4}, r"num_channels.*4.*RGB"),
        ("text_config", ["llama"], r"config\.text_config.*an object"),
        ("text_config", {"model_type": ["llama"]}, r"text_config\.model_type.*a string"),
        ("text_config", {"eos_token_id": "x"}, r"eos_token_id.*'x'.*token id"),
        ("text_config", {"head_dim": 25}, r"head_dim.*25.*even"),
        ("text_config", {"rope_scaling": "linear"}, r"rope_scaling.*'linear'.*an object"),
        ("text_config", {"rope_theta": "big"}, r"rope_theta.*'big'.*a number"),
        ("image_token_index", 99999, r"image_token_index.*99999.*below vocab_size"),
        ("model_type", ["llava"], r"not supported"),
        ("quantization_config", "int4", r"quantised.*int4"),
    ],
)
def test_bad_configuration(folder: Path, key: str, value: object, words: str) -> None:
    tiny.edit_config(folder, **{key: value})
    with pytest.raises(CheckpointError, match=words):
        load_weights(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_config_that_is_not_an_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        Checkpoint(tmp_path / "nowhere")


def test_processor_files_are_asked_for_before_the_slow_part(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        export_model(folder, tmp_path / "bundle", plan=parse_plan([]))
    assert not (tmp_path / "bundle").exists()


def test_image_token_that_the_tokenizer_lacks(folder: Path, tmp_path: Path) -> None:
    tiny.edit_config(folder, image_token_index=270)
    with pytest.raises(CheckpointError, match=r"no token for images.*270"):
        export_model(folder, tmp_path / "bundle", plan=parse_plan([]))


def test_head_size_that_the_target_cannot_run(tmp_path: Path) -> None:
    folder = tiny.make_llava(tmp_path / "odd", text_options={"head_dim": 20})
    with pytest.raises(CheckpointError, match=r"head_dim 20.*multiple of 8.*portable"):
        export_model(folder, tmp_path / "bundle", plan=parse_plan([]))


@pytest.mark.parametrize("header", [b"[1]", b'{"a": {"dtype": "F32", "shape": [1]}}', b'{"a": {"shape": 3}}'])
def test_header_that_is_json_but_not_safetensors(folder: Path, header: bytes) -> None:
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        Checkpoint(folder)


def test_no_layout(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="no layout"):
        export_model(folder, tmp_path / "bundle", plan=parse_plan([]), layouts=[])


def test_fingerprint_sees_a_changed_weight(folder: Path) -> None:
    before = Checkpoint(folder).weights_sha256()
    assert Checkpoint(folder).weights_sha256() == before
    rewrite(folder, lambda tensors: {n: t * 1.01 for n, t in tensors.items()})
    assert Checkpoint(folder).weights_sha256() != before


def test_cut_outside_the_decoder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match=r"text-relevance@4.*layer 4 of 4.*1 to 3"):
        export_model(folder, tmp_path / "bundle", plan=parse_plan(["text-relevance@4"]))
