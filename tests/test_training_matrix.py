"""Trainings as users run them, in few combinations of all that they may set: disturbed, they end as undisturbed ones.

Every method on every family, from scratch and from half-precision weights, with and without dropout, LoRA, autocast,
several processes: each value of an axis meets each of every other one. Two runs of each combination have to end with
the same bits. The second is disturbed, and may compute activations once more, which changes nothing either.
"""

import json
import random
import signal

import pytest
import torch
from families import FAMILIES
from forks import Strike
from pairwise import all_pairs, covering, pairs
from safetensors.torch import load_file
from workspace import TIMED, Workspace

METHODS = {
    "sft": ("sft", {}),
    "kd-live": ("kd", {}),
    "kd-top_k": ("kd", {"teacher_outputs": "top_k"}),
    "kd-hidden": ("kd", {"teacher_outputs": "hidden"}),
    "seqkd": ("seqkd", {}),
    "gkd": ("gkd", {}),
    "distillm": ("distillm", {"initial_share": 0.7}),
    "abkd": ("abkd", {}),
    "minillm": ("minillm", {"lm_weight": 0.0}),
    "minillm-corpus": ("minillm", {}),
}
AXES = {
    "method": list(METHODS),
    "family": list(FAMILIES),
    # none; as they are saved; the result of a supervised run
    "weights": ["scratch", "bf16", "fp16", "sft"],
    "end": ["out of time", "killed", "terminated", "repeated"],
    "precision": ["fp32", "bf16"],
    "dropout": [0.1, 0.0],
    "lora": [None, "lora"],
    "processes": [1, 2],
    "micro_batch": [8, 1],
    "recomputed": [0, 1],
}
IMPOSSIBLE = [{"method": "sft", "weights": "sft"}]  # it comes first
# where dropout could be lost: a pretrained model's, after a stop before the first evaluation on dev
DROPOUT = {"weights": "bf16", "dropout": 0.1, "end": "out of time", "precision": "bf16",
           "lora": None, "processes": 1, "micro_batch": 8, "recomputed": 0}  # fmt: skip
FIRST = [
    {**DROPOUT, "method": method, "family": list(FAMILIES)[at % len(FAMILIES)]}
    for at, method in enumerate(METHODS)
]
FIRST += [{**DROPOUT, "method": "kd-live", "family": "qwen2", "dropout": 0.0, "lora": "lora"}]
CASES = covering(AXES, first=FIRST, impossible=IMPOSSIBLE)
LORA = {"rank": 2, "alpha": 8.0, "dropout": 0.1, "targets": None}
STEPS, EVALUATE_EVERY = 6, 4


def test_each_value_meets_each_other():
    met = set().union(*map(pairs, CASES))
    wanted = all_pairs(AXES, IMPOSSIBLE)
    assert met == set(wanted) and len(wanted) == len(all_pairs(AXES)) - 1
    small = covering({"a": [1, 2], "b": [1, 2], "c": [1, 2]})
    assert len(small) == 4 and set().union(*map(pairs, small)) == set(
        all_pairs({"a": [1, 2], "b": [1, 2], "c": [1, 2]})
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("matrix"))


def inputs_of(space, case):
    """What the stage of a case reads; made where no case before has read it."""
    family = case["family"]
    teacher = space.model(family, "bf16", width=32, seed=1)
    found = {"teacher": teacher}
    if case["weights"] == "sft":
        found["init"] = space.model(family, "fp32", output="init")
        found["base"] = space.model(family, "scratch")
    else:
        found["base"] = space.model(family, case["weights"])
    if case["method"] == "seqkd":
        found["train"] = space.generations(teacher)
    if case["method"].startswith("kd-") and case["method"] != "kd-live":
        found["outputs"] = space.outputs(teacher, METHODS[case["method"]][1]["teacher_outputs"])
    return found


def settings_of(case):
    method, settings = METHODS[case["method"]]
    return method, {
        **settings,
        "start": "sft" if case["weights"] == "sft" else "base",
        **{name: case[name] for name in ("precision", "dropout")},
        "lora": LORA if case["lora"] else None,
        "steps": STEPS,
        "evaluate_every": EVALUATE_EVERY,
        "dev_rows": 3,
    }


def results(space, name):
    """Weights, manifest, and metrics without times."""
    folder = space.folder / name
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    weights = {
        f"{output}.{key}": tensor
        for output in ("model", "init")
        if (folder / output).exists()
        for key, tensor in load_file(folder / output / "model.safetensors").items()
    }
    metrics = [{k: v for k, v in line.items() if k not in TIMED} for line in lines]
    return weights, (folder / "manifest.json").read_text(), metrics


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda at: "-".join(
    str(value) for value in CASES[at].values()).replace(" ", "_"))  # fmt: skip
def test_disturbed_runs_end_as_undisturbed_ones(workspace, number):
    space, case = workspace, CASES[number]
    method, settings = settings_of(case)
    settings |= {"inputs": inputs_of(space, case), "processes": case["processes"]}
    micro_batch = f"--micro-batch={case['micro_batch']}"
    space.finished(space.train(f"whole{number}", method, micro_batch, **settings))
    whole = results(space, f"whole{number}")

    name = f"disturbed{number}"
    arguments = [micro_batch, f"--gradient-checkpointing={case['recomputed']}"]
    disturb(space, name, case, lambda *more, **how: space.train(
        name, method, *arguments, *more, **how, **settings))  # fmt: skip
    said = space.finished(space.train(name, method, *arguments, **settings))
    assert ("goes on from step" in said) == (case["end"] != "repeated")
    disturbed = results(space, name)
    assert same(whole[0], disturbed[0])
    assert whole[1:] == disturbed[1:]

    if case in FIRST:  # and it was no run without dropout
        settings |= {"dropout": 0.0, "lora": {**LORA, "dropout": 0.0} if case["lora"] else None}
        space.finished(space.train(f"dropless{number}", method, micro_batch, **settings))
        assert not same(whole[0], results(space, f"dropless{number}")[0])


def disturb(space, name, case, train):
    """Begin a training that does not come to its end."""
    moment = random.Random(name)
    if case["end"] == "repeated":
        return
    if case["end"] == "out of time":  # after the first step
        assert "Stopped" in space.finished(train("--runtime=0.00001"), code=1)
        return
    killed = case["end"] == "killed"
    # Lines: dev, four steps, dev, two steps, dev. The third step is written down after the first one's checkpoint.
    strike = Strike(
        signal.SIGKILL if killed else signal.SIGTERM,
        lines=moment.randint(4, 9) if killed else moment.randint(2, 7),
        operations=moment.randint(0, 12),
        struck=space.folder / f"{name}-struck",
    )
    process = train("--checkpoint-seconds=0", strike=strike)
    said = "".join(process.communicate(timeout=120))
    assert strike.struck.exists(), said
    if killed:  # of two processes, the one that is left ends by itself
        assert process.returncode == (-signal.SIGKILL if case["processes"] == 1 else 1), said
    else:
        assert process.returncode == 1 and "Stopped" in said, said
    assert not (space.folder / name / "manifest.json").exists()
