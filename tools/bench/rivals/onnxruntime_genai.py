"""onnxruntime-genai on the language model alone: its builder knows no LLaVA.

No picture is looked at and no vision is timed: in the place of each visual token stands a token of text,
drawn from a seed, so that the prompt is as long as everybody's. Its time to the first token compares with the
others' `prefill` only, and its answers with nobody's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SETUP = (
    "python3 -m venv ENV && ENV/bin/pip install onnxruntime==1.31.1 onnxruntime-genai==0.18.0 pillow numpy "
    "(to build a model, too: torch transformers==5.5.4 onnx onnx-ir)"
)
MODEL = (
    "python -m foveate.tools.bench.language_model {checkpoint} LLM; ENV/bin/python -m "
    "onnxruntime_genai.models.builder -i LLM -o OUT -p int4 -e cpu -c CACHE (int4, int8 or fp32), and name "
    "OUT as its model"
)
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-genai")


class Engine:
    """A text model and its generator."""

    def __init__(self, model: str, checkpoint: str, threads: int, options: Mapping[str, str]) -> None:
        import onnxruntime_genai as genai

        self._genai = genai
        made_of = json.loads((Path(checkpoint) / "config.json").read_text())
        self._visual = int(options.get("visual_tokens", made_of.get("image_seq_length", 576)))
        self._vocabulary = int(made_of.get("text_config", made_of)["vocab_size"])
        config = genai.Config(model)
        config.overlay(json.dumps(_threads(threads)))
        self._model = genai.Model(config)
        self._tokenizer = genai.Tokenizer(self._model)
        self.settings = {
            "model": Path(model).name,
            "threads": threads,
            "looks at": f"no picture: {self._visual} drawn tokens stand for it",
        }

    def ask(self, picture: Any, prompt: str, new_tokens: int, mark: Callable[[str], None]) -> dict[str, Any]:
        """One greedy continuation."""
        import numpy as np

        genai = self._genai
        drawn = np.random.default_rng(0).integers(300, min(self._vocabulary, 30000), self._visual)
        before = self._tokenizer.encode("USER: ")
        after = self._tokenizer.encode(f"\n{prompt} ASSISTANT:")
        ids = np.concatenate([np.asarray(before), drawn, np.asarray(after)]).astype(np.int32)
        mark("preprocess")
        wanted = genai.GeneratorParams(self._model)
        length = len(ids) + new_tokens
        # The least length keeps a token that ends the text from ending it.
        wanted.set_search_options(do_sample=False, max_length=length, min_length=length)
        generator = genai.Generator(self._model, wanted)
        generator.append_tokens(ids)
        generator.generate_next_token()
        mark("prefill")
        while not generator.is_done():
            generator.generate_next_token()
        made = generator.get_sequence(0)[len(ids) :]
        return {
            "prompt_tokens": len(ids),
            "new_tokens": len(made),
            "text": self._tokenizer.decode(np.asarray(made, np.int32)),
        }


def _threads(threads: int) -> dict[str, Any]:
    return {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
