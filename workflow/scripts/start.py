"""Give the other scripts `main`, which runs a stage of the package below `src`, wherever they are called from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from takd.runtime.command_line import main

__all__ = ["main"]
