"""As `warm`, with what the other stages of a run import."""

import gc
import importlib

import warm  # noqa: F401
import warm_python

for name in (
    *warm_python.stages(),
    # imported by functions of these
    "datasets.arrow_writer",
    "matplotlib.backends.backend_svg",
    "pyarrow.compute",
    "pyarrow.parquet",
    "tokenizers.trainers",
):
    importlib.import_module(name)

gc.freeze()
