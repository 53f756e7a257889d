"""Rate the answers of one evaluation with a language model behind an endpoint.

python workflow/scripts/judge.py --spec JSON --input generations=generations.jsonl --output judge=judge.json
  --output judgements=judgements.jsonl
"""

from start import main

main("takd.evaluation.judge")
