"""A bundle of our own, in a process of its own like every other contestant.

Options: `layout` (fused), `budget` (all; as `foveate bench --budget` writes them).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SETUP = "python3 -m venv ENV && ENV/bin/pip install foveate"
MODEL = "foveate export {checkpoint} -o OUT, and name OUT as its model"
DISTRIBUTIONS = ("foveate", "onnxruntime", "transformers")


class Engine:
    """A bundle that is open for questions; no token ends an answer."""

    def __init__(self, model: str, checkpoint: str, threads: int, options: Mapping[str, str]) -> None:
        # As where only the runtime is installed; else the tokenizer's library loads torch: 330 MB for nothing
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        from foveate.runtime.backends.onnxruntime import Backend
        from foveate.runtime.bundle import Bundle
        from foveate.runtime.model import Model
        from foveate.runtime.pipeline import Pipeline
        from foveate.runtime.processor import Processor
        from foveate.tools.bench.asking import endless
        from foveate.tools.bench.budgets import Wish

        layout = options.get("layout", "fused")
        bundle = endless(Bundle.open(Path(model)))
        processor = Processor(bundle.processor_path, bundle.manifest.model, bundle.manifest.family)
        processor.warm_up()
        # By hand and not by `load`: pictures must not be answered from a cache of vision.
        self._pipeline = Pipeline(bundle, Model(bundle, layout, Backend(threads)), processor)
        self._wish = Wish.parse(options.get("budget", "all"))
        self.settings = {"layout": layout, "budget": self._wish.word, "threads": threads}

    def ask(self, picture: Any, prompt: str, new_tokens: int, mark: Callable[[str], None]) -> dict[str, Any]:
        """One greedy answer."""
        pipeline = self._pipeline
        wanted = self._wish.options(pipeline.manifest, new_tokens)
        tokenized = pipeline.tokenize(prompt, [picture])
        mark("preprocess")
        prepared = pipeline.prepare_batch([tokenized], wanted)
        mark("vision")
        stream = pipeline.stream_prepared(prepared, wanted)
        next(stream)
        mark("prefill")
        generation = stream.generation
        return {
            "prompt_tokens": len(generation.report.positions),
            "new_tokens": len(generation.token_ids),
            "text": generation.text,
        }
