"""`python -m foveate.tools.train.examine vistog`: right answers of a shipped merging adapter."""

from __future__ import annotations

import argparse
from collections import defaultdict

from foveate.export.adapter import Adapter
from foveate.tools.demo_model.__main__ import SHIPPED
from foveate.tools.train import merging
from foveate.tools.train.bench import QUESTIONS
from foveate.tools.train.recipes import make_recipe, make_trainer


def main() -> None:
    """Prints one line for each number of rows: accuracy in percent on test scenes, eager, float32."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("method", choices=("setok", "vistog"))
    words.add_argument("--scenes", type=int, default=500)
    words.add_argument("--rows", default="0,32,16,8,7", help="rows asked for; 0 is the method's own rule")
    given = words.parse_args()
    trainer = make_trainer(given.method, SHIPPED, make_recipe(given.method))
    assert isinstance(trainer, merging.Trainer)
    adapters = SHIPPED.with_name("adapters")
    trainer.load(Adapter.read(adapters / f"{given.method}.safetensors").tensors)
    asked = trainer.bench.ask(trainer.bench.held_out(given.scenes, "test"), QUESTIONS, training=False)
    kinds = [question.kind for scene in asked for question in scene]
    for rows in map(int, given.rows.split(",")):
        right, mean = trainer.examine(given.scenes, "test", rows)
        by_kind: dict[str, list[bool]] = defaultdict(list)
        for kind, hit in zip(kinds, right.flatten().tolist(), strict=True):
            by_kind[kind].append(hit)
            by_kind["all"].append(hit)
        shares = "  ".join(f"{kind} {100 * sum(hits) / len(hits):.1f}" for kind, hits in by_kind.items())
        print(f"{given.method}, {rows or 'own rule'}: {mean:.1f} rows  {shares}", flush=True)


if __name__ == "__main__":
    main()
