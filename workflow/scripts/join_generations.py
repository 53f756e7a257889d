"""Join the parts of a teacher's responses to the training prompts into a data set.

python workflow/scripts/join_generations.py --spec JSON --input piece=part1of2/manifest.json
  --input piece=part2of2/manifest.json --input teacher=teacher/manifest.json --input prompts=train/manifest.json
  --input tokenizer=tokenizer/manifest.json --output dataset=dataset --output manifest=manifest.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from takd.runtime.stage import main

main("takd.teacher_cache.merge", named=lambda spec: ["teacher"])
