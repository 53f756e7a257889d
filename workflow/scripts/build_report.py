"""Build the report's pages, figures and tables in one folder.

python workflow/scripts/build_report.py --spec JSON --input models=models --input evaluations=evaluations
  --input teachers=teachers --input data_report=report.json --input data_page=report.html
  --output site=report
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from takd.runtime.stage import main

main("takd.report.build")
