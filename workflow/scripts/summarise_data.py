"""Write the data report.

python workflow/scripts/summarise_data.py --spec JSON --input data=train/manifest.json
  --input data=dev/manifest.json --output report=report.json --output page=report.html
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from takd.runtime.stage import main

main("takd.data.summary")
