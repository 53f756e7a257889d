"""Tokenise one split.

python workflow/scripts/prepare_data.py --spec JSON --input tokenizer=tokenizer/manifest.json
  --output dataset=dataset --output manifest=manifest.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from takd.runtime.stage import main

main("takd.data.prepare")
