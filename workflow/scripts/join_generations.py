"""Join the parts of a teacher's responses to the training prompts into a data set.

python workflow/scripts/join_generations.py --spec JSON --input piece=part1of2/manifest.json
  --input piece=part2of2/manifest.json --input teacher=teacher/manifest.json --input prompts=train/manifest.json
  --input tokenizer=tokenizer/manifest.json --output dataset=dataset --output manifest=manifest.json
"""

from start import main

main("takd.teacher_cache.merge", named=lambda spec: ["teacher"])
