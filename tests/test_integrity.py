"""Damaged, missing and exchanged files are named before anything uses them: results by stages and `verify`."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sealing import write_json
from workspace import DECODING, Workspace

from takd.__main__ import main
from takd.analysis.result_files import prompts_read
from takd.analysis.results import read
from takd.evaluation.judge import judge
from takd.runtime import input_check
from takd.runtime.errors import InputError
from takd.runtime.records import DamagedError, read_log, read_record
from takd.runtime.stage import Stage
from takd.runtime.verify import verify

TEACHER, STUDENT = "teacher-sft", "teacher-sft__student-kd"
NODE = {"lineage": TEACHER, "seed": 3}
WRITES = {**NODE, "noise": 1, "decoding": {"temperature": 1.0, "max_new_tokens": 6}}
REPORT = {
    **{"nodes": [[TEACHER, 3], [STUDENT, 3]], "teacher_cache": [[TEACHER, 3, "generations", 1]]},
    **{"sets": ["dev"], "samples": 1, "decoding_seeds": [10, 20]},
    "judge": {"model": "judge"},
}


class AnyJudge:
    def reply(self, prompt: str) -> str:
        return "5 7\nfine"


class Finished:
    """The results of a small experiment, made by the stages' scripts, and what each of them read."""

    def __init__(self, root: Path) -> None:
        self.root, self.results = root, root / "results"
        data = self.results / "data"
        self.space = Workspace(data)
        self.space.folder = self.results
        for model in ("teacher", "student"):
            (data / model).rename(self._made(f"base/{model}"))
            write_json(
                self.results / f"base/{model}/manifest.json",
                {"kind": "base", "spec": {"model": model}},
            )
        self.read: dict[str, tuple[dict[str, Any], dict[str, list[Path]]]] = {}
        taught = {"base": "base/student", "init": "models/student-sft/seed3"}
        self.train("teacher", "sft", base="base/teacher")
        self.train("student", "sft", base="base/student")
        self.write_ahead()
        own = f"teachers/{TEACHER}/seed3"
        place = f"{own}/outputs/train/top_k"
        self.train("student", "kd", teacher=f"models/{TEACHER}/seed3", outputs=place, **taught)
        for name, lineage in (("teacher", TEACHER), ("student", STUDENT)):
            self.measure(name, lineage)
        (data / "report").mkdir()
        (data / "report/report.html").write_text("<!DOCTYPE html>")
        write_json(data / "report/report.json", {"splits": {}})

    def _made(self, place: str) -> Path:
        (self.results / place).parent.mkdir(parents=True, exist_ok=True)
        return self.results / place

    def run(
        self, name: str, script: str, spec: dict[str, Any], read: dict[str, str], **files: str
    ) -> None:
        paths = {k: p if "." in p else f"{p}/manifest.json" for k, p in read.items()}
        self.read[name] = spec, {key: [self.results / path] for key, path in paths.items()}
        self.space.finished(
            self.space.start(
                script,
                spec,
                [f"{key}={path}" for key, path in paths.items()],
                [f"{key}={path}" for key, path in files.items()],
            )
        )

    def train(self, model: str, method: str, **read: str) -> None:
        settings: dict[str, Any] = {"steps": 4, "evaluate_every": 2}
        if method == "kd":
            settings |= {"teacher_outputs": "top_k", "start": "sft"}
        spec = self.space.spec(method, **settings) | {"model": model}
        spec["lineage"] = f"{model}-sft" if method == "sft" else STUDENT
        place = f"models/{spec['lineage']}/seed3"
        outputs = ["model", *(["init"] if method == "sft" else [])]
        read |= {split: f"data/{split}" for split in ("tokenizer", "train", "dev")}
        self.run(
            f"train {spec['lineage']}",
            "train",
            spec,
            read,
            **{name: f"{place}/{name}" for name in outputs},
            metrics=f"{place}/metrics.jsonl",
            manifest=f"{place}/manifest.json",
        )

    def write_ahead(self) -> None:
        own, place = f"teachers/{TEACHER}/seed3", f"teachers/{TEACHER}/seed3/generations"
        part = f"{place}/part1of1"
        read = {"teacher": f"models/{TEACHER}/seed3", "tokenizer": "data/tokenizer"}
        logs = {"metrics": "metrics.jsonl", "manifest": "manifest.json"}
        self.run(
            "generate",
            "generate",
            {**WRITES, "part": 1, "parts": 1},
            {**read, "prompts": "data/train"},
            answers=f"{part}/answers.jsonl",
            **{name: f"{part}/{file}" for name, file in logs.items()},
        )
        self.run(
            "join",
            "join_generations",
            WRITES,
            {**read, "prompts": "data/train", "piece": part},
            dataset=f"{place}/dataset",
            manifest=f"{place}/manifest.json",
        )
        outputs = f"{own}/outputs/train/top_k"
        self.run(
            "outputs",
            "write_outputs",
            {**NODE, "split": "train", "kind": "top_k", "top_k": 3},
            {**read, "data": "data/train"},
            outputs=f"{outputs}/outputs.safetensors",
            **{name: f"{outputs}/{file}" for name, file in logs.items()},
        )
        spec = self.space.spec("seqkd")
        taught = {"tokenizer": "data/tokenizer", "train": place, "dev": "data/dev"}
        paths = {key: [self.results / path / "manifest.json"] for key, path in taught.items()}
        self.read["seqkd"] = spec, paths

    def measure(self, name: str, lineage: str) -> None:
        place = f"evaluations/{lineage}/seed3/dev"
        of = {"lineage": lineage, "seed": 3, "set": "dev", "seeds": [10, 20], "max_length": 16}
        read = {"tokenizer": "data/tokenizer", "data": "data/dev"}
        read["model"] = f"models/{lineage}/seed3"
        files = ("generations.jsonl", "answers.jsonl", "metrics.jsonl", "scores.json")
        self.run(
            f"evaluate {name}",
            "evaluate",
            {**of, "decoding": DECODING},
            read,
            **{file.split(".")[0]: f"{place}/{file}" for file in files},
        )
        teachers = {}
        if lineage == STUDENT:
            teachers = {role: [TEACHER, 3] for role in ("direct", "first")}
            answers = f"evaluations/{TEACHER}/seed3/dev/answers.jsonl"
            read |= {"direct": f"models/{TEACHER}/seed3", "direct_answers": answers}
        self.run(
            f"likelihoods {name}",
            "likelihoods",
            {**of, "teachers": teachers},
            {**read, "answers": f"{place}/answers.jsonl"},
            **{
                file.split(".")[0]: f"{place}/likelihoods/{file}"
                for file in ("prompts.jsonl", "metrics.jsonl", "likelihoods.json")
            },
        )
        asked = {"model": "judge", "rows": None, "seeds": [10], "parallel": 1}
        spec = {**of, "judge": asked}
        self.read[f"judge {name}"] = (
            spec,
            {"generations": [self.results / place / "generations.jsonl"]},
        )
        folder = self.results / place / "judge"
        files = {"judge": folder / "judge.json", "judgements": folder / "judgements.jsonl"}
        store = self.root / name
        store.mkdir()
        judge(Stage(spec, "", self.read[f"judge {name}"][1], files), store, AnyJudge())

    def use(self, reader: str) -> None:
        """What a stage does before its work; the report's stage reads as it goes."""
        if reader == "report":
            evaluations = self.results / "evaluations"
            found = read(REPORT, self.results / "models", evaluations, self.results / "teachers")
            for node in found.nodes:
                list(prompts_read(evaluations, node, "dev"))
        elif reader == "pages":
            input_check.verify({}, {"data_page": [self.results / "data/report/report.html"]})
        else:
            input_check.verify(*self.read[reader], threads=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    done = Finished(tmp_path_factory.mktemp("finished"))
    # what the two stages after the ones that were run find
    for folder in done.results.rglob("checkpoints"):
        shutil.rmtree(folder)
    return done


GENERATIONS = f"teachers/{TEACHER}/seed3/generations"
EVALUATION = f"evaluations/{STUDENT}/seed3/dev"
PLACES = {
    "data/tokenizer/tokenizer/tokenizer.json": "evaluate student",
    "data/tokenizer/tokenizer/tokenizer_config.json": "generate",
    "data/tokenizer/manifest.json": "train student-sft",
    "data/train/dataset/data-00000-of-00001.arrow": "train student-sft",
    "data/train/dataset/state.json": "generate",
    "data/dev/dataset/data-00000-of-00001.arrow": "evaluate teacher",
    "data/dev/manifest.json": "likelihoods teacher",
    "data/report/report.json": "pages",
    "data/report/report.html": "pages",
    "base/student/model/config.json": "train student-sft",
    "base/student/manifest.json": "train student-sft",
    f"models/{TEACHER}/seed3/model/model.safetensors": "generate",
    f"models/{TEACHER}/seed3/model/config.json": "likelihoods student",
    f"models/{TEACHER}/seed3/model/generation_config.json": "evaluate teacher",
    f"models/{TEACHER}/seed3/model/tokenizer.json": "outputs",
    f"models/{TEACHER}/seed3/manifest.json": "join",
    f"models/{TEACHER}/seed3/metrics.jsonl": "report",
    "models/student-sft/seed3/init/model.safetensors": f"train {STUDENT}",
    f"models/{STUDENT}/seed3/manifest.json": "report",
    f"{GENERATIONS}/part1of1/answers.jsonl": "join",
    f"{GENERATIONS}/part1of1/metrics.jsonl": "report",
    f"{GENERATIONS}/dataset/data-00000-of-00001.arrow": "seqkd",
    f"{GENERATIONS}/manifest.json": "seqkd",
    f"teachers/{TEACHER}/seed3/outputs/train/top_k/outputs.safetensors": f"train {STUDENT}",
    f"{EVALUATION}/scores.json": "judge student",
    f"{EVALUATION}/generations.jsonl": "judge student",
    f"{EVALUATION}/answers.jsonl": "likelihoods student",
    f"{EVALUATION}/metrics.jsonl": "report",
    f"{EVALUATION}/likelihoods/likelihoods.json": "report",
    f"{EVALUATION}/likelihoods/prompts.jsonl": "report",
    f"{EVALUATION}/likelihoods/metrics.jsonl": "report",
    f"{EVALUATION}/judge/judge.json": "report",
}
"""Files of every kind, and a stage that reads each."""


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGES = {"flipped": flip, "truncated": truncate, "missing": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", PLACES)
def test_a_damaged_file_is_named_by_the_stage_that_reads_it_and_by_verify(
    finished: Finished, place: str, damage: str
) -> None:
    path, reader = finished.results / place, PLACES[place]
    finished.use(reader)
    whole = path.read_bytes()
    try:
        DAMAGES[damage](path)
        with pytest.raises(InputError) as error:
            finished.use(reader)
        assert str(path) in str(error.value) and "snakemake again" in str(error.value)
        found = verify(finished.results).faults
        named = str(path.parent) if damage == "missing" else str(path)
        assert any(named in fault for fault in found)
    finally:
        path.write_bytes(whole)


def test_whole_results_have_no_fault_here_or_elsewhere(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.results, copy)
    assert main(["verify", str(copy)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    count = sum(path.is_file() for path in copy.rglob("*"))
    size = sum(path.stat().st_size for path in copy.rglob("*") if path.is_file())
    assert line == f"{copy}: {count} files, {size:,} bytes compared, no fault"
    flip(copy / f"models/{TEACHER}/seed3/model/model.safetensors")
    assert main(["verify", str(copy)]) == 1
    fault, line = capsys.readouterr().out.splitlines()
    assert "model.safetensors: is not what was written" in fault and line.endswith("1 fault")
    assert main(["verify", str(tmp_path / "nothing")]) == 1
    assert "no such folder" in capsys.readouterr().err


def exchanged(finished: Finished, tmp_path: Path) -> Path:
    shutil.copytree(finished.results, tmp_path / "results")
    return tmp_path / "results"


def replaced(folder: Path, other: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
        shutil.copytree(other, folder)
    else:
        shutil.copyfile(other, folder)


MODEL, OTHER = f"models/{TEACHER}/seed3", "models/student-sft/seed3"
OF_TEACHER = f"evaluations/{TEACHER}/seed3/dev"
DIFFERS = "model/config.json: is not what was written"
EXCHANGES = {
    "the folder of another model": (f"{MODEL}/model", f"{OTHER}/model", "generate", DIFFERS),
    "with its manifest, too": (
        *(MODEL, OTHER, "generate"),
        "is of kind model, lineage student-sft, seed 3, expected kind model, lineage teacher-sft",
    ),
    "the manifest alone": (
        *(f"{MODEL}/manifest.json", f"{OTHER}/manifest.json", "outputs"),
        "is of kind model, lineage student-sft",
    ),
    "a model that was not trained": (
        *(f"{MODEL}/model", "base/teacher/model", "generate"),
        DIFFERS,
    ),
    "other starting weights": (
        *("base/student", "base/teacher", "train student-sft"),
        "is of kind base, model teacher, expected kind base, model student",
    ),
    "other data": (
        *("data/dev", "data/train", "evaluate teacher"),
        "is of kind data, split train, expected kind data, split dev",
    ),
    "another model's answers": (
        *(EVALUATION, OF_TEACHER, "judge student"),
        "is of lineage teacher-sft, seed 3, set dev, expected lineage teacher-sft__student-kd",
    ),
    "another model's scores": (
        *(EVALUATION, OF_TEACHER, "report"),
        "is of lineage teacher-sft, seed 3, set dev",
    ),
}


@pytest.mark.parametrize(
    ("place", "other", "reader", "said"), EXCHANGES.values(), ids=list(EXCHANGES)
)
def test_what_is_whole_but_of_something_else_is_refused(
    finished: Finished, tmp_path: Path, place: str, other: str, reader: str, said: str
) -> None:
    results = exchanged(finished, tmp_path)
    replaced(results / place, results / other)
    here = SimpleNamespace(results=results, read={
        name: (spec, {key: [results / p.relative_to(finished.results) for p in paths] for key, paths in read.items()})
        for name, (spec, read) in finished.read.items()
    })  # fmt: skip
    with pytest.raises(InputError) as error:
        Finished.use(here, reader)
    assert said in str(error.value)
    assert verify(results).faults


def test_a_file_that_was_not_there_is_no_part_of_a_model(
    finished: Finished, tmp_path: Path
) -> None:
    """A loader would take an index of shards for the model."""
    results = exchanged(finished, tmp_path)
    added = results / f"models/{TEACHER}/seed3/model/model.safetensors.index.json"
    added.write_text("{}")
    stray = results / "models/notes.txt"
    stray.write_text("mine")
    in_folder, elsewhere = verify(results).faults
    assert f"{added}: was not written there" in in_folder
    assert f"{stray}: is named in no record" in elsewhere
    with pytest.raises(InputError, match="was not written there"):
        input_check.verify(NODE, {"teacher": [added.parents[1] / "manifest.json"]})


def test_results_of_another_ancestor_are_told_from_those_here(
    finished: Finished, tmp_path: Path
) -> None:
    results = exchanged(finished, tmp_path)
    manifest = results / f"models/{TEACHER}/seed3/manifest.json"
    record = read_record(manifest)
    write_json(manifest, record | {"steps": 5})
    found = verify(results).faults
    student = results / f"evaluations/{TEACHER}/seed3/dev/scores.json"
    assert f"{student}: was made from another 'model' than the one that lies here" in found


def test_a_stage_refuses_before_it_starts(finished: Finished, tmp_path: Path) -> None:
    """Through its script: one sentence, no traceback, nothing written, with one process and with two."""
    results = exchanged(finished, tmp_path)
    space = finished.space
    weights = results / f"models/{TEACHER}/seed3/model/model.safetensors"
    flip(weights)
    spec, read = finished.read["evaluate teacher"]
    paths = [f"{k}={results / p.relative_to(finished.results)}" for k, (p,) in read.items()]
    outputs = [f"{k}={tmp_path}/new/{k}.json" for k in ("scores", "generations", "answers", "metrics")]  # fmt: skip
    for processes in ("--processes=1", "--processes=2"):
        said = space.finished(space.start("evaluate", spec, paths, outputs, processes), code=1)
        assert f"Error: {weights}: is not what was written" in said
        manifest = weights.parents[1] / "manifest.json"
        assert f"delete {manifest} and start snakemake again" in said
        assert "Traceback" not in said and not (tmp_path / "new").exists()


def test_records_of_before_there_were_digests_say_so(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"kind": "model", "lineage": TEACHER, "seed": 3}))
    with pytest.raises(InputError, match=r"has no digests .*; delete .*manifest.json and start"):
        input_check.verify(NODE, {"teacher": [path]})


def test_linked_weights_are_to_be_fetched_again(tmp_path: Path) -> None:
    """A new manifest would not mend what a link leads to."""
    cached = tmp_path / "cache.safetensors"
    cached.write_bytes(b"weights")
    (tmp_path / "base/model").mkdir(parents=True)
    (tmp_path / "base/model/model.safetensors").symlink_to(cached)
    manifest = tmp_path / "base/manifest.json"
    write_json(manifest, {"kind": "base", "spec": {"model": "student"}})
    input_check.verify({"model": "student"}, {"base": [manifest]})
    flip(cached)
    with pytest.raises(InputError, match=rf"a link to {cached}.*fetch or copy that file again"):
        input_check.verify({"model": "student"}, {"base": [manifest]})


def test_a_log_holds_its_own_digest(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "end", "step": 1}\n')
    with pytest.raises(DamagedError, match="the digest in its last line differs"):
        read_log(path)
