"""Let a language model behind an endpoint rate the answers of one evaluation.

python workflow/scripts/judge.py --spec JSON --input generations=... --output judgements=... --output judge=...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from takd.stage import main

main("takd.evaluation.judge")
