"""As `warm`, with what the other stages of a run import."""

import gc
import importlib
import re
from pathlib import Path

import warm  # noqa: F401

SCRIPTS = Path(__file__).resolve().parents[1] / "workflow/scripts"

for script in sorted(SCRIPTS.glob("*.py")):
    for stage in re.findall(r'main\(\s*"(takd\.[\w.]+)"', script.read_text(encoding="utf-8")):
        importlib.import_module(stage)
# imported by functions of stages
for name in (
    "datasets.arrow_writer",
    "matplotlib.backends.backend_svg",
    "pyarrow.compute",
    "pyarrow.parquet",
    "tokenizers.trainers",
):
    importlib.import_module(name)

gc.freeze()
