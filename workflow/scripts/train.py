"""Train one model of a chain; started again, it goes on from its last checkpoint.

python workflow/scripts/train.py --spec JSON --input base=... --input train=... --output model=... --output manifest=...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from takd.stage import main

main("takd.training.train", also=lambda spec: [f"takd.methods.{spec['method']}"], gpus=True)
