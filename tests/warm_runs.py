"""As `warm`, with what the other stages of a run import."""

import gc
import importlib

import warm  # noqa: F401
import warm_python

from takd.runtime.code_digest import code_digest

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

for name in warm_python.stages():
    code_digest(name)

gc.freeze()
