"""Train one model of a chain, resuming from the last checkpoint if there is one.

python workflow/scripts/train.py --spec JSON --nodes 1 --processes 1 --micro-batch 64
  --input base=base/manifest.json --input teacher=teacher/manifest.json --input train=train/manifest.json
  --input dev=dev/manifest.json --input tokenizer=tokenizer/manifest.json --output model=model
  --output metrics=metrics.jsonl --output manifest=manifest.json
"""

from start import main


def named(spec):
    """Inputs of which only the manifest is read: the budget's reference, and a teacher whose outputs are stored."""
    asks = "teacher" not in spec or spec["asks_teacher"]
    return ["reference"] if asks else ["reference", "teacher"]


main(
    "takd.training.train",
    also=lambda spec: [f"takd.methods.{spec['method']}"],
    gpus=True,
    named=named,
)
