"""What reruns after an edit, and only that: each from the same finished run, by dry run."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Project, make_project, small_experiment

from takd.runtime import records
from takd.runtime.files import read_json, write_json
from takd.runtime.records import digests, sealed


def scored(models: int) -> dict[str, int]:
    """Jobs that measure so many models on the one evaluation set."""
    return dict.fromkeys(("evaluate", "likelihoods", "card"), models)


BELOW_DATA = {
    "teacher": 1,
    "sft": 2,
    "distill_kd": 1,
    "distill_minillm": 3,
    **scored(7),
    "report": 1,
}
MINILLM = {"distill_minillm": 3, **scored(3), "report": 1}


def append(file: str, text: str) -> Callable[[Project], None]:
    def edit(project: Project) -> None:
        path = project.folder / file
        path.write_text(path.read_text() + text)

    return edit


def code(module: str) -> Callable[[Project], None]:
    return append(f"src/takd/{module}.py", "\n\nADDED = 1\n")


def experiment(edit: Callable[[dict], object]) -> Callable[[Project], None]:
    return lambda project: project.experiment(edit)


def docstring(project: Project) -> None:
    path = project.folder / "src/takd/methods/minillm.py"
    quotes, rest = '"""', path.read_text()
    assert rest.startswith(quotes)
    path.write_text(quotes + "Another beginning. " + rest.removeprefix(quotes))


def touch(project: Project) -> None:
    """Give every file, results and records included, a time stamp of its own, in any order."""
    files = [path for path in project.folder.rglob("*") if path.is_file()]
    random.Random(1).shuffle(files)
    start = time.time() - len(files)
    for count, path in enumerate(files):
        os.utime(path, (start + count, start + count))


def texts_of_runtime(project: Project) -> None:
    """Help texts, log lines, the lock, the launcher, and the scripts that start stages."""
    for path in (project.folder / "src/takd/runtime").glob("*.py"):
        path.write_text(f"{path.read_text()}\n\nADDED = 'more'\n")
    for file, old, new in (
        ("command_line", "threads of each process", "threads that each process has"),
        ("command_line", "inputs compared", "all inputs compared"),
        ("stage_lock", "HEARTBEAT_SECONDS = 5.0", "HEARTBEAT_SECONDS = 7.0"),
        ("launch", "--standalone", "--standalone --tee=3"),
    ):
        project.replace(f"src/takd/runtime/{file}.py", old, new)
    for script in ("train", "evaluate", "start"):
        append(f"workflow/scripts/{script}.py", "\nADDED = 1\n")(project)
    append("src/takd/__main__.py", "\nADDED = 1\n")(project)


def swap(settings: dict) -> None:
    minillm = settings["training"]["minillm"]
    assert minillm["batch_size"] != minillm["evaluate_every"]
    minillm.update(batch_size=minillm["evaluate_every"], evaluate_every=minillm["batch_size"])


def reverse(value: object) -> object:
    """The same settings, the keys of every mapping in the other order."""
    if isinstance(value, dict):
        return {key: reverse(value[key]) for key in reversed(value)}
    return [reverse(item) for item in value] if isinstance(value, list) else value


def reordered(settings: dict) -> None:
    turned = reverse(settings)
    settings.clear()
    settings.update(turned)


def resources(project: Project) -> None:
    for rules in ("train", "evaluate"):
        project.replace(f"rules/{rules}.smk", "mem_mb=4000", "mem_mb=64000")
        project.replace(f"rules/{rules}.smk", "processes=1", "processes=4")
        project.replace(f"rules/{rules}.smk", "runtime=WEEK", "runtime=60")
        project.replace(f"rules/{rules}.smk", "deterministic=0", "deterministic=1")
    project.replace("rules/train.smk", "gradient_checkpointing=0", "gradient_checkpointing=1")


