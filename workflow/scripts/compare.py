"""Compare an experiment with other finished experiments.

python workflow/scripts/compare.py --spec JSON --input results=results/NAME --input results=results/OTHER
  --output page=comparison.html --output table=comparison.csv ...
"""

from start import main

main("takd.report.compare")
