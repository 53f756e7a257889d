"""Tests on a private Slurm cluster; a package, so that its conftest has a module name of its own."""
