"""Load or train the tokenizer.

python workflow/scripts/prepare_tokenizer.py --spec JSON --output tokenizer=tokenizer
  --output manifest=manifest.json
"""

from start import main

main("takd.data.tokenizer")
