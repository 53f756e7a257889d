"""The stage that asks models about texts, and evaluations by several processes, in a prepared folder."""

import json
import math
from statistics import fmean

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from models_for_tests import token_log_probabilities
from sealing import write_json
from test_plan import ATTENTION
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM
from workspace import Workspace, of_split

from takd.decoding import loading
from takd.decoding.resumable import prompts_of, respond
from takd.decoding.sampling import Decoding
from takd.evaluation import likelihoods as stage_likelihoods
from takd.metrics import calibration
from takd.models import shapes
from takd.preflight import flops
from takd.preflight.flops import Rows
from takd.runtime.checkpoints import sweep
from takd.runtime.stage import Interrupted, Stage

TEACHERS = {"direct": ["teacher-sft", 3], "first": ["teacher-sft", 3]}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A prepared folder with two trained models and their answers to the dev prompts."""
    space = Workspace(tmp_path_factory.mktemp("workspace"))
    space.finished(space.train("model", "sft", steps=20, evaluate_every=20))
    space.finished(
        space.train("oracle", "sft", inputs={"base": "teacher"}, steps=40, evaluate_every=40)
    )
    for name, lineage in (("model", "teacher-sft__student-kd"), ("oracle", "teacher-sft")):
        space.finished(space.evaluate(f"{name}-answers", name))
        for file in (f"{name}/manifest.json", f"{name}-answers/scores.json"):
            path = space.folder / file
            write_json(path, json.loads(path.read_text()) | {"lineage": lineage})
    return space


def likelihoods(
    space, name, *arguments, teachers=TEACHERS, script="likelihoods", exact=None, **inputs
):
    (space.folder / name).mkdir(exist_ok=True)
    spec = {
        "lineage": "teacher-sft__student-kd",
        "seed": 3,
        "set": "dev",
        "seeds": [10, 20],
        "max_length": 16,
    }
    read = {
        "model": "model/manifest.json",
        "answers": "model-answers/answers.jsonl",
        "data": "dev/manifest.json",
        "tokenizer": "tokenizer/manifest.json",
    }
    if teachers:
        read |= {"direct": "oracle/manifest.json", "direct_answers": "oracle-answers/answers.jsonl"}
    files = ("likelihoods.json", "prompts.jsonl", "metrics.jsonl")
    return space.start(
        script,
        {**spec, "teachers": teachers, **({"exact": exact} if exact else {})},
        [f"{key}={path}" for key, path in {**read, **inputs}.items()],
        [f"{file.partition('.')[0]}={name}/{file}" for file in files],
        *arguments,
    )


@pytest.fixture(scope="module")
def measured(workspace):
    workspace.finished(likelihoods(workspace, "measured"))
    return workspace.folder / "measured"


def read(folder):
    lines = [json.loads(line) for line in (folder / "prompts.jsonl").open()]
    return json.loads((folder / "likelihoods.json").read_text()), lines


def distributions(model, prompt, response):
    """log-probabilities of every next token, (length, vocabulary)."""
    ids = torch.tensor([[*prompt, *response]])
    return model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


@torch.no_grad()
def test_the_numbers_are_those_of_transformers(workspace, measured):
    """Loss, calibration, divergences and exposure bias by plain passes of one text at a time."""
    space = workspace
    found, lines = read(measured)
    model, oracle = (
        AutoModelForCausalLM.from_pretrained(space.folder / name / "model").eval()
        for name in ("model", "oracle")
    )
    dev = load_from_disk(str(space.folder / "dev" / "dataset"))
    assert found["n"] == len(lines) == len(dev) == 8

    nll, confidence, correct = 0.0, [], []
    for row in dev:
        log_q = distributions(model, row["prompt_ids"], row["response_ids"])
        nll -= token_log_probabilities(model, row["prompt_ids"], row["response_ids"]).sum().item()
        confidence += log_q.exp().max(-1).values.tolist()
        correct += (log_q.argmax(-1) == torch.tensor(row["response_ids"])).tolist()
    tokens = sum(map(len, dev["response_ids"]))
    assert found["references"]["tokens"] == tokens
    assert found["references"]["loss"] == pytest.approx(nll / tokens, rel=1e-5)
    assert found["references"]["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    counts = calibration.count(np.array(confidence), np.array(correct))
    error = calibration.expected_calibration_error(counts)
    assert found["references"]["calibration_error"] == pytest.approx(error, abs=1e-5)

    regret = {}
    for kind, name in (("own", "model"), ("teacher", "oracle")):
        total, forward, reverse, teacher_nll = 0, [], 0.0, 0.0
        for line in (space.folder / f"{name}-answers" / "answers.jsonl").open():
            answer = json.loads(line)
            text = dev[answer["row"]]["prompt_ids"], answer["tokens"]
            log_q, log_p = (distributions(m, *text) for m in (model, oracle))
            total += len(answer["tokens"])
            forward.append((log_p.exp() * (log_p - log_q)).sum().item())
            reverse += (log_q.exp() * (log_q - log_p)).sum().item()
            teacher_nll -= token_log_probabilities(oracle, *text).sum().item()
        direct = found["direct"][kind]
        assert direct["forward_kl"] == pytest.approx(sum(forward) / total, rel=1e-4)
        assert direct["reverse_kl"] == pytest.approx(reverse / total, rel=1e-4)
        assert direct["teacher_loss"] == pytest.approx(teacher_nll / total, rel=1e-4)
        regret[kind] = sum(forward) / len(forward)
    perplexity = math.exp(found["direct"]["own"]["teacher_loss"])
    assert found["direct"]["own"]["teacher_perplexity"] == pytest.approx(perplexity)
    bias = found["direct"]["exposure_bias"]
    excess = 100 * (regret["own"] / regret["teacher"] - 1)
    assert bias["excess_accumulated_error"] == pytest.approx(excess, abs=0.05)
    assert bias["by_length"][0] == pytest.approx(0, abs=1e-3)
    assert found["first"] == found["direct"]


def test_means_follow_from_the_lines_of_the_prompts(measured):
    found, lines = read(measured)
    for kind, name in (
        ("own", "reverse_kl"),
        ("teacher", "forward_kl"),
        ("references", "forward_kl"),
    ):
        texts = [text for line in lines for text in line["direct"][kind]]
        assert [t.get("seed") for t in lines[0]["direct"]["own"]] == [10, 20]
        mean = sum(t[name] for t in texts) / sum(t["tokens"] for t in texts)
        assert found["direct"][kind][name] == pytest.approx(mean, rel=1e-4)
    regret, oracle = (
        sum(text["forward_kl"] for line in lines for text in line["direct"][kind])
        for kind in ("own", "teacher")
    )
    bias = found["direct"]["exposure_bias"]["excess_accumulated_error"]
    assert bias == pytest.approx(100 * (regret / oracle - 1), abs=0.01)


def test_a_head_of_a_chain_is_read_alone(workspace, measured):
    workspace.finished(likelihoods(workspace, "alone", teachers={}))
    found, lines = read(workspace.folder / "alone")
    assert found["references"] == read(measured)[0]["references"]
    assert "direct" not in found and set(lines[0]) == {"id", "references"}


def test_the_first_teacher_is_read_beside_the_direct_one(workspace, measured):
    """Here the model itself is called the first teacher: no distance, and no error whose excess could be told."""
    teachers = {"direct": ["teacher-sft", 3], "first": ["teacher-sft__student-kd", 3]}
    inputs = {"first": "model/manifest.json", "first_answers": "model-answers/answers.jsonl"}
    workspace.finished(likelihoods(workspace, "both", teachers=teachers, **inputs))
    found, lines = read(workspace.folder / "both")
    assert found["direct"] == read(measured)[0]["direct"]
    assert found["first"]["own"]["reverse_kl"] == found["first"]["teacher"]["forward_kl"] == 0
    assert found["first"]["own"]["teacher_loss"] == found["first"]["own"]["loss"] > 0
    assert found["first"]["exposure_bias"]["excess_accumulated_error"] is None
    assert set(lines[0]) == {"id", "references", "direct", "first"}


def test_several_references_are_all_read_and_cut_to_the_longest(workspace):
    space = workspace
    dev = load_from_disk(str(space.folder / "dev" / "dataset"))
    texts = [[*row["references"], " ".join(["red"] * 40)] for row in dev]
    more = dev.remove_columns("references").add_column("references", texts)
    more.save_to_disk(str(space.folder / "more" / "dataset"))
    space.manifest("more", **of_split("dev"))
    space.finished(likelihoods(space, "more-read", data="more/manifest.json", teachers={}))
    _, lines = read(space.folder / "more-read")
    for row, line in zip(dev, lines, strict=True):
        assert [t["reference"] for t in line["references"]] == [0, 1]
        lengths = [len(row["response_ids"]), 16 - len(row["prompt_ids"])]
        assert [t["tokens"] for t in line["references"]] == lengths


def test_two_processes_and_other_attempts_find_the_same(workspace, measured):
    """Stopped after one batch, gone on by two processes: the same bytes."""
    batch, name = "--micro-batch=8", "stopped"
    assert "Stopped" in workspace.finished(
        likelihoods(workspace, name, batch, "--runtime=0.00001"), 1
    )
    (store,) = (workspace.folder / name).glob("checkpoints/*/texts.jsonl")
    assert store.read_text().count("\n") == 8, "one batch"
    with open(store, "a") as file:
        file.write('{"part": "references", "row"')
    said = workspace.finished(likelihoods(workspace, name, batch, "--processes=2"))
    assert said.count("reverse KL to teacher-sft") == 2, "said once, to console and log"
    for file in ("likelihoods.json", "prompts.jsonl"):
        assert (workspace.folder / name / file).read_bytes() == (measured / file).read_bytes()
    sweep(workspace.folder)
    assert not (workspace.folder / name / "checkpoints").exists()


def test_answers_of_another_evaluation_are_refused(workspace):
    answers = workspace.folder / "model-answers" / "answers.jsonl"
    few = workspace.folder / "few.jsonl"
    few.write_text("".join(answers.open().readlines()[:-1]))
    said = workspace.finished(likelihoods(workspace, "refused", answers="few.jsonl"), code=1)
    assert "few.jsonl: holds 15 responses, which are not one for each of 8 prompts" in said


def test_two_processes_answer_as_one(workspace):
    space, seeds = workspace, list(range(5))
    spec = {"lineage": "teacher-sft__student-kd", "seeds": seeds}
    space.finished(space.evaluate("one", "model", **spec))
    space.finished(space.evaluate("two", "model", "--processes=2", "--micro-batch=3", **spec))
    for file in ("scores.json", "generations.jsonl", "answers.jsonl"):
        assert (space.folder / "one" / file).read_bytes() == (
            space.folder / "two" / file
        ).read_bytes()


def test_every_answer_is_kept_when_it_ends(workspace, tmp_path):
    """Stopped in the midst of a micro-batch, again and again: no answer that ended is drawn twice or lost."""
    dev = load_from_disk(str(workspace.folder / "dev" / "dataset"))
    prompts = prompts_of(dev, range(8), [10, 20])
    stage = Stage(spec={"lineage": "student-sft"}, code="", micro_batch=16)
    arguments = (workspace.folder / "model" / "model", workspace.tokenizer, prompts, Decoding(8))
    whole = respond(stage, "whole", *arguments, tmp_path)
    stage.stop_requested = True
    folder = tmp_path / "stopped"
    folder.mkdir()
    for kept in range(1, 16):
        with pytest.raises(Interrupted, match=f"{kept} of 16 responses are kept"):
            respond(stage, "stopped", *arguments, folder)
        assert (folder / "answers.jsonl").read_text().count("\n") == kept
    assert respond(stage, "stopped", *arguments, folder) == whole


def test_what_it_computes_is_what_is_planned(workspace, measured, monkeypatch):
    """Operations counted by torch, within 3 %, without what loading tries out; one text at a time: none is padded."""
    place, out = workspace.folder, workspace.folder / "counted"
    out.mkdir()
    names = {"model": "model", "direct": "oracle", "data": "dev", "tokenizer": "tokenizer"}
    inputs = {key: [place / name / "manifest.json"] for key, name in names.items()}
    inputs["answers"] = [place / "model-answers/answers.jsonl"]
    inputs["direct_answers"] = [place / "oracle-answers/answers.jsonl"]
    files = {
        "likelihoods": "likelihoods.json",
        "prompts": "prompts.jsonl",
        "metrics": "metrics.jsonl",
    }
    spec = {
        **{"lineage": "teacher-sft__student-kd", "seed": 3, "set": "dev", "seeds": [10, 20]},
        **{"max_length": 16, "teachers": TEACHERS},
    }
    outputs = {key: out / file for key, file in files.items()}
    stage = Stage(spec=spec, code="any", inputs=inputs, outputs=outputs, micro_batch=1)
    monkeypatch.setattr(loading, "check_model", lambda *args: None)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        stage_likelihoods.run(stage)
    counted = counter.get_total_flops()
    loss = read(measured)[0]["references"]["loss"]
    assert read(out)[0]["references"]["loss"] == pytest.approx(loss, rel=1e-5)
    end = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    dev = load_from_disk(str(place / "dev/dataset"))
    rows = Rows(len(dev), fmean(map(len, dev["prompt_ids"])), end["tokens"] / len(dev) / 6)
    model, oracle = (shapes.config_of(place / name / "model") for name in ("model", "oracle"))
    planned = flops.likelihoods(model, [oracle], rows, seeds=2)
    assert planned is not None
    assert planned.tokens == pytest.approx(end["tokens"])
    assert planned.operations == pytest.approx(counted, rel=0.03)
