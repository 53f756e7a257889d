"""What a teacher writes down once for all its students: its responses, and what it says of given tokens."""

import errno
import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_from_disk
from models_for_tests import MINILLM_PAPER, context, tiny_gpt2
from safetensors.torch import load_file, save_file
from workspace import STUDENT, TEACHER, Workspace, of_split

from takd.decoding import resumable
from takd.losses import divergences
from takd.losses.teacher_logits import LiveTeacher, StoredOutputs, StoredTeacher
from takd.methods.base import Example, examples, laid_out
from takd.methods.kd import DIVERGENCES, Kd
from takd.methods.minillm import MiniLLM
from takd.models.tokenizer_check import ALSO_END
from takd.runtime.checkpoints import sweep
from takd.runtime.errors import InputError
from takd.runtime.metrics_log import SPENT
from takd.runtime.stage import PIECE, Interrupted, Stage
from takd.teacher_cache import merge, outputs, responses
from takd.teacher_cache.tensor_file import TensorFile

END, VOCABULARY, TOP_K = 0, 12, 4
FILES = {"metrics": "metrics.jsonl", "manifest": "manifest.json"}
SPEC = {"lineage": "teacher-sft", "seed": 3}
WRITES = {**SPEC, "noise": 1, "decoding": {"temperature": 1.0, "max_new_tokens": 6}}


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """A prepared folder with a teacher far from uniform, and rows of many lengths, one without a prompt."""
    space = Workspace(tmp_path_factory.mktemp("workspace"))
    for name, seed, width, output, said in (
        ("trained-teacher", 1, 32, "model", TEACHER),
        ("trained-student", 2, 16, "init", STUDENT),
    ):
        folder = space.folder / name
        tiny_gpt2(seed, VOCABULARY, width, positions=32).save_pretrained(folder / output)
        space.manifest(name, **said)
    rows = [
        {"id": 10 + i, "prompt_ids": [2 + j % 9 for j in range(i % 5)], "response_ids": ids}
        for i, ids in enumerate([[3, 4, END], [END], [5] * 7, [6, END], [7, 8, 9, END], [2, 2]])
    ]
    Dataset.from_list(rows).save_to_disk(space.folder / "odd" / "dataset")
    space.manifest("odd", **of_split("odd"))
    return space


def stage(space, name, spec, inputs, files, **more):
    """A stage that reads and writes below the folder."""
    manifests = {
        key: [space.folder / folder / "manifest.json" for folder in folders]
        for key, folders in {"tokenizer": ["tokenizer"], **inputs}.items()
    }
    (space.folder / name).mkdir(exist_ok=True, parents=True)
    outputs_ = {key: space.folder / name / file for key, file in files.items()}
    return Stage(spec=spec, code="code", inputs=manifests, outputs=outputs_, **more)


def generated(space, name, part, parts, spec=WRITES, **more):
    """The stage that answers one part of the prompts."""
    return stage(
        space,
        f"{name}/part{part}of{parts}",
        {**spec, "part": part, "parts": parts},
        {"teacher": ["trained-teacher"], "prompts": ["train"]},
        {"answers": "answers.jsonl", **FILES},
        **more,
    )


def joined(space, name, parts, spec=WRITES):
    """The stage that joins all parts."""
    pieces = [f"{name}/part{part}of{parts}" for part in range(1, parts + 1)]
    return stage(
        space,
        name,
        spec,
        {PIECE: pieces, "teacher": ["trained-teacher"], "prompts": ["train"]},
        {"dataset": "dataset", "manifest": "manifest.json"},
    )


def written(space, name, kind, data, spec=SPEC, **more):
    """The stage that writes down what the teacher says of some data."""
    likeliest = {"top_k": TOP_K} if kind == "top_k" else {}
    return stage(
        space,
        name,
        {**spec, "split": data, "kind": kind, **likeliest},
        {"teacher": ["trained-teacher"], "data": [data]},
        {"outputs": "outputs.safetensors", **FILES},
        **more,
    )


