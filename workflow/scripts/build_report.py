"""Build the report's tables, figures and pages.

python workflow/scripts/build_report.py --spec JSON --input models=models --input evaluations=evaluations
  --input teachers=teachers --input data_report=report.json --input data_page=report.html
  --output results=results.html --output results_csv=results.csv ...
"""

from start import main

main("takd.report.build")
