"""The lists of packages."""

import re

import yaml
from conftest import ROOT


def pinned() -> list[str]:
    lines = (ROOT / "envs/cpu.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_every_package_is_pinned() -> None:
    assert [line for line in pinned() if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_conda_has_the_same_packages() -> None:
    described = yaml.safe_load((ROOT / "envs/conda.yaml").read_text())
    assert described["dependencies"][-1]["pip"] == pinned()
