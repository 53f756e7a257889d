"""Compare an experiment with other finished experiments.

python workflow/scripts/compare.py --spec JSON --input results=results/NAME --input results=results/OTHER
  --output page=comparison.html --output table=comparison.csv ...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from takd.runtime.stage import main

main("takd.report.compare")
