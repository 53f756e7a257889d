"""Experiments for the cluster: the demo with seconds per stage, and a training long enough to be interrupted."""

from typing import Any

import yaml
from conftest import ROOT

STEPS = 300  # of the training that tests interrupt


def demo_experiment() -> dict[str, Any]:
    """The demo with fewer rows, steps and seeds, and one chain, whose last training tries two learning rates."""
    experiment = yaml.safe_load((ROOT / "config/experiments/demo.yaml").read_text())
    experiment["tokenizer"]["train"]["vocabulary"] = 400  # so few rows do not yield 700 tokens
    experiment["data"]["train"]["demo"]["rows"] = 200
    experiment["data"]["dev"]["demo"]["rows"] = 8
    experiment["evaluation"]["sets"]["heldout"]["demo"]["rows"] = 16
    experiment["seeds"] = experiment["seeds"][:1]
    del experiment["models"]["student.scratch"]
    rates = {"values": [1e-3, 2e-3]}
    experiment["training"]["kd"].update(start="base", responses="labels", learning_rate=rates)
    chain = {"models": ["teacher", "assistant", "student"], "methods": [["minillm", "kd"]]}
    experiment["chains"] = [chain]
    experiment["report"] = {"samples": 2}
    settings = [*experiment["training"].values()]
    for model in experiment["models"].values():
        settings += model.get("training", {}).values()
    for method in settings:
        method.update(steps=4, evaluate_every=2)
        if "batch_size" in method:
            method["batch_size"] = 8
        if method.get("rows"):
            method["rows"] = 100
    return experiment


def training_experiment() -> dict[str, Any]:
    """The demo with two small models, whose teacher trains for some seconds, with many checkpoints."""
    experiment = demo_experiment()
    experiment["chains"] = [{"models": ["teacher", "student"], "methods": ["kd"]}]
    del experiment["models"]["assistant"]
    teacher = experiment["models"]["teacher"]
    teacher["weights"]["scratch"].update(width=64, heads=2)
    teacher["training"]["sft"].update(steps=STEPS, batch_size=16, evaluate_every=100, log_every=1)
    experiment["data"]["dev"]["demo"]["rows"] = 4
    return experiment
