"""Decide whether more training seeds are needed.

python workflow/scripts/look.py --spec JSON --input models=models --input evaluations=evaluations
  --output decision=decision.json
"""

from start import main

main("takd.analysis.look")