def generations(space, name, parts=1, spec=WRITES, tokenizer="tokenizer"):
    """A whole data set of the teacher's responses."""
    stages = [
        generated(space, name, part, parts, spec, micro_batch=1 + 2 * part)
        for part in range(1, parts + 1)
    ]
    for each, run in [
        *((s, responses.run) for s in stages),
        (joined(space, name, parts, spec), merge.run),
    ]:
        each.inputs["tokenizer"] = [space.folder / tokenizer / "manifest.json"]
        run(each)
    return load_from_disk(str(space.folder / name / "dataset"))


def test_any_number_of_parts_gives_the_same_data_set_and_manifest(space):
    one, three = generations(space, "one"), generations(space, "three", parts=3)
    assert one.to_list() == three.to_list()
    manifests = [(space.folder / n / "manifest.json").read_bytes() for n in ("one", "three")]
    assert manifests[0] == manifests[1]
    # more parts than rows: some are empty
    many = generations(space, "many", parts=25)
    assert many.to_list() == one.to_list()


def test_a_response_that_ends_at_another_end_token_is_a_label_that_ends_as_all_do(space):
    """The end tokens of a chat model; what is cut at the limit has none."""
    one = generations(space, "ends-one")["response_ids"]
    said = Counter(token for ids in one for token in ids if token != END)
    ((other, count),) = said.most_common(1)
    folder = space.folder / "several/tokenizer"
    shutil.copytree(space.folder / "tokenizer", folder.parent)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, ALSO_END: [other]}))
    several = generations(space, "ends-several", tokenizer="several")["response_ids"]
    assert count > 3
    for alone, cut in zip(one, several, strict=True):
        begun = alone[: alone.index(other)] if other in alone else alone
        assert cut == ([*begun, END] if other in alone else alone)


def test_generations_are_a_prepared_split_with_the_teachers_words(space):
    found, train = generations(space, "words"), load_from_disk(str(space.folder / "train/dataset"))
    assert found.column_names == train.column_names
    for name in ("id", "prompt_ids", "instruction", "input"):
        assert found[name] == train[name]
    assert found["response_ids"] != train["response_ids"]
    for row in found:
        text = space.tokenizer.decode(row["response_ids"], skip_special_tokens=True)
        assert row["references"] == [text]
        assert END not in row["response_ids"][:-1]
    cut = [row["response_ids"] for row in found if row["response_ids"][-1] != END]
    assert cut and all(len(response) == 6 for response in cut)
    manifest = json.loads((space.folder / "words/manifest.json").read_text())
    assert manifest["counts"] == {"rows": len(train), "cut_responses": len(cut)}
    assert manifest["tokens"]["response"] == sum(map(len, found["response_ids"]))


@pytest.mark.parametrize("change", [{"noise": 2}, {"decoding": {"temperature": 0.2}}])
def test_generations_follow_seed_and_temperature(space, change):
    decoding = {**WRITES["decoding"], **change.get("decoding", {})}
    other = generations(
        space, f"other-{next(iter(change))}", 1, {**WRITES, **change, "decoding": decoding}
    )
    assert other["response_ids"] != generations(space, "plain")["response_ids"]


def test_missing_answers_are_refused(space):
    for part in (1, 2):
        responses.run(generated(space, "gap", part, 2))
    lines = (space.folder / "gap/part1of2/answers.jsonl").read_text().splitlines(keepends=True)
    (space.folder / "gap/part1of2/answers.jsonl").write_text("".join([*lines[:2], *lines[3:]]))
    with pytest.raises(InputError, match=r"one response to each of 24 prompts \(see row 4\)"):
        merge.run(joined(space, "gap", 2))
    assert not (space.folder / "gap/manifest.json").exists()


def test_interrupted_generation_draws_only_what_is_left(space, monkeypatch):
    drawn = []

    def spy(model, prompts, *args, real=resumable.draw, **kwargs):
        drawn.append(len(prompts))
        return real(model, prompts, *args, **kwargs)

    monkeypatch.setattr(resumable, "draw", spy)
    with pytest.raises(Interrupted, match="1 of 24 responses are kept"):
        responses.run(generated(space, "stopped", 1, 1, micro_batch=1, stop_requested=True))
    folder = space.folder / "stopped/part1of1"
    assert not (folder / "manifest.json").exists()
    (store,) = folder.glob("checkpoints/*/answers.jsonl")
    with open(store, "a") as file:
        file.write('{"row": 7, "seed": 1, "tok')  # a half-written line
    responses.run(generated(space, "stopped", 1, 1, micro_batch=2))
    assert drawn == [24, 23]
    responses.run(generated(space, "unstopped", 1, 1))
    # a manifest knows no time
    for name in ("answers.jsonl", "manifest.json"):
        whole = space.folder / "unstopped/part1of1" / name
        assert (folder / name).read_bytes() == whole.read_bytes()
    sweep(folder)
    assert (folder / "manifest.json").exists() and not (folder / "checkpoints").exists()


