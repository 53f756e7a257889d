"""Fetch and check the weights that a model starts from.

python workflow/scripts/prepare_base.py --spec JSON --input tokenizer=tokenizer/manifest.json --output model=model
  --output manifest=manifest.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from takd.runtime.stage import main

main("takd.models.starting_weights")