# in the order in which they are made: the last one gives all files other time stamps
CHANGE_NOTHING = {
    "comment": append("src/takd/methods/minillm.py", "\n# a remark\n"),
    "docstring": docstring,
    "key order": experiment(reordered),
    "report caption": lambda p: [
        append(f"workflow/report/{f.name}", "\nMore.\n")(p) for f in captions(p)
    ],
    "resources": resources,
    "runtime, scripts and command line": texts_of_runtime,
    "touch of everything": touch,
}
EDITS = {
    # the losses of all methods stand in it
    "loss": (code("losses/divergences"), BELOW_DATA),
    "another method": (
        code("methods/kd"),
        {"distill_kd": 1, **scored(1), "report": 1},
    ),
    "supervised method": (code("methods/sft"), BELOW_DATA),
    "training loop": (code("training/loop"), BELOW_DATA),
    "evaluation": (code("evaluation/evaluate"), {**scored(7), "report": 1}),
    "likelihoods": (code("evaluation/likelihoods"), {"likelihoods": 7, "card": 7, "report": 1}),
    "report": (code("report/build"), {"report": 1}),
    # the report has the cards as pages
    "card": (code("model_cards/card"), {"card": 7, "report": 1}),
    "what report and cards read": (code("analysis/results"), {"card": 7, "report": 1}),
    "description": (
        experiment(lambda e: e.update(description="Other words.")),
        {"card": 7, "report": 1},
    ),
    "samples": (
        experiment(lambda e: e["report"].update(samples=3)),
        {"report": 1},
    ),
    "two settings swapped": (experiment(swap), MINILLM),
    "seed added": (
        experiment(lambda e: e["seeds"].append(2)),
        {"sft": 2, "distill_kd": 1, "distill_minillm": 3, **scored(6), "report": 1},
    ),
    "chain added": (
        experiment(
            lambda e: e["chains"].append(
                {"models": ["teacher", "assistant", "student"], "methods": [["minillm", "kd"]]}
            )
        ),
        {"distill_kd": 1, **scored(1), "report": 1},
    ),
    # the ends of the chains, not the assistant
    "budget": (
        experiment(lambda e: e.update(budget={"flops": 1e12})),
        {"distill_kd": 1, "distill_minillm": 2, **scored(3), "report": 1},
    ),
    "cost of a chain as the budget": (
        experiment(lambda e: e.update(budget={"chain": "teacher → assistant → student"})),
        {"distill_kd": 1, "distill_minillm": 1, **scored(2), "report": 1},
    ),
    "decoding seed added": (
        experiment(lambda e: e["evaluation"]["seeds"].append(30)),
        {**scored(7), "report": 1},
    ),
    "tokens of ROUGE-L": (
        experiment(lambda e: e["evaluation"].update(rouge_tokenizer="unicode")),
        {"data": 2, "data_report": 1, **BELOW_DATA},
    ),
    "row added": (
        append("data/dev.jsonl", '{"instruction": "Say c.", "output": "c"}\n'),
        {"data": 1, "data_report": 1, **BELOW_DATA},
    ),
}


def captions(project: Project) -> list[Path]:
    found = sorted((project.folder / "workflow/report").glob("*.rst"))
    assert found
    return found


def test_edits_that_change_no_result_rerun_nothing(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "copy")
    assert project.plan() == {}
    for edit in CHANGE_NOTHING.values():
        edit(project)
    if project.plan():  # which of them?
        for name, edit in CHANGE_NOTHING.items():
            project = finished.copy(tmp_path / name)
            edit(project)
            assert (name, project.plan()) == (name, {})
        pytest.fail("all of them together rerun something")


@pytest.mark.parametrize("name", EDITS)
def test_edit_reruns_exactly(finished: Project, tmp_path: Path, name: str) -> None:
    edit, expected = EDITS[name]
    project = finished.copy(tmp_path / "copy")
    edit(project)
    assert project.plan() == expected


def own_files(folder: Path) -> dict:
    """The small experiment on what users bring: rows in files, pretrained weights and a tokenizer in folders."""
    experiment = small_experiment()
    (folder / "rows").mkdir(parents=True)
    for name in ("train", "dev", "first", "second"):
        row = {"instruction": f"Say {name}.", "output": name}
        (folder / f"rows/{name}.jsonl").write_text(json.dumps(row) + "\n")
    experiment["data"] |= {name: {"json": f"rows/{name}.jsonl"} for name in ("train", "dev")}
    experiment["evaluation"]["sets"] = {"first": {"json": "rows/first.jsonl"}}
    for count, name in enumerate(experiment["models"]):
        place = folder / "weights" / name
        place.mkdir(parents=True)
        shape = {"n_layer": 3 - count, "n_embd": 16, "n_head": 2, "n_positions": 64}
        config = {"model_type": "gpt2", "vocab_size": 300, **shape}
        (place / "config.json").write_text(json.dumps(config))
        (place / "model.safetensors").write_bytes(b"weights")
        for beside in ("tokenizer.json", "README.md"):
            (place / beside).write_text("{}")
        experiment["models"][name] = {
            "parameters": 10_000 - 3000 * count,
            "weights": {"folder": f"weights/{name}"},
        }
    experiment["tokenizer"] = {"folder": "weights/teacher"}
    return experiment


