"""A small task for lmms-eval from the built-in scenes: `python -m foveate.tools.lmms_task FOLDER`.

Benchmarks of lmms-eval need data from the network; this one is made here and now, so it shows in a minute
that everything is in place (the command that it prints runs it). The score is the share of questions answered
word for word, as in `foveate eval`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from foveate.runtime.errors import UsageError
from foveate.tools.demo_model.scenes import TEST_QUOTA, make_scene

TASK = "foveate_demo"
QUESTIONS = 8  # of each scene

_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function foveate_demo_utils.doc_to_visual
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 8
  temperature: 0
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1.0
"""

_UTILS = '''\
"""What lmms-eval calls to get at the pictures of this task."""

from PIL import Image


def doc_to_visual(doc):
    """The scene of one question."""
    return [Image.open(doc["image"]).convert("RGB")]
'''


def write_task(folder: Path, scenes: int = 20) -> Path:
    """Writes pictures, questions and the task of the first `scenes` test scenes; returns the task's file.

    Raises:
        UsageError: no scenes are asked for.
    """
    if scenes < 1:
        raise UsageError("a task needs scenes", found=str(scenes), wanted="1 or more")
    folder = folder.resolve()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(scenes):
        scene = make_scene(number, "test")
        path = folder / "images" / f"{number}.png"
        scene.pil().save(path)
        for question in scene.ask(TEST_QUOTA, QUESTIONS):
            row = {"image": str(path), "question": question.text, "answer": question.answer}
            rows.append(json.dumps({**row, "kind": question.kind}))
    data, task = folder / "questions.jsonl", folder / f"{TASK}.yaml"
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / f"{TASK}_utils.py").write_text(_UTILS, encoding="utf-8")
    task.write_text(_YAML.format(task=TASK, data=json.dumps(str(data))), encoding="utf-8")
    return task


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a task for lmms-eval from the built-in scenes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=20, help="test scenes, eight questions each")
    given = parser.parse_args()
    task = write_task(given.folder, given.scenes)
    print(f"wrote {task}")
    words = f"--model foveate --model_args bundle=demo --tasks {TASK} --include_path {task.parent}"
    print(f"next: python -m lmms_eval {words}")


if __name__ == "__main__":
    main()
