"""Generate a teacher's responses to one part of the training prompts; an interrupted run is resumed.

python workflow/scripts/generate.py --spec JSON --micro-batch 256 --input teacher=teacher/manifest.json
  --input prompts=train/manifest.json --input tokenizer=tokenizer/manifest.json --output answers=answers.jsonl
  --output metrics=metrics.jsonl --output manifest=manifest.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from takd.runtime.stage import main

main("takd.teacher_cache.responses", gpus=True)
