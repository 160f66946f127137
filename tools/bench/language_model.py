"""Takes the language model out of a LLaVA-like checkpoint, for engines that read no vision-language model.

    python -m foveate.tools.bench.language_model CHECKPOINT OUT

The same weights under the names of a text model, copied shard by shard; tokenizer and its files as they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, Final

from foveate.runtime.errors import CheckpointError, UsageError
from foveate.tools.extras import needs

_PREFIX: Final = "language_model."
_CLASSES: Final = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_COPIED: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
_OF_THE_WHOLE: Final = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")


def write_language_model(checkpoint: Path, out: Path) -> Path:
    """Writes the language model of `checkpoint` into the new folder `out` and returns it.

    Raises:
        UsageError: `out` is there already.
        CheckpointError: the checkpoint is of another kind.
        MissingDependencyError: safetensors is not installed.
    """
    if out.exists():
        raise UsageError("the folder is there already", found=str(out), mend="remove it or name another")
    config = _text_config(checkpoint)
    hidden = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    try:
        weight_map: dict[str, str] = {}
        with needs("export"):
            for shard in sorted(checkpoint.glob("*.safetensors")):
                weight_map |= _copy_shard(shard, hidden)
        size = sum(file.stat().st_size for file in hidden.iterdir())
        if not weight_map:
            raise CheckpointError(
                "the checkpoint has no language model of its own",
                found=str(checkpoint),
                wanted=f"weights called {_PREFIX}*",
            )
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (hidden / "model.safetensors.index.json").write_text(json.dumps(index))
        (hidden / "config.json").write_text(json.dumps(config, indent=2))
        for name in _COPIED:
            if (checkpoint / name).is_file():
                shutil.copy(checkpoint / name, hidden)
        hidden.rename(out)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return out


def _text_config(checkpoint: Path) -> dict[str, Any]:
    try:
        whole: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
        text: dict[str, Any] = dict(whole["text_config"])
        text["architectures"] = [_CLASSES[text["model_type"]]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "this is no checkpoint with a language model that can be taken out",
            found=f"{checkpoint}: {error}",
            wanted=f"a text_config of {', '.join(_CLASSES)}",
        ) from error
    return {**{name: whole[name] for name in _OF_THE_WHOLE if name in whole}, **text}


def _copy_shard(shard: Path, folder: Path) -> dict[str, str]:
    """The language model's weights of one file, written under their own names; name -> file."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(shard, framework="pt") as opened:
        names = [name for name in opened.keys() if name.startswith(_PREFIX)]  # noqa: SIM118
        tensors = {name.removeprefix(_PREFIX): opened.get_tensor(name) for name in names}
    if tensors:
        save_file(tensors, folder / shard.name, metadata={"format": "pt"})
    return dict.fromkeys(tensors, shard.name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="a new folder")
    arguments = parser.parse_args()
    print(write_language_model(arguments.checkpoint, arguments.out))


if __name__ == "__main__":
    main()
