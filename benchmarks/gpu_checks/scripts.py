"""takd's stages with tiny models, started as by the workflow."""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from models_for_tests import tiny_gpt2
from safetensors.torch import load_file
from workspace import BASE, DECODING, STUDENT, TEACHER, Workspace

from gpu_checks.families import FAMILIES, config
from gpu_checks.running import ROOT, Findings, outcome, prepared, side_by_side
from takd.data.row import batches
from takd.experiment.lineage import SUPERVISED
from takd.runtime import command_line

WEIGHTS = "model/model.safetensors"


def families(findings: Findings) -> None:
    """Run two steps of training, dev and a checkpoint, of each family in each precision."""
    precisions = ["fp32", "bf16", "fp16"] if findings.gpu else ["bf16"]
    runs: list[tuple[str, Callable[[], Any]]] = []
    for precision in precisions:
        for family in FAMILIES:
            runs.append((f"{family} {precision}", _training(family, precision)))
    _together(findings, runs)


def _training(family: str, precision: str) -> Callable[[], Any]:
    def start() -> Any:
        space = _space()
        _shape(space, "student", family)
        return space.train("out", SUPERVISED, precision=precision, steps=2, evaluate_every=2)

    return start


def resume(findings: Findings) -> None:
    """A run that is stopped after its first step and goes on, against one that is not: equal bit for bit?

    With `--deterministic 1`, where this takd knows it, and on a CPU they must be; else it is told whether they are.
    """
    known = "--deterministic" in command_line._parser("takd").format_help()
    findings.add("takd knows --deterministic", known)
    precisions = ["fp32", "bf16", "fp16"] if findings.gpu else ["bf16"]
    options = [(), ("--deterministic=1",)] if known else [()]
    cases = [(p, o) for o in reversed(options) for p in precisions]
    for some in batches(cases, max(1, side_by_side() // 2)):
        spaces = [_space() for _ in some]
        whole, cut = [], []
        for space, (precision, option) in zip(spaces, some, strict=True):
            how: dict[str, Any] = {"precision": precision, "steps": 4, "evaluate_every": 4}
            whole.append(space.train("whole", SUPERVISED, *option, **how))
            cut.append((space, option, how))
        stopped = [
            outcome(s.train("cut", SUPERVISED, "--runtime=0.00001", *o, **how), findings.left())
            for s, o, how in cut
        ]
        ended = [
            outcome(s.train("cut", SUPERVISED, *o, **how), findings.left()) for s, o, how in cut
        ]
        for index, (precision, option) in enumerate(some):
            name = precision + "".join(f" {o}" for o in option)
            with findings.part(name):
                said = [outcome(whole[index], findings.left()), ended[index]]
                if said != ["ok", "ok"] or "exit code 1" not in stopped[index]:
                    raise RuntimeError(f"whole, stopped and gone on: {said}, {stopped[index]}")
                files = [spaces[index].folder / run / WEIGHTS for run in ("whole", "cut")]
                equal = files[0].read_bytes() == files[1].read_bytes()
                if option or not findings.gpu:
                    findings.hold(f"{name}: equal", float(equal), least=1.0)
                else:
                    findings.add(f"{name}: equal", float(equal))


def zero(findings: Findings) -> None:
    """Compare ZeRO 1, 2, 3 and 3 with offloading, one process each, with training without DeepSpeed."""
    names = ["zero1", "zero2", "zero3", "zero3-offload"] if findings.gpu else ["zero3"]
    spaces: dict[str, Workspace] = {}

    def start(name: str) -> Callable[[], Any]:
        def begin() -> Any:
            spaces[name] = space = _space()
            deepspeed = None
            if name != "plain":
                file = ROOT / "config" / "deepspeed" / f"{name}.json"
                deepspeed = {"name": name, "config": json.loads(file.read_text())}
            how: dict[str, Any] = {"steps": 3, "evaluate_every": 3, "dropout": 0.0}
            return space.train("out", SUPERVISED, deepspeed=deepspeed, **how)

        return begin

    _together(findings, [(name, start(name)) for name in ("plain", *names)])
    for name in names:
        with findings.part(f"{name} against plain training"):
            ours, plain = (load_file(spaces[n].folder / "out" / WEIGHTS) for n in (name, "plain"))
            apart = max((ours[k].float() - plain[k].float()).abs().max().item() for k in plain)
            # in half precision, gradients are rounded; Adam moves a weight by the learning rate, 1e-2, at most
            findings.hold(f"{name}: farthest weight", apart, most=0.05 if findings.gpu else 1e-3)


def asking(findings: Findings) -> None:
    """Evaluate two models, and compute the likelihoods of one against the other."""
    space = _space()
    for name, width, said in (("student", 16, STUDENT), ("teacher", 32, TEACHER)):
        model = tiny_gpt2(width, len(space.tokenizer), width)
        model.save_pretrained(space.folder / name / "model")
        space.manifest(name, **said)
    runs = [(name, _evaluation(space, name)) for name in ("student", "teacher")]
    _together(findings, runs)
    scores = json.loads((space.folder / "student-answers" / "scores.json").read_text())
    findings.hold("prompts", scores["n"], least=8)
    findings.add("ROUGE-L", scores["scores"]["rougeL"]["mean"])
    _together(findings, [("likelihoods", lambda: _likelihoods(space))])
    found = json.loads((space.folder / "read" / "likelihoods.json").read_text())
    findings.hold("loss of the references", found["references"]["loss"], most=50.0)
    findings.hold("reverse KL", found["direct"]["own"]["reverse_kl"], most=50.0)
    if not math.isfinite(found["references"]["perplexity"]):
        raise RuntimeError("the perplexity is not finite")


def _evaluation(space: Workspace, name: str) -> Callable[[], Any]:
    return lambda: space.evaluate(f"{name}-answers", name, lineage=f"{name}-sft")


def _likelihoods(space: Workspace) -> Any:
    (space.folder / "read").mkdir()
    spec = {
        **{"lineage": "student-sft", "seed": 3, "set": "dev", "seeds": [10, 20]},
        "max_length": 16,
        "teachers": {"direct": ["teacher-sft", 3], "first": ["teacher-sft", 3]},
        "decoding": DECODING,
    }
    inputs = {
        "model": "student/manifest.json",
        "answers": "student-answers/answers.jsonl",
        "data": "dev/manifest.json",
        "tokenizer": "tokenizer/manifest.json",
        "direct": "teacher/manifest.json",
        "direct_answers": "teacher-answers/answers.jsonl",
    }
    files = {"likelihoods": "likelihoods.json", "prompts": "prompts.jsonl", "metrics": "m.jsonl"}
    return space.start(
        "likelihoods",
        spec,
        [f"{name}={path}" for name, path in inputs.items()],
        [f"{name}=read/{file}" for name, file in files.items()],
    )


def _space() -> Workspace:
    return prepared(Path(tempfile.mkdtemp(prefix="takd-gpu-check-")))


def _shape(space: Workspace, name: str, family: str) -> None:
    """Give a model of the folder the shape of a family."""
    folder = space.folder / name / "model"
    shutil.rmtree(folder)
    small = config(family, 2, 16, vocabulary=len(space.tokenizer), positions=32)
    small.save_pretrained(folder)
    space.manifest(name, **BASE)  # with the digests of what is there now


def _together(findings: Findings, runs: Iterable[tuple[str, Callable[[], Any]]]) -> None:
    """Run scripts in parallel, and record how each ended."""
    for some in batches(list(runs), side_by_side()):
        started = [(name, start()) for name, start in some]
        for name, process in started:
            with findings.part(name):
                said = outcome(process, findings.left())
                findings.add(name, said)
                if said != "ok":
                    raise RuntimeError(said)
