"""Write down what a teacher says of the tokens of a data set; started again, it goes on.

python workflow/scripts/write_outputs.py --spec JSON --input teacher=... --input data=...
  --output outputs=... --output metrics=... --output manifest=...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from takd.stage import main

main("takd.generation.outputs", gpus=True)