def ended(folder):
    """The one line of a stage's log."""
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    return json.loads(line)


def test_log_of_what_a_teacher_wrote_says_how_long_on_what_and_by_which_code(space):
    asked = generated(space, "logged", 1, 2, git_commit="abc")
    responses.run(asked)
    found = [json.loads(line)["tokens"] for line in asked.outputs["answers"].open()]
    end = ended(space.folder / "logged/part1of2")
    assert 0 < end.pop("seconds") < 60 and 0 < end.pop("cpu_seconds") < 60 and end.pop("digest")
    said = {"kind": "end", "device": "cpu", "processes": 1, "commit": "abc", "code": "code"}
    assert end == {**said, "step": 12, "tokens": sum(map(len, found))}
    for data, rows in (("odd", 6), ("corpus", 6)):
        outputs.run(written(space, f"logged-{data}", "top_k", data, git_commit="abc"))
        end = ended(space.folder / f"logged-{data}")
        assert 0 < end.pop("seconds") < 60 and 0 < end.pop("cpu_seconds") < 60 and end.pop("digest")
        dataset = load_from_disk(str(space.folder / data / "dataset"))
        columns = [dataset[name] for name in dataset.column_names if name.endswith("_ids")]
        # whole texts, as a training counts them
        tokens = sum(len(text) for column in columns for text in column)
        assert end == {**said, "step": rows, "tokens": tokens}


@pytest.mark.parametrize("stage_name", ["generate", "outputs"])
def test_time_of_all_attempts_is_counted(space, monkeypatch, stage_name):
    name = f"slow-{stage_name}"

    def slowly(function):
        def call(*args, **kwargs):
            end = time.process_time() + 0.4
            while time.process_time() < end:
                pass
            return function(*args, **kwargs)

        return call

    def attempt(**more):
        if stage_name == "generate":
            responses.run(generated(space, f"{name}/parts", 1, 1, micro_batch=1, **more))
        else:
            outputs.run(written(space, name, "top_k", "odd", **more))

    folder = space.folder / (f"{name}/parts/part1of1" if stage_name == "generate" else name)
    monkeypatch.setattr(outputs, "PORTION", 5)
    with monkeypatch.context() as patched:
        patched.setattr(resumable, "draw", slowly(resumable.draw))
        patched.setattr(outputs, "_portion", slowly(outputs._portion))
        with pytest.raises(Interrupted):
            attempt(stop_requested=True)
    (note,) = folder.glob(f"checkpoints/*/{SPENT}")
    spent = json.loads(note.read_text())
    before = spent["seconds"]
    assert min(before, spent["cpu_seconds"]) > 0.4 and not (folder / "metrics.jsonl").exists()
    began = time.monotonic()
    attempt()
    first = ended(folder)
    assert before < first["seconds"] < before + time.monotonic() - began
    # Snakemake may delete what it could not note as done: the log has one line again, and more time
    for file in FILES.values():
        (folder / file).unlink()
    attempt()
    second = ended(folder)
    assert second.pop("seconds") > first.pop("seconds")
    # the clock of CPU time ticks in hundredths of a second
    assert second.pop("cpu_seconds") >= first.pop("cpu_seconds") >= spent["cpu_seconds"]
    assert second.pop("digest") != first.pop("digest") and second == first


