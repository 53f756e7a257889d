"""What a run would do, by dry run: which models, each once, and from what."""

import re
from collections import Counter

import pytest
from conftest import Project, small_experiment, writing_experiment

SHAPE = {"architecture": "gpt2", "layers": 1, "heads": 2, "positions": 64}


def with_models(count: int) -> dict:
    """Models m0 (the largest) to m<count - 1>, without chains."""
    experiment = small_experiment()
    experiment["models"] = {
        f"m{i}": {"weights": {"scratch": {**SHAPE, "width": 16 * (count - i)}}}
        for i in range(count)
    }
    return experiment


def write(project: Project, experiment: dict) -> None:
    def edit(settings: dict) -> None:
        settings.clear()
        settings.update(experiment)

    project.experiment(edit)


@pytest.mark.parametrize("assistants", [0, 3])
def test_any_number_of_assistants(project: Project, assistants: int) -> None:
    experiment = with_models(assistants + 2)
    experiment["chains"] = [{"models": list(experiment["models"]), "methods": ["minillm"]}]
    write(project, experiment)
    jobs = project.plan()
    assert jobs["base"] == assistants + 2
    assert jobs["teacher"] == 1 and jobs["sft"] == assistants + 1
    assert jobs["distill_minillm"] == assistants + 1
    assert jobs["evaluate"] == jobs["likelihoods"] == 2 * assistants + 3
    assert jobs["data"] == 3
    assert "distill_kd" not in jobs


def test_shared_prefixes_once_for_each_method_and_seed(project: Project) -> None:
    experiment = with_models(4)
    experiment["seeds"] = [1, 2]
    experiment["chains"] = [
        {"models": ["m0", "m3"], "methods": ["kd", "minillm"]},
        {"models": ["m0", "m1", "m3"], "methods": ["kd", "minillm"]},
        {"models": ["m0", "m1", "m2", "m3"], "methods": ["minillm", ["minillm", "kd", "minillm"]]},
    ]
    write(project, experiment)
    made = project.outputs()
    assert max(Counter(made).values()) == 1
    models = [re.search(r"/models/(\S+)/seed(\d)/", path) for path in made]
    trained = {(found[1], found[2]) for found in models if found}
    students = {
        "m1-sft",
        "m2-sft",
        "m3-sft",
        "m0-sft__m3-kd",
        "m0-sft__m3-minillm",
        "m0-sft__m1-kd",
        "m0-sft__m1-kd__m3-kd",
        "m0-sft__m1-minillm",
        "m0-sft__m1-minillm__m3-minillm",
        "m0-sft__m1-minillm__m2-minillm",
        "m0-sft__m1-minillm__m2-minillm__m3-minillm",
        "m0-sft__m1-minillm__m2-kd",
        "m0-sft__m1-minillm__m2-kd__m3-minillm",
    }
    # the teacher at the head of the chains is trained once, its students once a seed
    assert trained == {("m0-sft", "1")} | {(name, seed) for name in students for seed in "12"}


WRITING = ("generate", "generations", "teacher_outputs")


def written(jobs: dict[str, int]) -> tuple[int, ...]:
    """Jobs of each rule that lets a teacher write something down."""
    return tuple(jobs.get(rule, 0) for rule in WRITING)


def test_a_teacher_writes_only_what_is_asked_for(project: Project) -> None:
    assert written(project.plan()) == (0, 0, 0)


def test_what_a_teacher_writes_is_made_once_for_its_students(project: Project) -> None:
    experiment, shards = writing_experiment(), 3
    experiment["teacher_cache"]["shards"] = shards
    experiment["seeds"] = [1, 2]
    write(project, experiment)
    jobs = project.plan()
    assert (jobs["distill_seqkd"], jobs["distill_kd"]) == (4, 4)
    assert written(jobs) == (shards, 1, 1)
    # an assistant is another model for each seed, and writes for its own students
    chain = {"models": ["teacher", "assistant", "student"], "methods": [["seqkd", "seqkd"]]}
    experiment["chains"].append(chain)
    write(project, experiment)
    assert written(project.plan()) == (3 * shards, 3, 1)


def reads(project: Project, *names: str) -> dict[str, set[str]]:
    """What each job reads that trains one of the models, or a model above it, or that writes something for it."""
    targets = [f"results/small/models/{name}/manifest.json" for name in names]
    printed = project.run("--dry-run", *targets)
    rules = re.findall(r"^rule \w+:\n    input: (.*)\n    output: (\S+)/[\w.]+,", printed, re.M)
    return {
        output.removeprefix("results/small/").removeprefix("models/"): {
            path.removeprefix("results/small/").removesuffix("/manifest.json")
            for path in paths.split(", ")
        }
        for paths, output in rules
    }


