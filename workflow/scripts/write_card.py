"""Write the model card of one trained model, beside the model and into its folder.

python workflow/scripts/write_card.py --spec JSON --input models=models --input evaluations=evaluations
  --output card=card.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from takd.runtime.stage import main

main("takd.model_cards.card")
