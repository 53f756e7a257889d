"""Train one model of a chain, resuming from the last checkpoint if there is one.

python workflow/scripts/train.py --spec JSON --nodes 1 --processes 1 --micro-batch 64
  --input base=base/manifest.json --input teacher=teacher/manifest.json --input train=train/manifest.json
  --input dev=dev/manifest.json --input tokenizer=tokenizer/manifest.json --output model=model
  --output metrics=metrics.jsonl --output manifest=manifest.json
"""

import importlib

from start import main


def named(spec):
    """Inputs that are recorded but not read: the teacher, if the method uses only its precomputed outputs."""
    if "teacher" not in spec:
        return []
    method = importlib.import_module(f"takd.methods.{spec['method']}").METHOD
    return [] if method.asks_teacher(spec["settings"]) else ["teacher"]


main(
    "takd.training.train",
    also=lambda spec: [f"takd.methods.{spec['method']}"],
    gpus=True,
    named=named,
)
