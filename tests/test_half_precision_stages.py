"""Stages that ask models, of weights in half precision and text in any script: killed, they end with the same bytes."""

import json
import random
import signal

import pytest
from datasets import load_from_disk
from strike import Strike
from workspace import DECODING, Workspace

WORDS = ["красный", "синий", "緑", "高い", "صغير", "बिल्ली", "perro", "говори", "και", "。"]
ADDED, FILLED = (
    "takd.runtime.metrics_log.Progress.step",  # right after a record is saved
    "takd.teacher_cache.tensor_file.TensorFile.write",
)
TEACHER = {"lineage": "teacher-sft", "seed": 3}
DRAWING = {"temperature": 1.0, "max_new_tokens": 8}
TIMES = "metrics.jsonl"


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma3"])
def family(request, tmp_path_factory):
    """A prepared folder with a model and its teacher, as users bring them."""
    space = Workspace(tmp_path_factory.mktemp(request.param), WORDS)
    student = space.model(request.param, "bf16", "student")
    teacher = space.model(request.param, "bf16", "teacher")
    return space, student, teacher


def same_after_a_kill(space, script, name, spec, inputs, files, method=ADDED, calls=(2, 7)):
    """Run a stage undisturbed, and killed and begun again; what it wrote."""
    moment = random.Random(name)

    def start(folder, **how):
        return space.run(script, folder, spec, inputs, files, "--micro-batch=2", **how)

    space.finished(start(name))
    killed = space.folder / f"{name}-killed"
    strike = Strike(
        signal.SIGKILL, method, moment.randint(*calls), killed.with_name(f"{name}-struck")
    )
    space.finished(start(killed.name, strike=strike), code=-signal.SIGKILL)
    assert strike.struck.exists() and not any((killed / file).exists() for file in files)
    left = {path.name for path in killed.glob("checkpoints/*/*")}
    assert left & {"answers.jsonl", "texts.jsonl", "outputs.safetensors"}
    space.finished(start(killed.name))
    found = {file: (space.folder / name / file).read_bytes() for file in files if file != TIMES}
    assert found == {file: (killed / file).read_bytes() for file in found}
    return found


def test_evaluation_and_likelihoods(family):
    space, student, teacher = family
    space.finished(space.evaluate("oracle", teacher, lineage="teacher-sft"))
    spec = {"lineage": "student-sft", "seed": 3, "set": "dev", "seeds": [10, 20], "max_length": 16}
    inputs = {"model": student, "data": "dev", "tokenizer": "tokenizer"}
    files = ("scores.json", "generations.jsonl", "answers.jsonl", TIMES)
    sets = {**spec, "decoding": DECODING}
    found = same_after_a_kill(space, "evaluate", "own", sets, inputs, files)
    lines = [json.loads(line) for line in found["generations.jsonl"].decode().splitlines()]
    texts = {output["text"] for line in lines for output in line["outputs"]}
    assert len(lines) == 8 and len(texts) > 8
    assert {word for text in texts for word in text.split()} <= set(WORDS)
    inputs |= {"answers": "own/answers.jsonl", "direct": teacher}
    inputs["direct_answers"] = "oracle/answers.jsonl"
    files = ("likelihoods.json", "prompts.jsonl", TIMES)
    spec["teachers"] = {"direct": ["teacher-sft", 3]}
    found = same_after_a_kill(space, "likelihoods", "likelihoods", spec, inputs, files)
    measured = json.loads(found["likelihoods.json"])
    assert measured["direct"]["own"]["reverse_kl"] > 0 and measured["n"] == 8


def test_what_a_teacher_writes(family):
    space, _, teacher = family
    inputs = {"teacher": teacher, "prompts": "train", "tokenizer": "tokenizer"}
    spec = {**TEACHER, "noise": 1, "decoding": DRAWING, "part": 1, "parts": 1}
    files = ("answers.jsonl", TIMES, "manifest.json")
    found = same_after_a_kill(space, "generate", "written", spec, inputs, files)
    rows = load_from_disk(str(space.folder / space.generations(teacher) / "dataset"))
    drawn = [json.loads(line)["tokens"] for line in found["answers.jsonl"].splitlines()]
    assert drawn == rows["response_ids"]  # the same at another batch size
    assert [space.tokenizer.decode(row, skip_special_tokens=True) for row in drawn] == [
        texts[0] for texts in rows["references"]
    ]
    for kind, more in (("top_k", {"top_k": 4}), ("hidden", {})):
        inputs = {"teacher": teacher, "data": "train", "tokenizer": "tokenizer"}
        spec = {**TEACHER, "split": "train", "kind": kind, **more}
        files = ("outputs.safetensors", TIMES, "manifest.json")
        same_after_a_kill(space, "write_outputs", kind, spec, inputs, files, FILLED, (1, 2))