@pytest.fixture(scope="module")
def finished_on_files(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Such an experiment after its run."""
    place = tmp_path_factory.mktemp("files")
    done = make_project(place / "project", own_files(place / "brought"))
    shutil.copytree(place / "brought", done.folder, dirs_exist_ok=True)
    done.run("--quiet", "rules")
    return done


def second_set(settings: dict) -> None:
    settings["evaluation"]["sets"]["second"] = {"json": "rows/second.jsonl"}


def moved(old: str, new: str) -> Callable[[Project], None]:
    """Move a file or folder, and say so in the experiment."""

    def edit(project: Project) -> None:
        (project.folder / new).parent.mkdir(exist_ok=True)
        (project.folder / old).rename(project.folder / new)
        path = project.folder / "config/experiments/small.yaml"
        path.write_text(path.read_text().replace(old, new))

    return edit


def overwritten(file: str) -> Callable[[Project], None]:
    def edit(project: Project) -> None:
        path = project.folder / file
        path.write_bytes(bytes(path.stat().st_size))

    return edit


SECOND = {"data": 1, "data_report": 1, "evaluate": 7, "likelihoods": 7, "card": 7, "report": 1}
NAMED = {"card": 7, "report": 1}
EDITS_OF_FILES = {
    "a note beside the weights, and a touch of everything": (
        lambda p: [append("weights/student/README.md", "Mine.")(p), touch(p)],
        {},
    ),
    "evaluation set added": (experiment(second_set), SECOND),
    "evaluation set edited": (
        append("rows/first.jsonl", '{"instruction": "Say c.", "output": "c"}\n'),
        SECOND,
    ),
    "seed added": EDITS["seed added"],
    "training row added": (
        append("rows/train.jsonl", '{"instruction": "Say c.", "output": "c"}\n'),
        {"data": 1, "data_report": 1, **BELOW_DATA},
    ),
    # the report and the cards name places
    "training rows moved": (
        moved("rows/train.jsonl", "elsewhere/t.jsonl"),
        {"data_report": 1, **NAMED},
    ),
    "evaluation set moved": (
        moved("rows/first.jsonl", "elsewhere/f.jsonl"),
        {"data_report": 1, **NAMED},
    ),
    "weights moved": (moved("weights/teacher", "elsewhere/teacher"), {"card": 5, "report": 1}),
    "weights overwritten by others of the same size": (
        overwritten("weights/student/model.safetensors"),
        {"base": 1, "sft": 1, "distill_kd": 1, "distill_minillm": 2, **scored(4), "report": 1},
    ),
    "weights edited": (
        append("weights/student/model.safetensors", "more"),
        {"base": 1, "sft": 1, "distill_kd": 1, "distill_minillm": 2, **scored(4), "report": 1},
    ),
}


@pytest.mark.parametrize("name", EDITS_OF_FILES)
def test_edit_reruns_exactly_where_all_comes_from_files(
    finished_on_files: Project, tmp_path: Path, name: str
) -> None:
    edit, expected = EDITS_OF_FILES[name]
    project = finished_on_files.copy(tmp_path / "copy")
    edit(project)
    assert project.plan() == expected


def test_links_follow_weights_to_another_place(finished_on_files: Project, tmp_path: Path) -> None:
    """No job runs for weights that only moved, and those that read them must find them."""
    project = finished_on_files.copy(tmp_path / "copy")
    base = project.folder / "results/small/base/teacher"
    (base / "model/weights").unlink()
    for file in sorted((project.folder / "weights/teacher").glob("*.json")):
        (base / "model" / file.name).symlink_to(file)
    record = read_json(base / "manifest.json")
    record["files"] = digests([base / "model"], base)
    write_json(base / "manifest.json", sealed(record))
    moved("weights/teacher", "elsewhere/teacher")(project)
    project.run("results/small/data/report/report.html", "--forcerun", "data_report")
    assert not records.faults(base / "manifest.json", record)
    assert "elsewhere" in str((base / "model/config.json").readlink())


def test_a_set_that_the_training_rows_must_not_hold_decides_them(
    finished_on_files: Project, tmp_path: Path
) -> None:
    project = finished_on_files.copy(tmp_path / "copy")
    project.experiment(lambda e: e["data"].update(drop_leaks=True))
    assert "results/small/data/train/dataset" in project.outputs()
    project.run("--quiet", "rules")
    project.experiment(second_set)
    assert project.plan()["data"] == 2  # the new set, and the training rows


def another_time(project: Project) -> None:
    logs = sorted(project.folder.glob("results/small/teachers/**/metrics.jsonl"))
    assert len(logs) == 3  # of the responses in two parts, and of the outputs
    for log in logs:
        log.write_text('{"seconds": 1}')


SEQKD = {"distill_seqkd": 2, **scored(2), "report": 1}
KD = {"distill_kd": 2, **scored(2), "report": 1}
WRITING_EDITS = {
    "likeliest tokens": (
        experiment(lambda e: e["teacher_cache"].update(top_k=9)),
        {"teacher_outputs": 1, **KD},
    ),
    "seed of the responses": (
        experiment(lambda e: e["teacher_cache"].update(seed=6)),
        {"generate": 2, "generations": 1, **SEQKD},
    ),
    "another kind of outputs": (
        experiment(lambda e: [e["training"]["kd"].update(teacher_outputs="hidden"), e["teacher_cache"].pop("top_k")]),
        {"teacher_outputs": 1, **KD},
    ),
    # times are in no manifest
    "another time that it took": (another_time, {"report": 1}),
    "code of the outputs": (code("teacher_cache/outputs"), {"teacher_outputs": 1, **KD}),
    "code of the responses": (
        code("teacher_cache/responses"),
        {"generate": 2, "generations": 1, **SEQKD},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITING_EDITS)
def test_edit_of_what_a_teacher_writes_reruns_exactly(
    finished_writing: Project, tmp_path: Path, name: str
) -> None:
    edit, expected = WRITING_EDITS[name]
    project = finished_writing.copy(tmp_path / "copy")
    edit(project)
    assert project.plan() == expected


def test_another_number_of_shards_keeps_the_students(
    finished_writing: Project, tmp_path: Path
) -> None:
    """The joined responses are the same: who does them first needs nothing more than a report with their new costs."""
    project = finished_writing.copy(tmp_path / "copy")
    assert project.plan() == {}
    project.experiment(lambda e: e["teacher_cache"].update(shards=3))
    # Snakemake cannot know what comes out
    assert project.plan() == {"generate": 3, "generations": 1, **SEQKD}
    assert project.plan("--until", "generations") == {"generate": 3, "generations": 1}
    project.run("--quiet", "rules", "--until", "generations")
    assert project.plan() == {"report": 1}


def test_copy_elsewhere_with_new_times(finished: Project, tmp_path: Path) -> None:
    """A clone in another folder, results and records copied in, reruns nothing."""
    project = finished.copy(tmp_path / "elsewhere" / "clone")
    touch(project)
    assert "Nothing to be done" in project.run("--quiet", "rules")


def test_work_that_changed_nothing_stops_the_chain(finished: Project, tmp_path: Path) -> None:
    """`--until` redoes the upper stages alone; where their manifests stay the same, nothing follows."""
    project = finished.copy(tmp_path / "copy")
    assert project.plan("--forcerun", "data")["distill_minillm"] == 3
    project.run("--quiet", "rules", "--forcerun", "data", "--until", "data")
    assert project.plan() == {}


def test_touch_accepts_a_change(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "copy")
    code("methods/minillm")(project)
    assert project.plan() == MINILLM
    project.run("--quiet", "rules", "--touch")
    assert project.plan() == {}


def test_without_records_times_decide(finished: Project, tmp_path: Path) -> None:
    """Results copied without .snakemake: rerun at the whim of time stamps, until --touch --forceall."""
    project = finished.copy(tmp_path / "copy")
    shutil.rmtree(project.folder / ".snakemake")
    touch(project)
    assert project.plan()
    project.run("--quiet", "rules", "--touch", "--forceall")
    touch(project)
    assert project.plan() == {}
    code("methods/minillm")(project)
    assert project.plan() == MINILLM
