"""Fetch and check the weights that a model starts from.

python workflow/scripts/prepare_base.py --spec JSON --input tokenizer=tokenizer/manifest.json --output model=model
  --output manifest=manifest.json
"""

from start import main

main("takd.models.starting_weights")
