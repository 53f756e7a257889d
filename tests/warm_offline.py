"""What data and models are prepared with, in a process that was started without the Hub: see `warm_hub`."""

import importlib

import warm_python

for name in ("torch", "transformers", *warm_python.stages("prepare_*")):
    importlib.import_module(name)
