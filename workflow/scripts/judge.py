"""Rate the answers of one evaluation with a language model behind an endpoint.

python workflow/scripts/judge.py --spec JSON --input generations=generations.jsonl --output judge=judge.json
  --output judgements=judgements.jsonl
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from takd.runtime.stage import main

main("takd.evaluation.judge")
