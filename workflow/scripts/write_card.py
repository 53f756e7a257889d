"""Write the model card of one trained model, beside the model and into its folder.

python workflow/scripts/write_card.py --spec JSON --input models=models --input evaluations=evaluations
  --output card=card.md
"""

from start import main

main("takd.model_cards.card")
