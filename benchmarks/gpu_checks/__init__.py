"""Stages of `gpu_check.py`, one module a group, and the code that runs them."""
