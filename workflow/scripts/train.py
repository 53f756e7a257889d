"""Train one model of a chain; started again, it goes on from its last checkpoint.

python workflow/scripts/train.py --spec JSON --input base=... --input train=... --output model=... --output manifest=...
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from takd.stage import main


def named(spec):
    """A teacher is only named, and not asked, where all that it says has been written down."""
    method = importlib.import_module(f"takd.methods.{spec['method']}").METHOD
    return [] if method.asks_teacher(spec["settings"]) else ["teacher"]


main(
    "takd.training.train",
    also=lambda spec: [f"takd.methods.{spec['method']}"],
    gpus=True,
    named=named,
)
