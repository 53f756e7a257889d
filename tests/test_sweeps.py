"""Sweeps: what a setting with several values plans, under which names, how its arms are compared, what is refused."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project
from snakemake.target_jobs import parse_target_jobs_cli_args
from snakemake_interface_executor_plugins.utils import TargetSpec, encode_target_jobs_cli_args
from test_experiment import REVISION, edit, read
from test_statistics import made

from takd.analysis.comparisons import pairs
from takd.experiment import lineage, specs
from takd.experiment.experiment import Experiment
from takd.experiment.labels import chain_text, full_text
from takd.experiment.sweeps import MOST
from takd.runtime.errors import InputError

MINILLM = "minillm: {steps: 20, learning_rate: 5e-5}"
DIRECT = "  - {models: [teacher, student], methods: [kd, minillm], label: direct}\n"
THROUGH = "  - {models: [teacher, assistant, student], methods: [minillm, [kd, minillm]]}\n"
RATES = "{values: [1e-5, 5.0e-5]}"


def swept(minillm: str, *edits: tuple[str, str]) -> str:
    """The experiment with its direct chain alone, and these settings of MiniLLM."""
    text = edit(THROUGH, "", edit(MINILLM, f"minillm: {{{minillm}}}"))
    for old, new in edits:
        text = edit(old, new, text)
    return text


def planned(experiment: Experiment, seed: int = 1) -> set[str]:
    return {node.lineage for node in experiment.nodes if node.seed == seed}


def test_each_value_is_a_chain_and_all_else_is_trained_once(tmp_path: Path) -> None:
    experiment = read(tmp_path, swept(f"steps: 20, learning_rate: {RATES}"))
    low, high = (
        f"teacher-sft__student@learning_rate={rate}-minillm" for rate in ("1e-05", "5e-05")
    )
    assert experiment.lineages == ["teacher-sft__student-kd", low, high]
    assert planned(experiment) == {*experiment.lineages, "teacher-sft", "student-sft"}
    assert planned(experiment, 2) == {*experiment.lineages, "student-sft"}
    assert {chain["label"] for chain in experiment.chains} == {"direct"}
    one, other = (specs.train(experiment, name, 2) for name in (low, high))
    assert (one["settings"]["learning_rate"], other["settings"]["learning_rate"]) == (1e-5, 5e-5)
    assert one["settings"] | {"learning_rate": 5e-5} == other["settings"]
    # one start, as one set of starting weights, whatever the value
    assert one["init"] == other["init"] == ["student-sft", 2] and one["model"] == "student"
    assert [*experiment.settings["models"]] == ["teacher", "assistant", "student", "hub.model"]
    # the settings without a sweep are those of a file that has the one value
    alone = read(tmp_path, swept("steps: 20, learning_rate: 5e-5"))
    plain = specs.train(alone, "teacher-sft__student-minillm", 2)
    assert other == {**plain, "lineage": high}
    assert "arms" not in alone.settings


def test_names_are_names_of_files_and_are_read_as_titles(tmp_path: Path) -> None:
    experiment = read(tmp_path, edit(MINILLM, f"minillm: {{steps: 20, teacher_mix: {RATES}}}"))
    name = "teacher-sft__assistant@teacher_mix=1e-05-minillm__student@teacher_mix=1e-05-minillm"
    assert name in experiment.lineages
    assert chain_text(name) == (
        "teacher → assistant (teacher_mix=1e-05) → student (teacher_mix=1e-05)"
    )
    assert (
        full_text("teacher-sft__student@a=1@b.c=x_y-kd") == "KD: teacher → student (a=1, b.c=x_y)"
    )
    for each in experiment.lineages:
        assert re.fullmatch(lineage.pattern(experiment.methods), each)
        assert lineage.join(lineage.split(each)) == each
        # as Snakemake tells a job on a cluster what to make
        wanted = TargetSpec("distill_minillm", {"lineage": each, "student": name, "seed": "1"})
        assert parse_target_jobs_cli_args(encode_target_jobs_cli_args([wanted])) == [wanted]
    # an assistant by another method has no such setting, and is shared
    assert {"teacher-sft__assistant-kd", name.rpartition("__")[0]} < planned(experiment)
    assert lineage.teacher_of(name) == "teacher-sft__assistant@teacher_mix=1e-05-minillm"


@pytest.mark.parametrize(
    ("settings", "values", "names"),
    [
        # of pretrained weights, as one would adapt them
        ("lora: {alpha: 4, rank: {values: [4, 8]}}", [4, 8], ["lora.rank=4", "lora.rank=8"]),
        (
            "lora: {values: [null, {rank: 2, targets: [q_proj]}]}",
            [None, 2],
            ["lora=null", "lora=rank_2_targets_q_proj"],
        ),
        # lists as values, which one list would not tell from several values
        (
            "betas: {values: [[0.9, 0.95], [0.8, 0.99]]}",
            [[0.9, 0.95], [0.8, 0.99]],
            ["betas=0.9_0.95", "betas=0.8_0.99"],
        ),
        ("reward_clip: {values: [1, 2.5, null]}", [1.0, 2.5, None], ["=1", "=2.5", "=null"]),
        ("whitening: {values: [none, tokens]}", ["none", "tokens"], ["=none", "=tokens"]),
        ("length_normalisation: {values: [true]}", [True], ["length_normalisation=true"]),
    ],
)
def test_values_are_what_the_setting_would_have(
    settings: str, values: list[Any], names: list[str], tmp_path: Path
) -> None:
    pretrained = f"parameters: 1K\n    weights: {{hub: some/small, revision: {REVISION}}}"
    scratch = "weights: {scratch: {layers: 1, width: 32, heads: 4, positions: 64}}"
    text = swept(f"steps: 5, start: base, {settings}", (scratch, pretrained))
    experiment = read(tmp_path, text)
    found = [name for name in experiment.lineages if name.endswith("minillm")]
    assert len(found) == len(values)
    key = settings.partition(":")[0]
    for arm, value, name in zip(found, values, names, strict=True):
        assert arm.removesuffix("-minillm").endswith(name)
        spec = specs.train(experiment, arm, 1)["settings"]
        rank = isinstance(value, int) and key == "lora"
        assert (spec["lora"]["rank"] if rank else spec[key]) == value
        assert not settings.startswith("lora: {alpha") or spec["lora"]["alpha"] == 4
        assert "init" not in specs.train(experiment, arm, 1)


def test_values_of_one_model_and_of_several_settings_are_combined(tmp_path: Path) -> None:
    own = f"training: {{minillm: {{batch_size: 32, learning_rate: {RATES}}}}}"
    text = edit("training: {minillm: {batch_size: 32}}", own)
    text = edit(MINILLM, "minillm: {steps: {values: [2, 3]}}", text)
    experiment = read(tmp_path, edit("[minillm, [kd, minillm]]", "[minillm]", text))
    through = [name for name in experiment.lineages if "assistant" in name]
    assert sorted(lineage.split(name)[1].model for name in through) == [
        f"assistant@steps={steps}@learning_rate={rate}"
        for steps in (2, 3)
        for rate in ("1e-05", "5e-05")
    ]
    assert {lineage.split(name)[2].model for name in through} == {
        "student@steps=2",
        "student@steps=3",
    }
    settings = experiment.training("assistant@steps=3@learning_rate=1e-05", "minillm")
    assert (settings["steps"], settings["learning_rate"], settings["batch_size"]) == (3, 1e-5, 32)
    # what a model has for itself comes first: a sweep for all does not concern it
    text = edit(MINILLM, "minillm: {steps: 2, batch_size: {values: [8, 16]}}")
    experiment = read(tmp_path, edit("[minillm, [kd, minillm]]", "[minillm]", text))
    assert {lineage.split(name)[1].model for name in experiment.lineages} == {
        *("student", "student@batch_size=8", "student@batch_size=16", "assistant")
    }


def test_a_sweep_of_sft_trains_teachers_and_starts_for_each_value(tmp_path: Path) -> None:
    text = swept(
        "steps: 20, teacher_mix: {values: [0, 0.5]}",
        ("sft: {steps: 10}", f"sft: {{steps: 10, learning_rate: {RATES}}}"),
        ("methods: [kd, minillm]", "methods: [minillm]"),
    ).partition("report:")[0]
    experiment = read(tmp_path, text)
    sft = [f"sft.learning_rate={rate}" for rate in ("1e-05", "5e-05")]
    assert experiment.lineages == [
        f"teacher@{rate}-sft__student@{rate}@teacher_mix={mix}-minillm"
        for rate in sft
        for mix in (0, 0.5)
    ]
    starts = {f"{model}@{rate}-sft" for model in ("teacher", "student") for rate in sft}
    assert planned(experiment) == {*experiment.lineages, *starts}
    assert experiment.heads == [f"teacher@{rate}" for rate in sft]
    arm = experiment.lineages[-1]
    assert specs.train(experiment, arm, 2)["init"] == [f"student@{sft[1]}-sft", 2]
    assert specs.train(experiment, f"student@{sft[1]}-sft", 1)["settings"]["learning_rate"] == 5e-5
    compared = specs.likelihoods(experiment, f"student@{sft[1]}-sft", 2, "heldout")["teachers"]
    assert compared == {"first": [f"teacher@{sft[1]}-sft", 1]}
    # a teacher that is there is not trained, and so not swept
    text = edit("  student:\n", "  there:\n    parameters: 9M\n    trained: true\n"
                f"    weights: {{hub: some/model, revision: {REVISION}}}\n  student:\n", text)  # fmt: skip
    experiment = read(tmp_path, edit("[teacher, student]", "[there, student]", text))
    assert {name.partition("__")[0] for name in experiment.lineages} == {"there-given"}


def test_controls_and_budgets_go_with_sweeps(tmp_path: Path) -> None:
    chain = "models: [teacher, student], methods: [minillm]"
    kinds = ("self_teacher", "shuffled_prompts", "sft")
    lines = [chain, *(f"{chain}, control: {kind}" for kind in kinds)]
    text = edit(DIRECT, "".join(f"  - {{{line}}}\n" for line in lines))
    text = edit(THROUGH, "", text)
    text = edit(MINILLM, f"minillm: {{learning_rate: {RATES}}}", text)
    experiment = read(tmp_path, f"{text}budget: {{flops: 1.0e+15}}\n")
    arms = [f"student@learning_rate={rate}" for rate in ("1e-05", "5e-05")]
    assert experiment.lineages == [
        *(f"teacher-sft__{arm}-minillm" for arm in arms),
        *(f"student-sft__{arm}+self-minillm" for arm in arms),
        *(f"teacher-sft__{arm}+shuffled-minillm" for arm in arms),
        "student+sft-sft",
    ]
    assert experiment.heads == ["teacher"] and experiment.ends == set(experiment.lineages)
    settings = experiment.training(f"{arms[1]}+shuffled", "minillm")
    assert (settings["teacher_prompts"], settings["learning_rate"]) == ("shuffled", 5e-5)
    text = edit("control: self_teacher", "label: x, control: self_teacher", text)
    with pytest.raises(InputError, match="is run 2 times, for methods or values of a sweep"):
        read(tmp_path, f"{text}budget: {{chain: x}}\n")


REFUSED = {
    "a list": (
        "learning_rate: [1e-5, 5e-5]",
        "learning_rate is a list, but must be a number; several to try are written {values: […]}.",
    ),
    "a typo in the word": (
        "learning_rate: {value: [1e-5]}",
        "learning_rate is a mapping, but must be a number; several to try are written {values: […]}.",
    ),
    "a typo in the key": (
        "learning_rte: {values: [1e-5]}",
        "learning_rte is not a known key; did you mean 'learning_rate'?",
    ),
    "a typo in a value": (
        "learning_rate: {values: [1e-5, 5e-5, 1e-4x]}",
        "learning_rate.values[2] is '1e-4x', but must be a number.",
    ),
    "a value out of range": (
        "teacher_mix: {values: [0.2, 1.5]}",
        "teacher_mix.values[1] is 1.5, but must be less than 1.",
    ),
    "a value that another rule refuses": (
        "steps: 2, rollouts_per_round: 64, batch_size: {values: [32, 48]}",
        "batch_size.values[1] is 48, which does not divide the 64 rollouts_per_round of the model"
        " 'student@batch_size=48'; it must be one of 1, 2, 4, 8, 16, 32, 64.",
    ),
    "a value within a value": (
        "lora: {values: [null, {rank: {values: [4]}}]}",
        "lora.values[1].rank is a mapping, but must be a whole number; values to try can stand only in place of a"
        " setting of a method, not within others.",
    ),
    "the same value": (
        "learning_rate: {values: [1, 1.0]}",
        "learning_rate.values holds 1.0 twice; each may stand there once.",
    ),
    "no value": (
        "learning_rate: {values: []}",
        "learning_rate.values has 0 entries, but must be a list of one or more values to try.",
    ),
    "one value": (
        "learning_rate: {values: 1e-5}",
        "learning_rate.values is 1e-05, but must be a list of one or more values to try.",
    ),
    "a range": (
        "learning_rate: {values: [1e-5], max: 1e-3}",
        "learning_rate.max is not a known key; there are: values.",
    ),
    "settings of a method": (
        "values: [{steps: 2}, {steps: 3}]",
        "values is not a known key; values to try stand in place of a single setting of a method, such as"
        " learning_rate (docs/recipes.md).",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_sweep_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    settings, said = REFUSED[case]
    text = swept(settings)
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    line = text[: text.index(settings)].count("\n") + 1
    assert str(error.value) == f"config/experiments/mine.yaml, line {line}: training.minillm.{said}"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max_length: 64", "max_length: {values: [64, 96]}", "data.max_length is a mapping, but"),
        ("[10, 20]", "{values: [10, 20]}", "evaluation.seeds is a mapping, but must be"),
        ("[1, 2]", "{values: [1, 2]}", "seeds lacks the key until"),
        ("{json: data/train.jsonl}", "{values: [a, b]}", "values to try stand in place of a"),
        ("layers: 3,", "layers: {values: [2, 3]},", "can stand only in place of a setting of a"),
    ],
)
def test_a_sweep_of_anything_but_a_setting_of_a_method_is_refused(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        read(tmp_path, edit(old, new))


def test_a_sweep_that_changes_no_training_is_refused(tmp_path: Path) -> None:
    for text in (
        edit("kd: {epochs: 2}", "gkd: {epochs: {values: [2, 3]}}", swept("steps: 2")).replace(
            "methods: [kd, minillm]", "methods: [minillm]"
        ),
        # the one model that the method trains has the setting for itself
        edit(
            "training: {minillm: {batch_size: 32}}",
            "training: {minillm: {steps: 4}}",
            swept("steps: {values: [2, 3]}"),
        ).replace("[teacher, student]", "[teacher, assistant]"),
    ):
        with pytest.raises(InputError, match="has several values, but no model of a chain is"):
            read(tmp_path, text)


def test_more_chains_than_anyone_runs_are_refused(tmp_path: Path) -> None:
    many = f"{{values: {[*range(1, 30)]}}}"
    with pytest.raises(InputError, match=rf"chains\[0\] becomes more than {MOST} chains"):
        read(tmp_path, swept(f"steps: {many}, warmup_steps: {many}"))


def test_the_faults_of_a_file_are_told_where_they_stand(tmp_path: Path) -> None:
    text = edit("[teacher, assistant, student]", "[teacher, asistant, student]")
    text = edit("label: direct}", "label: direct, control: sft}", text)
    text = edit(MINILLM, f"minillm: {{steps: 20, learning_rate: {RATES}}}", text)
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    said = str(error.value)
    assert "chains[1].models[1] is 'asistant', which is not a model" in said
    assert "chains[0].control is sft, but the experiment has no budget" in said
    assert len(said.splitlines()) == 2


# -- comparisons and runs ------------------------------------------------------------------------------------------


def test_values_are_compared_with_the_first() -> None:
    """With a method that has no sweep each of them; several sweeps, and hops that differ alike, as one."""
    values = ("lr=1", "lr=2", "lr=3")
    direct = [(["teacher", f"student@{value}"], ["minillm"]) for value in values]
    through = [
        (["teacher", f"assistant@{value}", f"student@{value}@x=1"], ["minillm"] * 2)
        for value in values
    ]
    by_kd = (["teacher", "student"], ["kd"])
    variant = (["teacher", "student.v@lr=1"], ["minillm"])
    models = {"teacher": 9, "assistant": 5, "student": 1, "student.v": 1}
    chains = [*direct, by_kd, *through, variant]
    results = made(lambda *_: np.zeros((2, 2)), chains, prompts=2, models=models)
    first, second, third, kd, *deep, other = (lineage.of_chain(*chain) for chain in chains)
    found = pairs(results)
    assert {(pair.ours, pair.theirs) for pair in found if pair.question == "method"} == {
        *((second, first), (third, first)),
        *((kd, first), (kd, second), (kd, third)),
        *((deep[1], deep[0]), (deep[2], deep[0])),
        *((lineage.prefixes(each)[1], lineage.prefixes(deep[0])[1]) for each in deep[1:]),
        (other, first),
    }
    baselines = {pair.ours: pair.theirs for pair in found if pair.question == "sft"}
    assert baselines[third] == baselines[kd] == "student-sft"
    assert baselines[other] == "student.v-sft"


def test_a_plan_and_a_run_have_a_training_for_each_value(project: Project) -> None:
    """With stages that only write placeholders: names of arms in wildcards, commands and paths."""

    def change(experiment: dict[str, Any]) -> None:
        experiment["chains"] = [{"models": ["teacher", "student"], "methods": ["minillm"]}]
        experiment["training"]["minillm"]["learning_rate"] = {"values": [1e-5, 5e-5]}

    project.experiment(change)
    listed = " ".join(project.run("--dry-run", "--quiet", "rules").split())
    for rate in ("1e-05", "5e-05"):
        assert f"minillm: teacher → student (learning_rate={rate}), seed 1" in listed
    project.run("--quiet", "rules")
    models = project.folder / "results/small/models"
    assert {folder.name for folder in models.iterdir()} == {
        *("teacher-sft", "student-sft"),
        *(f"teacher-sft__student@learning_rate={rate}-minillm" for rate in ("1e-05", "5e-05")),
    }
    # a further value trains one model, and no value that is there
    change_back = {"values": [5e-5, 1e-5, 2e-5]}
    project.experiment(lambda e: e["training"]["minillm"].update(learning_rate=change_back))
    printed = project.run("--dry-run", "--quiet", "rules")
    assert re.findall(r"minillm: teacher → student \((.*?)\), seed 1 +is not", printed) == [
        "learning_rate=2e-05"
    ]
    assert printed.count("minillm: ") == 1


def test_ranks_of_lora_are_compared_in_a_report(forked: Project, tmp_path: Path) -> None:
    """On weights that are there, under a teacher that is there: two adapters, a test between them."""
    project = forked.copy(tmp_path / "project")
    shutil.move(project.folder / "results/small", project.folder / "before")
    weights = "before/models/{}-sft/seed1/model"

    def change(experiment: dict[str, Any]) -> None:
        del experiment["training"]["minillm"]
        for name in ("teacher", "student"):
            experiment["models"][name] = {"weights": {"folder": weights.format(name)}}
        experiment["models"]["teacher"]["trained"] = True
        experiment["tokenizer"] = {"folder": weights.format("student")}
        experiment["chains"] = [{"models": ["teacher", "student"], "methods": ["kd"]}]
        lora = {"rank": {"values": [1, 3]}, "targets": ["c_attn"]}
        experiment["training"]["kd"] = {"steps": 2, "evaluate_every": 2, "lora": lora}

    project.experiment(change)
    project.run("--quiet", "rules")
    results = project.folder / "results/small"
    arms = [f"teacher-given__student@lora.rank={rank}-kd" for rank in (1, 3)]
    assert {folder.name for folder in (results / "models").iterdir()} == {
        *("teacher-given", "student-sft", *arms)
    }
    assert [folder.name for folder in (results / "base").iterdir()] == ["student"]
    for rank, arm in zip((1, 3), arms, strict=True):
        record = json.loads((results / f"models/{arm}/seed1/manifest.json").read_text())
        assert record["spec"]["settings"]["lora"]["rank"] == rank
        assert (
            f"student (lora.rank={rank})" in (results / f"models/{arm}/seed1/card.md").read_text()
        )
    (table,) = results.rglob("differences.csv")
    with table.open(newline="") as file:
        found = {(row["question"], row["ours"], row["theirs"]) for row in csv.DictReader(file)}
    assert found >= {("method", arms[1], arms[0]), ("sft", arms[0], "student-sft")}
    pages = "".join(file.read_text() for file in table.parent.rglob("*.html"))
    assert "KD: teacher → student (lora.rank=3)" in pages
