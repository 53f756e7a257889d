"""Before a run: what stands in its way (`doctor`), and what it will take (`plan`). No module here needs torch."""