def test_killed_generation_ends_with_the_same_answers(space):
    """The stage as a process, through its script."""
    space.data("long", 160)

    def start(micro_batch):
        return space.start(
            "generate",
            {**WRITES, "part": 1, "parts": 1},
            [f"{key}/manifest.json" for key in ("teacher=trained-teacher", "prompts=long", "tokenizer=tokenizer")],
            [f"{key}.jsonl" for key in ("answers=killed/answers", "metrics=killed/metrics")]
            + ["manifest=killed/manifest.json"],
            f"--micro-batch={micro_batch}",
        )  # fmt: skip

    process = start(1)
    while not [
        p for p in space.folder.glob("killed/checkpoints/*/answers.jsonl") if p.stat().st_size
    ]:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (store,) = space.folder.glob("killed/checkpoints/*/answers.jsonl")
    assert 0 < store.read_text().count("\n") < 160
    assert "160 responses" in space.finished(start(64))
    killed = [json.loads(x) for x in (space.folder / "killed/answers.jsonl").open()]
    whole = stage(
        space,
        "whole",
        {**WRITES, "part": 1, "parts": 1},
        {"teacher": ["trained-teacher"], "prompts": ["long"]},
        {"answers": "answers.jsonl", **FILES},
    )
    responses.run(whole)
    assert killed == [json.loads(x) for x in whole.outputs["answers"].open()]
    assert [answer["row"] for answer in killed] == list(range(160))


def stored(space, name, kind, data, monkeypatch=None):
    if monkeypatch is not None:
        monkeypatch.setattr(outputs, "PORTION", 5)  # several portions
    outputs.run(written(space, name, kind, data, micro_batch=2))
    return StoredOutputs(space.folder / name / "outputs.safetensors")


def rows_of(space, data):
    dataset = load_from_disk(str(space.folder / data / "dataset"))
    if data == "corpus":
        return [Example(-1, i, [], block) for i, block in enumerate(dataset["input_ids"])]
    return examples(dataset, range(len(dataset)))


@pytest.fixture(scope="module")
def models():
    """Student and teacher; the teacher is that of the folder."""
    student = tiny_gpt2(2, VOCABULARY, positions=32)
    return student, tiny_gpt2(1, VOCABULARY, 32, positions=32)


@pytest.mark.parametrize("data", ["odd", "corpus"])
def test_stored_likeliest_tokens_are_the_live_ones_coarsened(space, models, monkeypatch, data):
    student, teacher = models
    view = StoredTeacher(stored(space, f"top-{data}", "top_k", data, monkeypatch))
    rows = [rows_of(space, data)[i] for i in (4, 0, 2, 1)]  # any rows in any order
    layout = laid_out(rows, torch.device("cpu"))
    student_nv = (layout.hidden(student) @ student.lm_head.weight.T).log_softmax(-1)
    live = LiveTeacher(teacher, VOCABULARY)
    _, teacher_nv = live.pair(student_nv, live.prepared(live.columns(rows, layout)))
    columns = view.columns(rows, layout)
    assert torch.equal(columns["teacher_tokens"], teacher_nv.topk(TOP_K).indices)
    ours, theirs = view.pair(student_nv, columns)
    assert ours.shape == (len(layout.targets_n), TOP_K + 1)
    for found, whole_nv in ((ours, student_nv), (theirs, teacher_nv)):
        coarse = divergences.coarsen(whole_nv, columns["teacher_tokens"])
        assert torch.allclose(found.exp(), coarse.exp(), atol=1e-6)


@pytest.mark.parametrize("kind", ["top_k", "hidden"])
@pytest.mark.parametrize("data", ["odd", "train", "corpus"])
def test_one_output_for_each_token_that_is_predicted(space, kind, data):
    found = stored(space, f"count-{kind}-{data}", kind, data)
    rows = rows_of(space, data)
    counts = [len(laid_out([row], torch.device("cpu")).targets_n) for row in rows]
    ends = torch.tensor([0, *counts]).cumsum(0).tolist()
    assert found.offsets == ends
    names = {"tokens", "log_probabilities"} if kind == "top_k" else {"hidden"}
    assert found.names == names
    manifest = json.loads((space.folder / f"count-{kind}-{data}" / "manifest.json").read_text())
    assert (manifest["rows"], manifest["tokens"]) == (len(rows), ends[-1])


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_kd_from_stored_states_has_the_live_loss_and_gradient(
    space, models, monkeypatch, divergence
):
    student, teacher = models
    settings = {"batch_size": 4, "ratio": 0.5, "divergence": divergence}
    found = {"train": stored(space, f"kd-{divergence}", "hidden", "odd", monkeypatch)}
    train = load_from_disk(str(space.folder / "odd/dataset"))
    values = []
    for kind in ("live", "hidden"):
        own = {**settings, "teacher_outputs": kind}
        method = Kd(context(own, teacher, VOCABULARY, train=train, stored=found))
        student.zero_grad()
        loss = 0.0
        for step in range(3):
            (part,) = method.parts(step)
            loss += part.loss(student, part.rows)[0]
        loss.backward()
        values.append((loss.item(), student.lm_head.weight.grad.clone()))
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-5)
    assert torch.allclose(values[0][1], values[1][1], atol=1e-6)


