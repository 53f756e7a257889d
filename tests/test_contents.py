"""What the start of a run and `doctor` say of data, weights, profile and settings before a stage does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Project, make_project, small_experiment
from families import FAMILIES, save_weights

from takd.experiment import specs
from takd.experiment.experiment import Experiment, load
from takd.models.weight_files import positions, safetensors_parameters
from takd.preflight import contents, fitting, start
from takd.preflight.findings import Finding
from takd.preflight.gpus import CPU
from takd.preflight.jobs import Job
from takd.preflight.plan import Planner
from takd.runtime.errors import InputError

ROW = {"instruction": "say red", "input": "", "output": "red"}


def experiment(root: Path, edit: Callable[[dict[str, Any]], Any]) -> Experiment:
    """The small experiment with an edit, in a folder with its dev rows."""
    settings = small_experiment()
    edit(settings)
    path = root / "config/experiments/mine.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings))
    (root / "data").mkdir(exist_ok=True)
    lines(root / "data/dev.jsonl", [{**ROW, "instruction": f"say {n}"} for n in range(5)])
    return load(path, root)


def lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def jobs(found: Experiment) -> list[Job]:
    data = [Job("data", "any", {"split": split}) for split in found.splits]
    return data + [Job("base", "any", {"model": name}) for name in found.settings["models"]]


def bad(findings: Any) -> list[Finding]:
    found = [finding for finding in findings if finding.level != "ok"]
    assert all("\n" not in finding.text for finding in found)
    return found


# data


BAD_SOURCES: dict[str, tuple[dict[str, Any], Any, str]] = {
    "raw Dolly": ({}, [{"instruction": "a", "context": "", "response": "b"}], "no key 'output'"),
    "a column that is not there": ({"columns": {"output": "answer"}}, [ROW], "no key 'answer'"),
    "chat messages": ({}, [{"messages": [{"role": "user"}]}], "'content' is null"),
    "a number for a text": ({}, [{**ROW, "output": 3}], "'output' is a number"),
    "a later row": ({}, [ROW, ROW, {**ROW, "instruction": None}], "line 3: 'instruction' is null"),
    "an array": ({}, "[\n]\n", "one JSON array"),
    "nothing": ({}, "\n", "holds no row"),
    "too few rows": ({"rows": [0, 9]}, [ROW], "fewer than `rows` asks for"),
    "rows of a pointer": (
        {},
        "version https://git-lfs.github.com/spec/v1\n",
        "is a pointer of git-lfs",
    ),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_rows_are_held_against_what_is_read_of_them(split: str, case: str, tmp_path: Path) -> None:
    keys, rows, text = BAD_SOURCES[case]
    source = {"json": "data/mine.jsonl", **keys}

    def edit(settings: dict[str, Any]) -> None:
        part = settings["data"] if split == "train" else settings["evaluation"]["sets"]
        part[split] = source

    (tmp_path / "data").mkdir()
    path = tmp_path / "data/mine.jsonl"
    path.write_text(rows) if isinstance(rows, str) else lines(path, rows)
    found = experiment(tmp_path, edit)
    (finding,) = bad(contents.of_sources(found, jobs(found)))
    assert finding.level == "error" and finding.text.startswith(f"{split}: ")
    assert text in finding.text and "data/mine.jsonl" in finding.text
    assert not bad(contents.of_sources(found, [Job("data", "x", {"split": split}, to_do=False)]))


def test_supervised_trainings_need_answers(tmp_path: Path) -> None:
    asked = [{"messages": [{"role": "user", "content": f"say {n}"}]} for n in "ab"]
    answered = {"messages": [*asked[0]["messages"], {"role": "assistant", "content": "c"}]}

    def edit(settings: dict[str, Any]) -> None:
        settings["data"]["train"] = {"json": "data/mine.jsonl"}

    found = experiment(tmp_path, edit)
    lines(tmp_path / "data/mine.jsonl", asked)
    supervised = [*jobs(found), Job("sft", "any", {"student": "student", "seed": "1"})]
    (finding,) = bad(contents.of_sources(found, supervised))
    assert finding.level == "error" and "no row has an answer, from which sft" in finding.text
    assert not bad(contents.of_sources(found, jobs(found)))
    lines(tmp_path / "data/mine.jsonl", [*asked, answered])
    assert not bad(contents.of_sources(found, supervised))
    # the last question of a conversation without an answer does not take away the others
    follow_up = {"messages": [*answered["messages"], {"role": "user", "content": "d"}]}
    lines(tmp_path / "data/mine.jsonl", [*asked, follow_up])
    assert not bad(contents.of_sources(found, supervised))


def test_sources_of_other_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of parquet, a download that is here, a corpus; and what is not here is passed over."""
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"instruction": ["a"], "answer": ["b"]}).save_to_disk(
        tmp_path / "saved"
    )
    (tmp_path / "resources/downloads").mkdir(parents=True)
    lines(tmp_path / f"resources/downloads/{'a' * 64}", [{"prompt": "a"}])
    (tmp_path / "empty.txt").write_text("\n\n")

    def edit(settings: dict[str, Any]) -> None:
        settings["data"]["train"] = {"folder": "saved"}
        settings["data"]["corpus"] = {"text": "empty.txt"}
        sets = settings["evaluation"]["sets"]
        sets["fetched"] = {"url": "https://example.org/x.jsonl", "sha256": "a" * 64}
        sets["elsewhere"] = {"url": "https://example.org/y.jsonl", "sha256": "b" * 64}
        sets["hub"] = {"hub": "some/data", "revision": "a" * 40}

    found = experiment(tmp_path, edit)
    said = {
        each.text.split(":")[0]: each.text for each in bad(contents.of_sources(found, jobs(found)))
    }
    assert set(said) == {"train", "corpus", "fetched"}
    assert (
        "'output'" in said["train"]
        and "no row" in said["corpus"]
        and "'instruction'" in said["fetched"]
    )


