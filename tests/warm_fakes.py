"""Libraries that placeholder stages import, loaded once in the process that they are forked from."""

import importlib

import warm_python

# looks are real ones
for name in ("takd.runtime.command_line", *warm_python.stages("look")):
    importlib.import_module(name)

import warm_outlines  # noqa: E402, F401