def test_minillm_on_a_corpus_reads_what_was_written_down(space, models, monkeypatch):
    student, teacher = models
    corpus = load_from_disk(str(space.folder / "corpus/dataset"))
    settings = {**MINILLM_PAPER, "lm_weight": 2.0, "lm_teacher_share": 1.0, "lm_batch_size": 3}
    losses = {}
    for kind in ("live", "hidden", "top_k"):
        found = (
            {}
            if kind == "live"
            else {"corpus": stored(space, f"lm-{kind}", kind, "corpus", monkeypatch)}
        )
        own = {**settings, "lm_teacher_outputs": kind}
        method = MiniLLM(context(own, teacher, VOCABULARY, corpus=corpus, stored=found))
        part = method.language_modelling(1)
        losses[kind] = part.loss(student, part.rows)[0].item()
    assert losses["hidden"] == pytest.approx(losses["live"], rel=1e-5)
    # what is the same for all of the tail is lost, and is no more than a part
    assert 0.5 * losses["live"] < losses["top_k"] < losses["live"]


@pytest.mark.parametrize("kind", ["top_k", "hidden"])
def test_interrupted_outputs_go_on_with_the_next_portion(space, monkeypatch, kind):
    monkeypatch.setattr(outputs, "PORTION", 5)
    portions = []

    def spy(stage, model, vocabulary, dataset, first, after, real=outputs._portion):
        portions.append((first, after))
        return real(stage, model, vocabulary, dataset, first, after)

    monkeypatch.setattr(outputs, "_portion", spy)
    name = f"halted-{kind}"
    with pytest.raises(Interrupted, match="3 of 6 rows are kept"):
        outputs.run(written(space, name, kind, "odd", stop_requested=True))
    folder = space.folder / name
    assert not list(folder.glob("*.*"))
    outputs.run(written(space, name, kind, "odd"))
    assert portions == [(0, 3), (3, 5), (5, 6)]
    outputs.run(written(space, f"smooth-{kind}", kind, "odd"))
    for file in ("outputs.safetensors", "manifest.json"):
        assert (folder / file).read_bytes() == (space.folder / f"smooth-{kind}" / file).read_bytes()
    sweep(folder)
    assert (folder / "manifest.json").exists() and not (folder / "checkpoints").exists()