@pytest.mark.parametrize(
    ("dev", "count"),
    [
        ({"json": "data/train.jsonl"}, 20),
        ({"json": "data/train.jsonl", "rows": [10, 15]}, 5),
        ({"json": "data/train.jsonl", "rows": [15, None]}, 5),
        ({"json": "data/other.jsonl"}, 1),  # another answer to the same prompt
        ({"json": "data/dev.jsonl"}, 0),
    ],
)  # fmt: skip
def test_dev_rows_that_stand_in_train(dev: dict[str, Any], count: int, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    lines(tmp_path / "data/train.jsonl", [{**ROW, "instruction": f"train {n}"} for n in range(20)])
    other = [{**ROW, "instruction": f"train {n}", "output": "other"} for n in (3, 30)]
    lines(tmp_path / "data/other.jsonl", other)
    train = {"json": "data/train.jsonl"}
    found = experiment(tmp_path, lambda settings: settings["data"].update(train=train, dev=dev))
    said = bad(contents.of_sources(found, jobs(found)))
    assert [finding.level for finding in said] == ["warning"] * bool(count)
    if count:
        assert said[0].text.startswith(f"{count} of the ")


def test_of_a_large_file_only_the_first_row_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "READ_WHOLE", 100)
    (tmp_path / "data").mkdir()
    lines(tmp_path / "data/large.jsonl", [ROW] * 9 + [{}])
    large = {"json": "data/large.jsonl", "rows": [5, 7]}
    found = experiment(tmp_path, lambda settings: settings["data"].update(train=large))
    assert not bad(contents.of_sources(found, jobs(found)))
    lines(tmp_path / "data/large.jsonl", [{}, *[ROW] * 9])
    assert len(bad(contents.of_sources(found, jobs(found)))) == 1


# weights


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_positions_by_header_and_config(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / family
    model = AutoModelForCausalLM.from_config(FAMILIES[family](50, 16))
    for shard in ("1GB", "5kB"):
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, max_shard_size=shard)
        assert safetensors_parameters(folder) == model.num_parameters()
    assert positions(folder) == model.config.get_text_config().max_position_embeddings


def test_headers_that_say_nothing(tmp_path: Path) -> None:
    save_weights(FAMILIES["gpt2"](50, 16), tmp_path / "whole", __import__("torch").float16)
    assert safetensors_parameters(tmp_path / "whole")
    weights = (tmp_path / "whole/model.safetensors").read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    for content in (
        b"",
        weights[:7],
        weights[:60],
        pointer,
        b"\xff" * 64,
        b"\2" + bytes(7) + b"[]",
    ):
        (tmp_path / "whole/model.safetensors").write_bytes(content)
        assert safetensors_parameters(tmp_path / "whole") is None
    for config in ("", "[]", '{"max_position_embeddings": "many"}'):
        (tmp_path / "whole/config.json").write_text(config)
        assert positions(tmp_path / "whole") is None
        assert safetensors_parameters(tmp_path / "whole") is None


