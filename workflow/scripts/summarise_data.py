"""Write the data report.

python workflow/scripts/summarise_data.py --spec JSON --input data=train/manifest.json
  --input data=dev/manifest.json --output report=report.json --output page=report.html
"""

from start import main

main("takd.data.summary")
