"""Trainings as users run them, in few combinations of all that they may set: disturbed, they end as undisturbed ones.

Every method on every family, from scratch and from half-precision weights, with and without dropout, LoRA, autocast,
several processes: each value of an axis meets each of every other one, but for those that `NOT_ON` leaves out. Two runs
of each combination have to end with the same bits. The second is disturbed, and may compute activations once more,
which changes nothing either.
"""

import itertools
import json
import random
import signal

import pytest
import torch
from families import FAMILIES
from pairwise import all_pairs, covering, pairs
from safetensors.torch import load_file
from strike import Strike
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
    "taid": ("taid", {}),
    "amid": ("amid", {}),
    "skd": ("skd", {}),
    "minillm": ("minillm", {"lm_weight": 0.0}),
    "minillm-corpus": ("minillm", {}),
}
# in an order for which few combinations suffice, and few of two processes
AXES = {
    "end": ["out of time", "killed", "terminated", "repeated"],
    "recomputed": [0, 1],
    "processes": [1, 2],
    "lora": [None, "lora"],
    "family": list(FAMILIES),
    "dropout": [0.1, 0.0],
    "method": list(METHODS),
    "micro_batch": [8, 1],
    # none; as they are saved; the result of a supervised run
    "weights": ["scratch", "bf16", "fp16", "sft"],
    "precision": ["fp32", "bf16"],
}
IMPOSSIBLE = [{"method": "sft", "weights": "sft"}]  # it comes first
# every method meets every family; one of its variants does not have to
NOT_ON = {
    "kd-live": ("gpt2", "llama", "mistral", "gemma3"),
    "kd-top_k": ("opt", "mistral", "gpt2", "qwen2"),
    "kd-hidden": ("qwen2", "gemma3", "opt", "llama"),
    "minillm": ("opt", "mistral", "qwen2", "gpt2"),
    "minillm-corpus": ("llama", "gemma3"),
}
LEFT_OUT = [{"method": name, "family": one} for name, some in NOT_ON.items() for one in some]
NEVER = [*IMPOSSIBLE, *LEFT_OUT]
# where dropout could be lost: a pretrained model's, after a stop before the first evaluation on dev
DROPOUT = {"weights": "bf16", "dropout": 0.1, "end": "out of time", "precision": "bf16",
           "lora": None, "processes": 1, "micro_batch": 8, "recomputed": 0}  # fmt: skip
FIRST = [
    {**DROPOUT, "method": method, "family": list(FAMILIES)[at % len(FAMILIES)]}
    for at, method in enumerate(METHODS)
]
FIRST += [{**DROPOUT, "method": "kd-live", "family": "qwen2", "dropout": 0.0, "lora": "lora"}]
CASES = covering(AXES, first=FIRST, impossible=NEVER, costly=[("processes", 2)])
LORA = {"rank": 2, "alpha": 8.0, "dropout": 0.1, "targets": None}
STEPS, EVALUATE_EVERY = 6, 4


def test_each_value_meets_each_other():
    met = set().union(*map(pairs, CASES))
    wanted = all_pairs(AXES, NEVER)
    assert met == set(wanted) and len(wanted) == len(all_pairs(AXES)) - len(NEVER)
    together = {(METHODS[case["method"]][0], case["family"]) for case in CASES}
    assert together == set(itertools.product({name for name, _ in METHODS.values()}, FAMILIES))
    # no fewer would do: a method meets its families, and weights of each kind
    met_by = {name: len(FAMILIES) - len(NOT_ON.get(name, ())) for name in METHODS}
    assert len(CASES) < 1.1 * sum(max(count, len(AXES["weights"])) for count in met_by.values())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("matrix"))


def inputs_of(space, case):
    """What the stage of a case reads; made where no case before has read it."""
    family = case["family"]
    teacher = space.model(family, "bf16", "teacher")
    found = {} if case["method"] == "sft" else {"teacher": teacher}
    if case["weights"] == "sft":
        found["init"] = space.model(family, "fp32", "init")
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


def weights(space, name):
    """Of all models that a training gives, by output and name."""
    return {
        f"{file.parent.name}.{key}": tensor
        for file in (space.folder / name).glob("*/model.safetensors")
        for key, tensor in load_file(file).items()
    }


def same(one, other):
    assert one and one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def assert_same_results(space, *names):
    """Weights bit by bit, the manifest, and metrics without times (and without whether somebody edits files now)."""
    assert same(*(weights(space, name) for name in names))
    folders = [space.folder / name for name in names]
    one, other = ((folder / "manifest.json").read_bytes() for folder in folders)
    assert one == other
    one, other = (
        [
            {key: value for key, value in json.loads(line).items() if key not in {*TIMED, "commit"}}
            for line in (folder / "metrics.jsonl").open()
        ]
        for folder in folders
    )
    assert one == other


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=["-".join(map(str, case.values())) for case in CASES]
)
def test_disturbed_runs_end_as_undisturbed_ones(workspace, number):
    space, case = workspace, CASES[number]
    method, settings = settings_of(case)
    settings |= {"inputs": inputs_of(space, case), "processes": case["processes"]}
    arguments = [f"--micro-batch={case['micro_batch']}"]
    again = [*arguments, f"--gradient-checkpointing={case['recomputed']}"]
    whole, disturbed = f"whole{number}", f"disturbed{number}"
    space.finished(space.train(whole, method, *arguments, **settings))

    step = 0
    if case["end"] != "repeated":
        step = disturb(space, disturbed, method, case["end"], *again, **settings)
    said = space.finished(space.train(disturbed, method, *again, **settings))
    assert (f"resumes from step {step} of {STEPS}" in said) == (step > 0)
    assert_same_results(space, whole, disturbed)

    if case in FIRST:  # and it was no run without dropout
        settings |= {"dropout": 0.0, "lora": {**LORA, "dropout": 0.0} if case["lora"] else None}
        space.finished(space.train(f"dropless{number}", method, *arguments, **settings))
        assert not same(weights(space, whole), weights(space, f"dropless{number}"))


def disturb(space, name, method, end, *arguments, **settings):
    """Begin a training that does not come to its end; the step that the next one will go on from."""
    strike, killed = None, end == "killed"
    if end == "out of time":  # after the first step
        arguments = ["--runtime=0.00001", *arguments]
    else:
        # Lines: dev, four steps, dev, two steps, dev. The third step's comes when the first one's checkpoint is whole.
        moment = random.Random(name)
        strike = settings["strike"] = Strike(
            signal.SIGKILL if killed else signal.SIGTERM,
            "takd.runtime.metrics_log.Journal.write",
            calls=moment.randint(4, 9) if killed else moment.randint(2, 6),
            operations=moment.randint(0, 12),
            struck=space.folder / f"{name}-struck",
        )
        arguments = ["--checkpoint-seconds=0", *arguments]
    process = space.train(name, method, *arguments, **settings)
    said = "".join(process.communicate(timeout=120))
    assert strike is None or strike.struck.exists(), said
    assert not (space.folder / name / "manifest.json").exists()
    step = int(max((space.folder / name).glob("checkpoints/*/step-*")).name[len("step-") :])
    if killed:  # of two processes, one may be left, which ends by itself
        assert process.returncode in (-signal.SIGKILL, 1) and "Stopped" not in said, said
        assert step >= 1
    else:
        assert process.returncode == 1 and f"at step {step} of {STEPS}, as asked" in said, said
        assert "Stopped: " in said and "Traceback" not in said, said
        assert step == 1 or end == "terminated"
    return step