def local(tmp_path: Path, **model: Any) -> Experiment:
    """With a teacher from a folder."""
    save_weights(FAMILIES["llama"](300, 64), tmp_path / "weights", __import__("torch").bfloat16)
    weights = {"folder": "weights", **model.pop("weights", {})}
    return experiment(
        tmp_path, lambda settings: settings["models"].update(teacher={"weights": weights, **model})
    )


def test_a_local_model_is_held_against_what_is_declared(tmp_path: Path) -> None:
    count = safetensors_parameters(local(tmp_path, parameters="1M").root / "weights")
    assert count
    for declared in ("1M", "7B", count * 2, count * 0.7):
        found = local(tmp_path, parameters=declared)
        said = bad(contents.of_weights(found, jobs(found)))
        assert f"but its weights have {count:.3g}" in said[-1].text
        # a family of 32 positions, and texts of 64 tokens
        assert "has 32 positions, but data.max_length is 64; set at most 32" in said[0].text
    for declared in (count, count * 1.2):
        found = local(tmp_path, parameters=declared)
        assert len(bad(contents.of_weights(found, jobs(found)))) == 1
    kept = local(tmp_path, parameters=20000, weights={"keep_layers": 1})
    assert len(bad(contents.of_weights(kept, jobs(kept)))) == 1


@pytest.mark.parametrize(
    ("rows", "kept"), [(None, 4), ([0, None], 4), ([1, None], 3), ([0, 2], 2), ([2, 9], 2)]
)
def test_the_plan_counts_the_rows_that_a_source_has_today(
    tmp_path: Path, rows: list[Any] | None, kept: int
) -> None:
    """With the lengths and the share of rows of an earlier preparation, which read all five and left one out."""

    def edit(settings: dict[str, Any]) -> None:
        source = {"json": "data/dev.jsonl"} | ({"rows": rows} if rows else {})
        settings["data"]["dev"] = source

    found = experiment(tmp_path, edit)
    longest = Planner(found, CPU).rows["dev"]
    assert longest.bound and longest.count == len(range(5)[slice(*(rows or [None]))])
    folder = tmp_path / "results" / found.name / "data/dev"
    folder.mkdir(parents=True)
    counts = {"rows": 5, "kept": 4}
    tokens = {"prompt": 12, "response": 8}
    (folder / "manifest.json").write_text(json.dumps({"counts": counts, "tokens": tokens}))
    prepared = Planner(found, CPU).rows["dev"]
    assert (prepared.count, prepared.prompt, prepared.response) == (kept, 3, 2)
    assert not prepared.bound


def test_parameters_of_a_folder_are_counted_where_they_are_not_declared(tmp_path: Path) -> None:
    found = local(tmp_path)
    assert found.parameters["teacher"] == safetensors_parameters(tmp_path / "weights")
    assert specs.base(found, "teacher")["parameters"] == found.parameters["teacher"]
    assert Planner(found, CPU).shapes["teacher"].family == "llama"
    with pytest.raises(InputError, match=r"models\.teacher lacks the key parameters: its size"):
        local(tmp_path, weights={"keep_layers": 1})
    (tmp_path / "weights/model.safetensors").unlink()
    with pytest.raises(InputError, match=r"models\.teacher lacks the key parameters: its size"):
        load(tmp_path / "config/experiments/mine.yaml", tmp_path)


def test_prepared_weights_whose_source_is_gone(tmp_path: Path) -> None:
    found = local(tmp_path, parameters="1M")
    base = tmp_path / "results/mine/base/teacher/model"
    base.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (base / file).symlink_to(tmp_path / "weights" / file)
    training = Job("sft", "any", {"model": "teacher", "seed": "1"})
    assert not bad(contents.of_weights(found, [training]))
    (tmp_path / "weights").rename(tmp_path / "elsewhere")
    (said,) = bad(contents.of_weights(found, [training]))
    assert said.level == "error"
    assert (
        "leads to" in said.text
        and f"which is gone; bring it back, or delete {base.parent / 'manifest.json'}" in said.text
    )
    assert not bad(contents.of_weights(found, [Job("data", "any", {"split": "dev"})]))
    assert not bad(contents.of_weights(found, [training, Job("base", "any", {"model": "teacher"})]))


