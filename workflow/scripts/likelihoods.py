"""Ask a model and its teachers about the references and the answers of one evaluation set.

python workflow/scripts/likelihoods.py --spec JSON --input model=... --input answers=... --output likelihoods=...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from takd.stage import main

main("takd.evaluation.likelihoods", gpus=True)
