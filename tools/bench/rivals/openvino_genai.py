"""OpenVINO GenAI's pipeline for vision-language models, on a model that optimum-intel exported.

Options: `cache_gb` (1), `batched_tokens` (1024), `backend` (PA; or SDPA), `pruning_ratio` (percent removed;
only Qwen-VL models listen). Its prefix cache is off: asked the same again, it would measure that cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SETUP = (
    "python3 -m venv ENV && ENV/bin/pip install openvino-genai==2026.4.1.0 pillow numpy (to export a model, "
    "too: optimum-intel==2.2.0 nncf transformers==5.5.4 torch==2.13.0 torchvision==0.28.0)"
)
MODEL = (
    "optimum-cli export openvino -m {checkpoint} --task image-text-to-text --weight-format int8 OUT (or "
    "int4, fp16), and name OUT as its model"
)
DISTRIBUTIONS = ("openvino", "openvino-genai", "openvino-tokenizers")


class Engine:
    """A `VLMPipeline` on the CPU."""

    def __init__(self, model: str, checkpoint: str, threads: int, options: Mapping[str, str]) -> None:
        import openvino_genai as genai

        self._genai = genai
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.cache_size = int(options.get("cache_gb", 1))
        scheduler.max_num_batched_tokens = int(options.get("batched_tokens", 1024))
        self._pruning = options.get("pruning_ratio")
        self.settings = {
            "weights": _weights(Path(model)),
            "threads": threads,
            "backend": options.get("backend", "PA"),
            "prefix cache": "off",
            "cache": f"{scheduler.cache_size} GB",
            "batched tokens": scheduler.max_num_batched_tokens,
            **({"pruning ratio": self._pruning} if self._pruning else {}),
        }
        place = {"scheduler_config": scheduler} if self.settings["backend"] == "PA" else {}
        self._pipeline = genai.VLMPipeline(
            model,
            "CPU",
            ATTENTION_BACKEND=self.settings["backend"],
            INFERENCE_NUM_THREADS=threads,
            NUM_STREAMS=1,
            **place,
        )

    def ask(self, picture: Any, prompt: str, new_tokens: int, mark: Callable[[str], None]) -> dict[str, Any]:
        """One greedy answer; vision is timed by the engine itself, in wall time alone."""
        import numpy as np
        import openvino as ov

        genai = self._genai

        class FirstToken(genai.StreamerBase):  # type: ignore[name-defined,misc]
            """Is told every token."""

            def write(self, token: Any) -> Any:
                mark("prefill")
                return genai.StreamingStatus.RUNNING

            def end(self) -> None:
                """Nothing is left to do."""

        wanted = genai.GenerationConfig()
        wanted.max_new_tokens, wanted.ignore_eos, wanted.do_sample = new_tokens, True, False
        if self._pruning:
            wanted.pruning_ratio = int(self._pruning)
        image = ov.Tensor(np.asarray(picture)[None])
        out = self._pipeline.generate(prompt, images=[image], generation_config=wanted, streamer=FirstToken())
        metrics = out.perf_metrics
        return {
            "prompt_tokens": metrics.get_num_input_tokens(),
            "new_tokens": metrics.get_num_generated_tokens(),
            "text": out.texts[0],
            "told": {"vision": metrics.get_prepare_embeddings_duration().mean / 1000},
        }


def _weights(model: Path) -> str:
    """Bits of the weights by part of the model, as the exporter noted them."""
    try:
        noted = json.loads((model / "openvino_config.json").read_text())
    except (OSError, ValueError):
        return "unknown"
    quantised = noted.get("quantization_config") or {}
    parts = quantised.get("quantization_configs") or {"all": quantised}
    bits = {name: part.get("bits") for name, part in parts.items() if isinstance(part, dict)}
    told = ", ".join(f"{name} {number} bit" for name, number in bits.items() if number)
    return told or str(noted.get("dtype") or "unknown")
