"""transformers on torch, with its fused attention: what a checkpoint's users run.

Options: `device` (cpu), `dtype` (float32), `attention` (sdpa), `cache` (dynamic; static: on a GPU `generate`
then compiles the decoding step by itself, with CUDA graphs). The processors of some families, such as
LLaVA-OneVision, need torchvision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

SETUP = 'python3 -m venv ENV && ENV/bin/pip install torch torchvision "transformers>=5,<6" pillow'
MODEL = ""  # reads the checkpoint itself
DISTRIBUTIONS = ("torch", "transformers")


class Engine:
    """The model as `from_pretrained` gives it, asked by `generate`."""

    def __init__(self, model: str, checkpoint: str, threads: int, options: Mapping[str, str]) -> None:
        import torch
        import transformers

        library: Any = transformers  # which carries no types of what we need
        self._device = options.get("device", "cpu")
        if self._device != "cpu" and not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} sees no GPU")
        torch.set_num_threads(threads)
        with contextlib.suppress(RuntimeError):  # that it is set already
            torch.set_num_interop_threads(1)
        dtype, attention = options.get("dtype", "float32"), options.get("attention", "sdpa")
        self.settings = {"dtype": dtype, "attention": attention, "threads": threads, "device": self._device}
        self._processor = library.AutoProcessor.from_pretrained(model, local_files_only=True)
        self._model = library.AutoModelForImageTextToText.from_pretrained(
            model,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            local_files_only=True,
        ).eval()
        self._model.to(self._device)
        # No token ends an answer: all contestants' answers are equally long.
        self._model.generation_config.eos_token_id = None
        self._tower = next(
            part for name, part in self._model.named_modules() if name.endswith("vision_tower")
        )
        if (cache := options.get("cache", "dynamic")) != "dynamic":
            self._model.generation_config.cache_implementation = cache
        self.settings |= {"cache": cache, "compiled": self._compiles(cache)}

    def _compiles(self, cache: str) -> bool:
        """Whether `generate` compiled its step in a short answer to words alone; this compiles it, too."""
        if cache == "dynamic":
            return False
        inputs = self._processor.tokenizer("What is this?", return_tensors="pt").to(self._device)
        self._model.generate(**inputs, do_sample=False, max_new_tokens=4)
        return getattr(self._model, "_compiled_call", None) is not None

    def _marked(self, mark: Callable[[str], None], name: str) -> None:
        """A mark where the work, and not only its start, is done."""
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize()
        mark(name)

    def ask(self, picture: Any, prompt: str, new_tokens: int, mark: Callable[[str], None]) -> dict[str, Any]:
        """One greedy answer."""
        import torch

        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        # The template writes the token that begins a text only where the tokenizer does not.
        begins = bool(text) and text.startswith(self._processor.tokenizer.bos_token or "\0")
        inputs = self._processor(
            images=[picture], text=text, return_tensors="pt", add_special_tokens=not begins
        )
        inputs = inputs.to(self._device)
        if self._device != "cpu":  # the model's own type; ids stay what they are
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        self._marked(mark, "preprocess")
        seen = self._tower.register_forward_hook(lambda *_: self._marked(mark, "vision"))
        try:
            with torch.inference_mode():
                out = self._model.generate(
                    **inputs, do_sample=False, max_new_tokens=new_tokens, streamer=_FirstToken(mark)
                )
        finally:
            seen.remove()
        length = inputs["input_ids"].shape[1]
        ids = out[0, length:].tolist()
        return {
            "prompt_tokens": length,
            "new_tokens": len(ids),
            "text": self._processor.tokenizer.decode(ids, skip_special_tokens=True),
        }


class _FirstToken:
    """A streamer: is given the prompt, then token by token."""

    def __init__(self, mark: Callable[[str], None]) -> None:
        self._mark, self._prompt = mark, True

    def put(self, value: Any) -> None:
        """The prompt, or a token."""
        if not self._prompt:
            self._mark("prefill")
        self._prompt = False

    def end(self) -> None:
        """Nothing is left to do."""
