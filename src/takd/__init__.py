"""Distil large language models into small ones through teacher assistants."""
