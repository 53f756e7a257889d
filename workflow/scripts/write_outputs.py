"""Compute a teacher's outputs for the tokens of a data set; an interrupted run is resumed.

python workflow/scripts/write_outputs.py --spec JSON --micro-batch 64 --input teacher=teacher/manifest.json
  --input data=train/manifest.json --input tokenizer=tokenizer/manifest.json --output outputs=outputs.safetensors
  --output metrics=metrics.jsonl --output manifest=manifest.json
"""

from start import main

main("takd.teacher_cache.outputs", gpus=True)
