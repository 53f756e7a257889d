"""The stages of `gpu_check.py`, a module a group, and what they run in."""
