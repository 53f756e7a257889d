"""Tests on a Slurm cluster of their own: a package, so that its conftest is told from that of all tests."""
