"""Checks and estimates before a run: obstacles (`doctor`) and resource needs (`plan`). No module here imports torch."""
