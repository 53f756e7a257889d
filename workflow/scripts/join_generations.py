"""Make a data set of a teacher's answers to the training prompts.

python workflow/scripts/join_generations.py --spec JSON --input piece=... --input prompts=...
  --output dataset=... --output manifest=...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from takd.stage import main

main("takd.generation.join", named=lambda spec: ["teacher"])
