"""Build the report's pages, figures and tables in one folder.

python workflow/scripts/build_report.py --spec JSON --input models=models --input evaluations=evaluations
  --input teachers=teachers --input data_report=report.json --input data_page=report.html
  --output site=report
"""

from start import main

main("takd.report.build")
