"""Libraries that placeholder stages import, loaded once in the process that they are forked from."""

import importlib

for name in ("takd.runtime.command_line", "takd.analysis.look"):
    importlib.import_module(name)

import warm_outlines  # noqa: E402, F401
