"""Let one model answer one evaluation set and score the answers.

python workflow/scripts/evaluate.py --spec JSON --input model=... --input data=... --output scores=...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from takd.stage import main

# processes that score answers read this file again
if __name__ == "__main__":
    main("takd.evaluation.evaluate", gpus=True)
