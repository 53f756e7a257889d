"""Tokenise one split.

python workflow/scripts/prepare_data.py --spec JSON --input tokenizer=tokenizer/manifest.json
  --output dataset=dataset --output manifest=manifest.json
"""

from start import main

main("takd.data.prepare")
