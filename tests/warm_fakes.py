"""Libraries that placeholder stages import, loaded once in the process that they are forked from."""

import importlib

import warm_python

# what the command line imports for a stage that asks models; looks are real ones
for name in ("takd.runtime.command_line", "transformers", *warm_python.stages("look")):
    importlib.import_module(name)

import warm_outlines  # noqa: E402, F401
