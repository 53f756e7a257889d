"""Compute the likelihoods of an evaluation set's references and answers under a model and its teachers.

python workflow/scripts/likelihoods.py --spec JSON --processes 1 --micro-batch 64 --input model=model/manifest.json
  --input answers=answers.jsonl --input direct=teacher/manifest.json --input direct_answers=teacher/answers.jsonl
  --input data=test/manifest.json --input tokenizer=tokenizer/manifest.json --output likelihoods=likelihoods.json
  --output prompts=prompts.jsonl --output metrics=metrics.jsonl
"""

from start import main

main("takd.evaluation.likelihoods", gpus=True)