def test_what_a_distillation_reads(project: Project) -> None:
    """Its own teacher, its own start; the corpus only where the method reads one."""
    (project.folder / "corpus.txt").write_text("plain text\n")
    project.experiment(lambda e: e["data"].update(corpus={"text": "corpus.txt"}))
    project.experiment(lambda e: e.update(seeds=[1, 2]))
    names = ["teacher-sft__student-kd", "teacher-sft__assistant-minillm__student-minillm"]
    inputs = reads(project, *(f"{name}/seed2" for name in names))
    data = {"data/tokenizer", "data/train", "data/dev"}
    assert inputs["teacher-sft/seed1"] == {*data, "base/teacher"}
    assert inputs["teacher-sft__student-kd/seed2"] == {
        *data,
        "models/teacher-sft/seed1",
        "base/student",
    }
    assert inputs["teacher-sft__assistant-minillm/seed2"] == {
        *data,
        "data/corpus",
        "models/teacher-sft/seed1",
        "models/assistant-sft/seed2",
    }
    assert inputs["teacher-sft__assistant-minillm__student-minillm/seed2"] == {
        *data,
        "data/corpus",
        "models/teacher-sft__assistant-minillm/seed2",
        "models/student-sft/seed2",
    }


def test_what_is_read_of_what_a_teacher_wrote(project: Project) -> None:
    """Its responses in the place of the labels, what it says of them, and what it says of the corpus."""
    (project.folder / "corpus.txt").write_text("plain text\n")

    def edit(experiment: dict) -> None:
        experiment["data"]["corpus"] = {"text": "corpus.txt"}
        experiment["training"]["kd"].update(responses="teacher", teacher_outputs="top_k")
        experiment["training"]["minillm"].update(lm_teacher_outputs="hidden")
        experiment["teacher_cache"] = {"top_k": 8}

    project.experiment(edit)
    inputs = reads(project, *(f"teacher-sft__student-{name}/seed1" for name in ("kd", "minillm")))
    place, data = "teachers/teacher-sft/seed1", {"data/tokenizer", "data/dev"}
    writes = {"data/tokenizer", "models/teacher-sft/seed1"}
    assert inputs["teacher-sft__student-kd/seed1"] == {
        *data,
        "base/student",
        "models/teacher-sft/seed1",
        f"{place}/generations",
        f"{place}/outputs/generations/top_k",
    }
    assert inputs[f"{place}/outputs/generations/top_k"] == {*writes, f"{place}/generations"}
    assert inputs["teacher-sft__student-minillm/seed1"] == {
        *data,
        "data/train",
        "data/corpus",
        "models/student-sft/seed1",
        "models/teacher-sft/seed1",
        f"{place}/outputs/corpus/hidden",
    }
    assert inputs[f"{place}/outputs/corpus/hidden"] == {*writes, "data/corpus"}


def test_paper_experiment_trains_shared_models_once(project: Project) -> None:
    made = project.outputs("--config", "experiment=gpt2-dolly")
    assert max(Counter(made).values()) == 1
    lineages = {found[1] for path in made if (found := re.search(r"/models/([^/]+)/seed", path))}
    ends = [name for name in lineages if name.count("__")]
    # every teacher of a chain is among the models, so that prefixes are shared
    assert {name.rpartition("__")[0] for name in ends} <= lineages
    assert max(name.count("__") for name in ends) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "experiment=nowhere"], "Error: There is no experiment 'nowhere'"),
        (["--config", "nonsense=1"], "Error: "),
    ],
)
def test_refuses_in_one_sentence(project: Project, arguments: list[str], says: str) -> None:
    printed = project.run("--dry-run", *arguments, check=False)
    assert says in printed
    assert "Traceback" not in printed and "Job stats" not in printed


def test_missing_data_stop_a_run_but_no_plan(project: Project) -> None:
    project.experiment(lambda e: e["data"].update(dev={"json": "nowhere/dev.jsonl"}))
    assert project.plan()["data"] == 3
    printed = project.run(check=False)
    assert "nowhere/dev.jsonl" in printed
    assert "Traceback" not in printed
    assert not (project.folder / "results").exists()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("takd.runtime.errors.InputError('line 3 is bad')", "Error: line 3 is bad"),
        ("OSError('disk full')", "Error: OSError: disk full"),
    ],
)
def test_failure_of_a_stage_is_told_on_the_console(project: Project, error: str, says: str) -> None:
    """The quiet local profile shows no logs; a sentence has to do."""
    fake = f"import takd.runtime.errors\n\ndef run(stage):\n    raise {error}\n"
    (project.folder / "fakes.py").write_text(fake)
    target = "results/small/data/tokenizer/manifest.json"
    printed = project.run(target, "--profile", "profiles/local", check=False)
    assert f"\n{says}\n" in printed
    assert "Traceback" not in printed
    assert (
        says.removeprefix("Error: ")
        in (project.folder / "logs/small/data/tokenizer.log").read_text()
    )
