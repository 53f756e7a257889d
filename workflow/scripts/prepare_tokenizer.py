"""Read or train the tokenizer.

python workflow/scripts/prepare_tokenizer.py --spec JSON --code DIGEST --output tokenizer=FOLDER
  --output manifest=FILE
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from takd.stage import main

main("takd.data.tokenizer")