@pytest.mark.parametrize("kind", ["top_k", "hidden"])
@pytest.mark.parametrize("damaged", ["outputs.safetensors", "portions.jsonl", "spent.json"])
def test_what_is_damaged_between_two_attempts_is_done_again(
    space, monkeypatch, capsys, kind, damaged
):
    monkeypatch.setattr(outputs, "PORTION", 5)
    name = f"damaged-{kind}-{damaged}"
    with pytest.raises(Interrupted, match="3 of 6 rows are kept"):
        outputs.run(written(space, name, kind, "odd", stop_requested=True))
    (path,) = (space.folder / name).glob(f"checkpoints/*/{damaged}")
    content = bytearray(path.read_bytes())
    if damaged == "outputs.safetensors":  # a byte of the first row
        header = 8 + int.from_bytes(content[:8], "little")
        content[header + 8 * 7 + 1] ^= 1  # behind the 7 offsets
    else:
        content[len(content) // 2] = 0
    path.write_bytes(content)
    capsys.readouterr()
    outputs.run(written(space, name, kind, "odd"))
    said = "".join(capsys.readouterr())
    assert damaged in said and ("damaged" in said or "not what was written" in said)
    outputs.run(written(space, f"whole-{name}", kind, "odd"))
    for file in ("outputs.safetensors", "manifest.json"):
        found, expected = (space.folder / place / file for place in (name, f"whole-{name}"))
        assert found.read_bytes() == expected.read_bytes()


def test_more_tokens_than_there_are_cannot_be_kept(space):
    asked = written(space, "greedy", "top_k", "odd")
    asked.spec["top_k"] = VOCABULARY
    with pytest.raises(InputError, match=r"top_k is 12, but the tokenizer has 12 entries"):
        outputs.run(asked)


def test_a_file_filled_in_pieces_is_one_that_was_saved_whole(tmp_path: Path):
    whole = {
        "offsets": torch.arange(5),
        "half": torch.randn(7, 3).half(),
        "brain": torch.randn(7, 2).bfloat16(),
        "float": torch.randn(7, 3),
        "int": torch.arange(7, dtype=torch.int32)[:, None],
    }
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in whole.items()}
    file = TensorFile(tmp_path / "pieces.safetensors", kinds)
    assert not file.begun()
    file.begin()
    assert file.begun()
    file.write(0, {"offsets": whole["offsets"]})
    rest = {name: tensor for name, tensor in whole.items() if name != "offsets"}
    for first, after in ((4, 7), (0, 1), (1, 4)):
        file.write(first, {name: tensor[first:after] for name, tensor in rest.items()})
    save_file(whole, tmp_path / "whole.safetensors")
    pieces = load_file(tmp_path / "pieces.safetensors")
    assert pieces.keys() == whole.keys()
    assert all(torch.equal(pieces[name], whole[name]) for name in whole)
    with pytest.raises(AssertionError):  # of the same width
        file.write(0, {"half": torch.zeros(1, 3, dtype=torch.bfloat16)})
    other = TensorFile(tmp_path / "pieces.safetensors", {**kinds, "half": (torch.bfloat16, (7, 3))})
    assert not other.begun()


def test_a_full_disk_is_found_before_the_teacher_reads(space, monkeypatch):
    """Writing to memory that is mapped on a full disk would kill the process without a word."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(outputs, "_portion", lambda *_: pytest.fail("the teacher read a text"))
    with pytest.raises(OSError, match="No space left"):
        outputs.run(written(space, "full", "hidden", "odd"))


def log_of(space, name):
    lines = [json.loads(line) for line in (space.folder / name / "metrics.jsonl").open()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def assert_equal_training(space, one, other):
    for first, second in zip(log_of(space, one)[:-1], log_of(space, other)[:-1], strict=True):
        assert first.pop("kind") == second.pop("kind")
        # a text that the teacher has read is not paid again
        assert second.pop("flops") <= first.pop("flops")
        assert first == pytest.approx(second, rel=1e-3, abs=1e-3)


def test_training_reads_hidden_states_as_it_would_the_teacher(space):
    stored(space, "train-hidden", "hidden", "train")
    stored(space, "corpus-hidden", "hidden", "corpus")
    for method, name, key in (
        ("kd", "outputs", "teacher_outputs"),
        ("minillm", "corpus_outputs", "lm_teacher_outputs"),
    ):
        split = "train" if method == "kd" else "corpus"
        settings = {"steps": 4, "evaluate_every": 4, "dropout": 0.0}
        space.finished(space.train(f"{method}-live", method, **settings))
        read = {name: f"{split}-hidden"}
        process = space.train(
            f"{method}-hidden", method, inputs=read, **settings, **{key: "hidden"}
        )
        space.finished(process)
        assert_equal_training(space, f"{method}-live", f"{method}-hidden")


@pytest.mark.parametrize(
    ("method", "settings"), [("kd", {"teacher_outputs": "top_k"}), ("seqkd", {})]
)
def test_training_on_what_was_written_needs_no_teacher(space, method, settings):
    """The teacher's weights are gone: only its manifest is there."""
    (space.folder / "ghost").mkdir(exist_ok=True)
    space.manifest("ghost", **TEACHER)
    generations(space, f"for-{method}")
    outputs.run(written(space, f"top-for-{method}", "top_k", f"for-{method}"))
    read = {"teacher": "ghost", "train": f"for-{method}", "outputs": f"top-for-{method}"}
    process = space.train(f"{method}-ghost", method, inputs=read, steps=3, **settings)
    space.finished(process)
    assert log_of(space, f"{method}-ghost")[-1]["step"] == 3
