"""What a plan assumes where nothing was tokenised or run yet: lengths of texts, and times on a CPU."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, small_experiment

from takd.data import made_tokenizers, sources
from takd.data.template import fill
from takd.experiment import specs
from takd.experiment.experiment import Experiment, load
from takd.preflight import collect, gpus, lengths, rates
from takd.preflight.flops import Lengths, Work
from takd.preflight.plan import Planner


def read(folder: Path, **data: Any) -> Experiment:
    """The small experiment with these data and texts of up to 64 tokens, prompts of up to 48."""
    experiment = small_experiment()
    experiment["data"] |= data
    file = folder / "config/experiments/small.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(experiment))
    return load(file, folder)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@pytest.mark.slow
def test_the_demo_is_as_long_as_its_own_tokenizer_makes_it(tmp_path: Path) -> None:
    experiment = load(ROOT / "config/experiments/demo.yaml", tmp_path)
    made_tokenizers.train(specs.tokenizer(experiment), tmp_path)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(next(tmp_path.rglob("tokenizer.json"))))
    template = specs.data(experiment, "train")["template"]
    rows = [*islice(sources.rows(specs.data(experiment, "train")["source"]), 500)]
    texts = [fill(template, row.instruction, row.input) for row in rows]
    prompt = sum(len(tokenizer.encode(text).ids) for text in texts) / len(rows)
    response = sum(len(tokenizer.encode(row.references[0]).ids) + 1 for row in rows) / len(rows)
    found = Planner(experiment, gpus.CPU).rows["train"]
    assert (found.count, found.lengths) == (20_000, Lengths.ESTIMATED)
    assert found.prompt == pytest.approx(prompt, rel=0.15)
    assert found.response == pytest.approx(response, rel=0.15)


def test_letters_of_a_world_are_a_token_each(tmp_path: Path) -> None:
    experiment = load(ROOT / "config/experiments/enumerable.yaml", tmp_path)
    found = Planner(experiment, gpus.CPU).rows["train"]
    assert found.prompt == 2 and 4 < found.response < 6


TEMPLATE = {"with_input": "{instruction} {input}", "without_input": "{instruction}"}


def test_rows_are_dropped_and_cut_as_the_stage_does(tmp_path: Path) -> None:
    """Of training and dev those with a long prompt; an evaluation set's are shortened. Of any script by its bytes."""
    rows = [
        {"instruction": "a" * 40, "output": "b" * 400},
        {"instruction": "a" * 400, "output": "b"},
    ]
    rows += [
        {"instruction": "日本語の文" * 2, "output": "はい"},
        {"instruction": "Ω" * 20, "output": ""},
    ]
    write(tmp_path / "data/dev.jsonl", rows)
    experiment = read(tmp_path, template=TEMPLATE, train={"json": "data/dev.jsonl"})
    found = lengths.estimated(experiment, "train", 400)
    assert (
        found is not None and found.count == 400
    )  # one of four is dropped, which no guess takes off
    assert found.prompt == pytest.approx((10 + 7.5 + 10) / 3)
    assert found.response == pytest.approx((54 + 2.5 + 1) / 3)
    experiment.settings["evaluation"]["sets"]["heldout"] = {"json": "data/dev.jsonl"}
    cut = lengths.estimated(experiment, "heldout", None)
    assert cut is not None and cut.count is None
    assert cut.prompt == pytest.approx((10 + 48 + 7.5 + 10) / 4)


def test_each_answer_of_a_conversation_is_a_row_with_its_marks(tmp_path: Path) -> None:
    messages = [("system", "s" * 8), ("user", "u" * 8), ("assistant", "a" * 8), ("user", "v" * 8)]
    row = {"messages": [{"role": role, "content": text} for role, text in messages]}
    row["messages"].append({"role": "assistant", "content": "b" * 16})
    write(tmp_path / "data/dev.jsonl", [row])
    experiment = read(tmp_path, train={"json": "data/dev.jsonl"})
    experiment.settings["data"]["template"] = "chat"
    found = lengths.estimated(experiment, "train", 10)
    assert found is not None
    # two tokens and five of marks a message, and five where the answer begins
    assert found.prompt == pytest.approx(((2 * 7 + 5) + (4 * 7 + 5)) / 2)
    assert found.response == pytest.approx((3 + 5) / 2)


def test_what_is_not_here_or_cannot_be_read_counts_as_long_as_allowed(tmp_path: Path) -> None:
    experiment = read(tmp_path)
    assert Planner(experiment, gpus.CPU).rows["dev"].lengths is Lengths.LONGEST
    write(tmp_path / "data/dev.jsonl", [{"question": "a"}])
    found = Planner(experiment, gpus.CPU).rows["dev"]
    assert (found.prompt, found.response, found.lengths) == (48, 16, Lengths.LONGEST)


# finished runs on cores of 100 GFLOP/s with instructions for bfloat16: operations, steps, drawn tokens, CPU seconds
RUNS = {
    "demo, student, sft": (3.35e11, 900, 11_900, 18.2),
    "demo, assistant, sft": (1.22e12, 900, 12_000, 37.0),
    "demo, assistant, minillm": (9.68e11, 256, 190_000, 38.1),
    "demo, likelihoods": (1.18e11, 0, 0, 2.9),
    "enumerable, small, kd": (7.83e10, 400, 650, 8.2),
    "SmolLM2 of 117M, sft in bf16": (2.67e13, 48, 3780, 486.4),
    "SmolLM2 of 117M, minillm in bf16": (1.68e13, 16, 9630, 280.9),
    "SmolLM2 of 117M, evaluate in bf16": (2.27e12, 0, 4990, 33.5),
    "SmolLM2 of 117M, likelihoods in bf16": (1.8e13, 0, 0, 193.2),
}


@pytest.mark.parametrize("name", RUNS)
def test_times_on_a_cpu_are_within_a_factor_of_two(name: str) -> None:
    operations, steps, drawn, seconds = RUNS[name]
    core = replace(gpus.CPU, single=0.1, half=0.1 * gpus.HALF_GAIN)
    work = Work(passes=operations, steps=steps, drawn=drawn)
    precision = "bf16" if "bf16" in name else "fp32"
    assert 0.5 < rates.assumed(work, core, precision) / seconds < 2


def test_the_rate_of_this_cpu_is_measured_and_else_that_of_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = collect.own_cpu()
    assert own.name == "cpu" and 1e9 < own.peak("fp32") <= own.peak("bf16") < 1e13
    monkeypatch.setattr(collect, "ask", lambda *command: collect.Answer(124, "did not answer"))
    assert collect.own_cpu().peak("fp32") == gpus.CPU.peak("fp32")
