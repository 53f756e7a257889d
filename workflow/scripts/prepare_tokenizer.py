"""Load or train the tokenizer.

python workflow/scripts/prepare_tokenizer.py --spec JSON --output tokenizer=tokenizer
  --output manifest=manifest.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from takd.runtime.stage import main

main("takd.data.tokenizer")