# settings and profile


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"steps": 20}, 20),  # of 100 by default
        ({"steps": 100, "epochs": None}, 100),
        ({"steps": 5000, "epochs": 0.5, "batch_size": 4, "rollouts_per_round": 4, "inner_epochs": 1}, 5),
        ({"steps": 30, "epochs": None, "warmup_steps": 30}, 30),
        ({"steps": 31, "epochs": None, "warmup_steps": 30}, None),
        ({"steps": 30, "warmup_steps": 0}, None),
    ],
)  # fmt: skip
def test_a_training_that_ends_within_its_warm_up(
    training: dict[str, Any], steps: int | None, tmp_path: Path
) -> None:
    found = experiment(tmp_path, lambda settings: settings["training"].update(minillm=training))
    names = {"teacher": "teacher-sft", "student": "student", "method": "minillm", "seed": "1"}
    planner = Planner(found, CPU)
    planned = planner.plan([Job("distill_minillm", "any", names)] * 2)
    said = bad(contents.of_warmup(planner, planned))
    assert len(said) == (steps is not None)
    if steps is not None:
        assert f"ends after {steps} steps, within its warm-up" in said[0].text


def submitted(rule: str, **resources: str) -> Job:
    return Job(rule, "any", {}, {"mem_mb": "64000", "runtime": "600", **resources}, threads=16)


def test_rules_that_a_profile_forgot() -> None:
    listed = submitted("sft", gres="gpu:v100l:4", processes="4")
    unlisted = submitted("distill_new", mem_mb="4000", runtime="10080")
    (said,) = bad(fitting.unlisted("slurm", [listed, unlisted, unlisted]))
    assert said.level == "error"
    assert said.text.startswith(
        "distill_new has no line in set-resources of the profile: its jobs would get no GPU,"
    )
    assert "`distill_new: *training`" in said.text
    (said,) = bad(fitting.unlisted("slurm", [unlisted]))  # what else there was is done
    assert said.level == "error"
    (said,) = bad(fitting.unlisted("slurm", [listed, submitted("evaluate")]))
    assert (said.level, said.text.split(",")[0]) == ("warning", "evaluate asks for no GPU")
    few = Job("generate", "any", {}, {"gres": "gpu:1", "processes": "4"}, threads=1)
    (said,) = bad(fitting.unlisted("slurm", [few]))
    assert said.text.startswith("generate gets 1 cores for 4 processes")
    assert not bad(fitting.unlisted("slurm", [submitted("sft"), submitted("evaluate")]))  # no GPUs
    assert not bad(fitting.unlisted(None, [unlisted]))
    (said,) = fitting.no_rules(["sft", "distill_minilm", "judge"], ["sft", "distill_minillm"])
    assert "names distill_minilm, which is no rule; did you mean 'distill_minillm'?" in said.text


def test_what_rules_ask_for_by_themselves_is_known(project: Project) -> None:
    """Of every rule that computes, without a profile: the marks of a rule that a profile forgot."""
    found = {job.rule: job for job in project.jobs()}
    computing = [job for job in found.values() if job.computes]
    assert {"teacher", "sft", "distill_kd", "distill_minillm", "evaluate", "likelihoods"} <= {
        j.rule for j in computing
    }
    said = bad(fitting.unlisted("slurm", computing))
    assert len(said) == len(computing) and {finding.level for finding in said} == {"error"}


@pytest.mark.parametrize("profile", ["slurm", "slurm-h100"])
def test_profiles_have_a_line_for_every_rule(profile: str) -> None:
    text = (ROOT / f"profiles/{profile}/config.yaml").read_text()
    for method in load(ROOT / "config/experiments/demo.yaml", ROOT).methods:
        assert text.count(f"  distill_{method}: ") == 2


@pytest.mark.slow
def test_a_run_stops_at_its_start_with_all_that_is_wrong(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", small_experiment())
    sets = {name: {"json": f"data/{name}.jsonl"} for name in ("one", "two")}
    for name in sets:
        lines(project.folder / f"data/{name}.jsonl", [{"question": name}])
    project.experiment(lambda settings: settings["evaluation"]["sets"].update(sets))
    printed = project.run(check=False)
    assert printed.count("no key 'instruction'; its keys are 'question'") == 2
    assert "Traceback" not in printed and not list((project.folder / "results").glob("*/data"))


def test_what_is_found_stops_a_run_only_where_it_surely_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Workflow:
        executor_plugin = None

    found = experiment(
        tmp_path, lambda settings: settings["data"].update(train={"json": "data/dev.jsonl"})
    )
    monkeypatch.setattr(start, "of_dag", lambda workflow: jobs(found))
    said = start.check(found, Workflow())
    assert any(line.startswith("Warning: data: 5 of the 5 rows of dev") for line in said)
