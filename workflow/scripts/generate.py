"""Let a teacher answer one part of the training prompts; started again, it goes on.

python workflow/scripts/generate.py --spec JSON --input teacher=... --input prompts=...
  --output answers=... --output metrics=... --output manifest=...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from takd.stage import main

main("takd.generation.generate", gpus=True)
