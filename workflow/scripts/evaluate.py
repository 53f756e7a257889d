"""Generate one model's answers to one evaluation set, and score them.

python workflow/scripts/evaluate.py --spec JSON --processes 1 --micro-batch 256 --input model=model/manifest.json
  --input data=test/manifest.json --input tokenizer=tokenizer/manifest.json --output scores=scores.json
  --output generations=generations.jsonl --output answers=answers.jsonl --output metrics=metrics.jsonl
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from takd.runtime.stage import main

# worker processes that score answers import this file again
if __name__ == "__main__":
    main("takd.evaluation.evaluate", gpus=True)
