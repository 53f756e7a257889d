"""Generate a teacher's responses to one part of the training prompts; an interrupted run is resumed.

python workflow/scripts/generate.py --spec JSON --micro-batch 256 --input teacher=teacher/manifest.json
  --input prompts=train/manifest.json --input tokenizer=tokenizer/manifest.json --output answers=answers.jsonl
  --output metrics=metrics.jsonl --output manifest=manifest.json
"""

from start import main

main("takd.teacher_cache.responses", gpus=True)
