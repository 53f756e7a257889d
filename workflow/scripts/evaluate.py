"""Generate one model's answers to one evaluation set, and score them.

python workflow/scripts/evaluate.py --spec JSON --processes 1 --micro-batch 256 --input model=model/manifest.json
  --input data=test/manifest.json --input tokenizer=tokenizer/manifest.json --output scores=scores.json
  --output generations=generations.jsonl --output answers=answers.jsonl --output metrics=metrics.jsonl
"""

from start import main

# worker processes that score answers import this file again
if __name__ == "__main__":
    main("takd.evaluation.evaluate", gpus=True)
