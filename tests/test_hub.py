"""Models and data from a hub: what is fetched, in which form, at which commit; and what a hub does wrong."""

import argparse
import collections
import hashlib
import json
import logging
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
import test_data
import torch
from conftest import ROOT
from families import FAMILIES
from huggingface_hub import constants, file_download
from models_for_tests import tiny_gpt2
from safetensors.torch import load_file
from test_base import save_tokenizer
from test_data import run_prepare
from transformers import AutoModelForCausalLM

from takd.commands import parsers
from takd.commands.one_model import experiment_of
from takd.data import filters, sources, summary, tokenizer
from takd.data.row import Row
from takd.experiment.experiment import load
from takd.model_cards.card import source_text
from takd.model_cards.frontmatter import commit_of
from takd.models import hub as hubs
from takd.models import pickled as pickled_weights
from takd.models import starting_weights
from takd.models.causal_lm import load_model, load_tokenizer
from takd.models.tokenizer_check import end_tokens
from takd.preflight import fetching
from takd.preflight.gpus import CPU
from takd.preflight.jobs import Job
from takd.preflight.plan import Planner
from takd.runtime.errors import InputError, without_secrets
from takd.runtime.files import read_json
from takd.runtime.records import read_log
from takd.runtime.stage import Stage

words = test_data.words  # a fixture: the manifest of a small tokenizer
COMMITS = [digit * 40 for digit in "123"]
ROWS = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(6)]
DATA = {"hub": "some/data", "file": "valid.jsonl"}
OTHERS = {  # files of a model's repository that nobody needs here
    "tf_model.h5": b"h5",
    "flax_model.msgpack": b"flax",
    "README.md": b"card",
    "onnx/model.onnx": b"onnx",
    "rust_model.ot": b"rust",
}


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


CONTENT = lines(ROWS)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.serving() as hub:
        hub_server.use(hub, tmp_path / "cache", monkeypatch)
        yield hub


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch):
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def opt(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(FAMILIES["opt"](11, 16)).half()


def pickled(model: Any, folder: Path, shards: int = 0) -> dict[str, bytes]:
    """A model's files as OPT's on the hub: pickles whose head shares the memory of the embeddings."""
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    weights = dict(model.state_dict())
    assert (
        weights["lm_head.weight"].data_ptr()
        == weights["model.decoder.embed_tokens.weight"].data_ptr()
    )
    if shards:
        parts = [dict(list(weights.items())[start::shards]) for start in range(shards)]
        places = {}
        for number, part in enumerate(parts, start=1):
            name = f"pytorch_model-{number:05}-of-{shards:05}.bin"
            torch.save(part, folder / name)
            places |= dict.fromkeys(part, name)
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(collections.OrderedDict(weights), folder / "pytorch_model.bin")
    return hub_server.files_of(folder)


@pytest.fixture
def prepare(tmp_path: Path):
    """Runs the stage `base`; returns its manifest."""

    def run(weights: dict[str, Any], parameters: int) -> dict[str, Any]:
        tokenizer = tmp_path / "data/manifest.json"
        if not tokenizer.exists():
            save_tokenizer(tmp_path / "data/tokenizer")
            tokenizer.write_text(json.dumps({"vocabulary": 11, "end": 0, "pad": 1}))
        stage = Stage(
            spec={"model": "m", "weights": weights, "parameters": parameters, "max_length": 16},
            code="",
            inputs={"tokenizer": [tokenizer]},
            outputs={"model": tmp_path / "model", "manifest": tmp_path / "manifest.json"},
        )
        starting_weights.run(stage)
        return read_json(tmp_path / "manifest.json")

    return run


def size(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shards", [0, 3])
def test_pickled_weights_are_converted_and_the_same(hub, prepare, tmp_path, shards) -> None:
    model = opt()
    files = pickled(model, tmp_path / "source", shards)
    commit = hub.publish("facebook/opt", {**files, **OTHERS})
    manifest = prepare({"hub": "facebook/opt", "revision": commit}, size(model))
    assert hub.fetched() == sorted(files)
    bins = {name: body for name, body in files.items() if name.endswith(".bin")}
    assert len(bins) == (shards or 1)
    assert manifest["pickled"] == {n: hashlib.sha256(b).hexdigest() for n, b in bins.items()}
    assert manifest["parameters"] == size(model)
    written = {}
    for path in (tmp_path / "model").glob("*.safetensors"):
        assert not path.is_symlink()
        written |= load_file(path)
    wanted = model.state_dict()
    assert written.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert written[name].dtype == torch.float16 and torch.equal(written[name], tensor), name
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "model.safetensors"} if not shards else len(names) == 5
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert loaded.lm_head.weight is loaded.model.decoder.embed_tokens.weight
    # it is all there: again without a hub
    hub.forget()
    before = (tmp_path / "manifest.json").read_bytes()
    prepare({"hub": "facebook/opt", "revision": commit}, size(model))
    assert (tmp_path / "manifest.json").read_bytes() == before and hub.asked == []


def test_weights_that_share_memory_or_are_views_become_tensors_of_their_own(tmp_path) -> None:
    """Slices of one storage, a transposed view, an old file that is no archive, wrapped names."""
    fused = torch.arange(24.0).reshape(4, 6)
    weights = {"q": fused[:, :3], "k": fused[:, 3:], "t": fused.T, "same": fused, "one": fused}
    folder = tmp_path / "source"
    folder.mkdir()
    old = {"_use_new_zipfile_serialization": False}
    for options in ({}, old):
        torch.save(weights, folder / "pytorch_model.bin", **options)
        target = tmp_path / f"written{len(options)}"
        pickled_weights.convert(folder, ["pytorch_model.bin"], target, "m")
        found = load_file(target / "model.safetensors")
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_weights_named_as_those_of_the_body_alone_are_read(prepare, tmp_path) -> None:
    """As some of OPT's on the hub: without the prefix `model.` and without the tied head."""
    model, source = opt(), tmp_path / "source"
    model.config.save_pretrained(source)
    body = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    del body["lm_head.weight"]
    torch.save(body, source / "pytorch_model.bin")
    assert prepare({"folder": str(source)}, size(model))["parameters"] == size(model)
    loaded = load_model(tmp_path / "model")
    assert torch.equal(loaded.model.decoder.embed_tokens.weight, model.lm_head.weight.float())
    assert loaded.lm_head.weight is loaded.model.decoder.embed_tokens.weight


def test_shards_are_converted_one_after_the_other(tmp_path, monkeypatch) -> None:
    """When a shard is read, nothing of those before it is held any more."""
    alive: list[Any] = []
    read = torch.load

    def load(*args: Any, **options: Any) -> Any:
        assert options["weights_only"] and not [each for each in alive if each() is not None]
        found = read(*args, **options)
        alive.extend(weakref.ref(tensor) for tensor in found.values())
        return found

    monkeypatch.setattr(torch, "load", load)
    folder = tmp_path / "source"
    pickled(opt(), folder, shards=3)
    files = hubs.weight_files(path.name for path in folder.iterdir())
    pickled_weights.convert(folder, files, tmp_path / "written", "m")
    assert len(alive) == len(opt().state_dict())


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def wrong_pickles(mark: Path) -> dict[str, tuple[Any, str]]:
    w = torch.zeros(2)
    sparse = torch.eye(2).to_sparse()
    return {
        "a command": (
            {"w": w, "x": Evil(mark)},
            r"would call posix\.system when it is read, .*refused",
        ),
        "a module": (torch.nn.Linear(2, 2), r"would call torch\.nn\.modules\.linear\.Linear when"),
        "a checkpoint": (
            {"epoch": 3, "model": {"w": w}},
            "holds 'epoch', which is no dense tensor",
        ),
        "a list": ([w], "holds 'list', which is no dense tensor"),
        "sparse": ({"w": sparse}, "holds 'w', which is no dense tensor"),
    }


@pytest.mark.parametrize("kind", [*wrong_pickles(Path()), "no pickle", "cut", "a page"])
@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_of_anything_else_is_refused_and_runs_nothing(
    prepare, tmp_path, kind, archive
) -> None:
    source, mark = tmp_path / "source", tmp_path / "ran"
    source.mkdir()
    opt().config.save_pretrained(source)
    file = source / "pytorch_model.bin"
    if kind in (wrong := wrong_pickles(mark)):
        content, says = wrong[kind]
        torch.save(content, file, _use_new_zipfile_serialization=archive)
    else:
        torch.save(dict(opt().state_dict()), file, _use_new_zipfile_serialization=archive)
        whole = file.read_bytes()
        made = {"no pickle": b"x" * 999, "cut": whole[: len(whole) // 2], "a page": b"<html>"}
        file.write_bytes(made[kind])
        says = "is a web page" if kind == "a page" else "is no file of weights that torch can read"
    with pytest.raises(InputError, match=says) as refusal:
        prepare({"folder": str(source)}, 5000)
    assert str(file) in str(refusal.value) and "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400 + len(str(file))
    assert not mark.exists() and not (tmp_path / "manifest.json").exists()


def test_a_missing_shard_of_a_pickle_is_named(prepare, tmp_path) -> None:
    pickled(opt(), tmp_path / "source", shards=2)
    (tmp_path / "source/pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(InputError, match=r"its source lacks pytorch_model-00002-of-00002\.bin"):
        prepare({"folder": str(tmp_path / "source")}, 5000)


def test_pickled_weights_of_a_folder_are_known_by_their_content(prepare, tmp_path) -> None:
    source = tmp_path / "source"
    pickled(opt(), source)
    digests = starting_weights.weights_digests(source)
    assert [name for name, _ in digests] == ["config.json", "pytorch_model.bin"]
    prepare({"folder": str(source), "sha256": digests}, size(opt()))
    torch.save(dict(opt(1).state_dict()), source / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"pytorch_model\.bin changed after the workflow was planned"
    ):
        prepare({"folder": str(source), "sha256": digests}, size(opt()))
    # beside safetensors they are not read, and no part of the settings
    opt().save_pretrained(source)
    names = [name for name, _ in starting_weights.weights_digests(source)]
    assert names == ["config.json", "generation_config.json", "model.safetensors"] or (
        "pytorch_model.bin" not in names
    )


@pytest.mark.parametrize("whole", [True, False])
def test_of_several_forms_one_is_fetched(hub, prepare, tmp_path, whole) -> None:
    model = tiny_gpt2(0)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    files = hub_server.files_of(tmp_path / "shards")
    assert len([name for name in files if name.startswith("model-")]) > 1
    wanted = {name for name in files if name != "generation_config.json"}
    if whole:
        model.save_pretrained(tmp_path / "whole")
        files |= hub_server.files_of(tmp_path / "whole")
        wanted = {"config.json", "model.safetensors"}
    commit = hub.publish("some/gpt2", {**files, **OTHERS, "pytorch_model.bin": b"no"})
    manifest = prepare({"hub": "some/gpt2", "revision": commit}, size(model))
    # the index is small, and fetched before it is known whether it is needed
    assert set(hub.fetched()) - {"model.safetensors.index.json"} == wanted - {
        "model.safetensors.index.json"
    }
    assert "pickled" not in manifest
    assert (tmp_path / "model/config.json").is_symlink()


def test_a_connection_that_breaks_in_a_file_is_gone_on_with(
    hub, prepare, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what comes of a piece is lost
    files = pickled(opt(), tmp_path / "source")
    commit = hub.publish("facebook/opt", files)
    hub.cuts = {"pytorch_model.bin": [1000, 500]}
    prepare({"hub": "facebook/opt", "revision": commit}, size(opt()))
    assert hub.ranges == ["bytes=1000-", "bytes=1500-"]


def test_a_hub_that_breaks_off_every_time_is_told_and_what_came_whole_is_kept(
    hub, prepare, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    commit = hub.publish("facebook/opt", pickled(opt(), tmp_path / "source"))
    hub.cuts = {"pytorch_model.bin": [0] * 20}
    weights = {"hub": "facebook/opt", "revision": commit}
    with pytest.raises(
        InputError, match=r"^the model facebook/opt cannot be fetched from the hub at"
    ) as said:
        prepare(weights, size(opt()))
    assert "start again, what has been fetched is kept" in str(said.value)
    assert not (tmp_path / "manifest.json").exists()
    hub.cuts.clear()
    hub.forget()
    prepare(weights, size(opt()))
    assert hub.fetched() == ["pytorch_model.bin"]


def test_a_damaged_download_is_not_taken_for_the_model(hub, prepare, tmp_path) -> None:
    """A mirror that sends other bytes: large files are known by their sha256."""
    files = pickled(opt(), tmp_path / "source")
    commit = hub.publish("facebook/opt", files)
    right = files["pytorch_model.bin"]
    hub.damaged["pytorch_model.bin"] = right[:-2000] + bytes(1000) + right[-1000:]
    weights = {"hub": "facebook/opt", "revision": commit}
    with pytest.raises(InputError, match=r"pytorch_model\.bin .*sha256") as said:
        prepare(weights, size(opt()))
    for body in (right, hub.damaged["pytorch_model.bin"]):
        assert hashlib.sha256(body).hexdigest() in str(said.value)
    hub.damaged.clear()
    prepare(weights, size(opt()))


def test_a_file_that_is_listed_and_not_there_is_named(hub, prepare, tmp_path) -> None:
    commit = hub.publish("facebook/opt", pickled(opt(), tmp_path / "source"))
    hub.lost = {"pytorch_model.bin"}
    with pytest.raises(InputError, match=rf"it has no file pytorch_model\.bin at {commit}"):
        prepare({"hub": "facebook/opt", "revision": commit}, size(opt()))
    with pytest.raises(InputError, match=rf"the model facebook/opt .* it has no commit {'0' * 40}"):
        prepare({"hub": "facebook/opt", "revision": "0" * 40}, size(opt()))


TOKEN = "hf_secretsecretsecretsecret"


def test_a_gated_model_says_how_to_log_in_and_the_token_stays_secret(
    hub, prepare, tmp_path, monkeypatch, caplog, capfd
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.gated["meta/gated"] = TOKEN
    commit = hub.publish("meta/gated", pickled(opt(), tmp_path / "source"))
    weights = {"hub": "meta/gated", "revision": commit}
    for token in (None, "hf_anotherother"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(
            InputError, match=r"gated: accept its terms .*`hf auth login`, or set HF_TOKEN"
        ) as said:
            prepare(weights, size(opt()))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    prepare(weights, size(opt()))
    assert hub.tokens["content"] == {None} and f"Bearer {TOKEN}" in hub.tokens["hub"]
    written = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))
    everything = caplog.text + "".join(capfd.readouterr()) + written + str(said.value)
    assert TOKEN not in everything and "hf_anotherother" not in everything


def test_addresses_are_told_without_what_is_secret_in_them() -> None:
    said = "for url 'https://me:pass@mirror.org/a/b?Signature=x&Expires=1' (http://other.org/c)"
    assert without_secrets(said) == "for url 'https://mirror.org/a/b' (http://other.org/c)"


# data


def publish(hub: hub_server.Hub, rows: list[dict[str, Any]], number: int = 0) -> str:
    files = {"valid.jsonl": lines(rows), "README.md": b"---\nlicense: mit\n---\n"}
    return hub.publish("some/data", files, "datasets", COMMITS[number])


def texts(source: dict[str, Any]) -> list[str]:
    return [row.instruction for row in sources.rows(source)]


PINS = {
    "sha256": {"sha256": SHA256},
    "rows_sha256": {},  # filled in below
}
_digest = filters.Digest()
for _row in ROWS:
    _digest.add(Row(0, _row["instruction"], _row["input"], (_row["output"],)))
PINS["rows_sha256"] = {"rows_sha256": _digest.sha256}


@pytest.mark.parametrize("pin", PINS)
def test_a_branch_with_a_pin_is_read_and_its_commit_recorded(
    hub, words, tmp_path, offline, pin
) -> None:
    """The data report says which commit it was, also when it is made again without a hub."""
    publish(hub, ROWS)
    source = {**DATA, "revision": "main", **PINS[pin]}
    for split in ("train", "dev"):
        _, manifest = run_prepare(tmp_path, words, split, source)
    assert manifest["counts"]["kept"] == len(ROWS)
    end = read_log(tmp_path / "data/dev/metrics.jsonl")[-1]
    assert end["revision"] == COMMITS[0] and COMMITS[0] not in json.dumps(manifest)
    assert hub.fetched() == ["valid.jsonl"]
    offline()
    places = [tmp_path / "data" / split / "manifest.json" for split in ("train", "dev")]
    outputs = {"report": tmp_path / "report.json", "page": tmp_path / "report.html"}
    spec = {"splits": {"train": source, "dev": source}, "sets": []}
    summary.run(Stage(spec=spec, code="-", inputs={"data": places}, outputs=outputs))
    assert read_json(tmp_path / "report.json")["splits"]["dev"]["source"] == (
        f"hub some/data, file valid.jsonl, commit {COMMITS[0]}"
    )
    assert COMMITS[0] in (tmp_path / "report.html").read_text()


def test_a_branch_that_moved_to_equal_rows_makes_an_equal_manifest(hub, words, tmp_path) -> None:
    """So nothing that reads it runs again, and the log has the new commit."""
    source = {**DATA, "revision": "main", **PINS["rows_sha256"]}
    found = []
    for number in (0, 1):
        publish(hub, [{**row, "note": number} for row in ROWS], number)
        run_prepare(tmp_path, words, "dev", source)
        log = read_log(tmp_path / "data/dev/metrics.jsonl")
        found.append((tmp_path / "data/dev/manifest.json").read_bytes())
        assert log[-1]["revision"] == COMMITS[number]
    counts = [json.loads(manifest)["unused"] for manifest in found]
    assert counts[0] != counts[1]  # the note is counted, and nothing else differs
    assert json.loads(found[0])["sha256"] == json.loads(found[1])["sha256"]


def test_a_branch_that_moved_to_other_rows_is_refused_with_both_digests(
    hub, words, tmp_path
) -> None:
    publish(hub, ROWS)
    other = lines([*ROWS, ROWS[0]])
    publish(hub, [*ROWS, ROWS[0]], 1)
    source = {**DATA, "revision": "main"}
    with pytest.raises(InputError) as said:
        run_prepare(tmp_path, words, "dev", {**source, "sha256": SHA256})
    assert SHA256 in str(said.value) and hashlib.sha256(other).hexdigest() in str(said.value)
    assert "main, which may have moved" in str(said.value)
    with pytest.raises(InputError, match=r"the sha256 of its rows is .* but `rows_sha256`"):
        run_prepare(tmp_path, words, "dev", {**source, **PINS["rows_sha256"]})
    kept = {path.name for path in (tmp_path / "data/dev").iterdir()}
    assert kept <= {"metrics.jsonl"} and not read_partial(tmp_path)


def read_partial(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.partial") if path.is_file()]


def test_what_a_branch_had_is_found_by_its_digest_after_it_moved(hub, words, tmp_path) -> None:
    source = {**DATA, "revision": "main", "sha256": SHA256}
    publish(hub, ROWS)
    assert len(texts(source)) == len(ROWS)
    publish(hub, ROWS[:2], 1)
    hub.forget()
    run_prepare(tmp_path, words, "dev", source)
    assert read_log(tmp_path / "data/dev/metrics.jsonl")[-1]["revision"] == COMMITS[0]
    assert hub.asked == []


def test_a_wrong_file_is_not_kept_in_the_cache(hub, tmp_path) -> None:
    commit = publish(hub, ROWS)
    hub.damaged["valid.jsonl"] = CONTENT.replace(b"Say", b"Sag")
    source = {**DATA, "revision": commit, "sha256": SHA256}
    wrong = hashlib.sha256(hub.damaged["valid.jsonl"]).hexdigest()
    with pytest.raises(
        InputError,
        match=f"has the sha256 {wrong}, but the experiment says {SHA256}; it is not kept",
    ):
        texts(source)
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [path for path in left if b"Sag" in path.read_bytes()]
    hub.damaged.clear()
    assert len(texts(source)) == len(ROWS)


def test_a_whole_data_set_of_a_branch_is_read_at_one_commit(hub, words, tmp_path, offline) -> None:
    files = {"train.jsonl": CONTENT, "README.md": b"---\nlicense: mit\n---\n"}
    hub.publish("some/data", files, "datasets", COMMITS[2])
    source = {"hub": "some/data", "revision": "main", "config": None, "split": "train"}
    source |= PINS["rows_sha256"]
    run_prepare(tmp_path, words, "train", source)
    assert read_log(tmp_path / "data/train/metrics.jsonl")[-1]["revision"] == COMMITS[2]
    assert not [path for path in hub.asked if "/resolve/main/" in path]
    # also where the hub cannot be asked any more, and where it never could
    offline()
    assert hubs.commit_of("some/data", "main") == COMMITS[2]
    with pytest.raises(
        InputError, match=r"the data set some/other .*cannot be reached and its cache"
    ):
        hubs.commit_of("some/other", "main")


def test_a_gated_data_set_says_how_to_log_in(hub) -> None:
    commit = publish(hub, ROWS)
    hub.gated["some/data"] = TOKEN
    for source in ({**DATA, "revision": commit}, {"hub": "some/data", "revision": commit}):
        with pytest.raises(InputError, match=r"gated.*set HF_TOKEN") as said:
            texts(source)
        assert "\n" not in str(said.value)


def test_other_rows_than_expected_say_where_they_stay(hub) -> None:
    """Starting again gives the same rows."""
    source = {"hub": "some/data", "file": "valid.jsonl", "revision": publish(hub, ROWS)}
    for wrong in ({**source, "rows_sha256": "0" * 64}, {**source, "rows_sha256": "1" * 64}):
        with pytest.raises(
            InputError,
            match=r"\(another `revision`\), or correct it; what was .* cache \(HF_HOME\)",
        ):
            texts(wrong)


def test_a_card_names_what_pins_the_content() -> None:
    """A commit; for a branch, which moves, the digest beside it."""
    source, digest = {"hub": "some/data", "file": "valid.jsonl"}, "a" * 64
    said = source_text({**source, "revision": COMMITS[0], "rows_sha256": digest})
    assert said == f"some/data, file valid.jsonl, revision {COMMITS[0]}"
    for pin, name in (("sha256", "sha256"), ("rows_sha256", "sha256 of its rows")):
        branch = {**source, "revision": "main", pin: digest}
        assert source_text(branch) == f"some/data, file valid.jsonl, {name} {digest}"
        assert commit_of(branch) is None


def test_a_model_of_the_hub_is_evaluated_by_its_name(hub, tmp_path, monkeypatch) -> None:
    """At a branch, tag or commit; its folder in the cache has all that an evaluation reads."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    save_tokenizer(tmp_path / "source")
    tiny_gpt2(1, 11).save_pretrained(tmp_path / "source")
    assert (tmp_path / "source/generation_config.json").is_file()
    (tmp_path / "source/chat_template.jinja").write_text("{{ messages }}")
    commits = [
        hub.publish("some/tiny-1.0_b", hub_server.files_of(tmp_path / "source"), commit=COMMITS[n])
        for n in range(2)
    ]
    parser = argparse.ArgumentParser()
    parsers.evaluate(parser)

    def asked(model: str, *more: str) -> dict[str, Any]:
        lengths = ("--max-prompt-length", "8", "--max-new-tokens", "8")
        words = ["--model", model, "--data", "mine.jsonl", *lengths, *more]
        return experiment_of(parser.parse_args(words))

    for more, commit in (((), commits[1]), (("--revision", commits[0]), commits[0])):
        found = asked("some/tiny-1.0_b", *more)
        ((name, model),) = found["models"].items()
        folder = Path(model["weights"]["folder"])
        assert (name, folder.name) == ("tiny.1.0.b", commit)
        assert found["tokenizer"] == {"folder": str(folder)} and commit in found["description"]
        assert {path.name for path in folder.iterdir()} >= {
            "chat_template.jinja",
            "generation_config.json",
            "model.safetensors",
        }
    (tmp_path / "some/tiny-1.0_b").mkdir(parents=True)  # a folder comes first
    with pytest.raises(InputError, match=r"^--model some/tiny-1\.0_b: holds no model"):
        asked("some/tiny-1.0_b")
    with pytest.raises(
        InputError,
        match=r"^--model some/none: is no folder here, and the model some/none cannot be",
    ):
        asked("some/none")


def test_a_tokenizer_of_the_hub_comes_with_all_its_end_tokens(hub, tmp_path) -> None:
    save_tokenizer(tmp_path / "source")
    files = hub_server.files_of(tmp_path / "source")
    named = json.dumps({"eos_token_id": [3, 0]}).encode()
    for number, more in enumerate(({}, {"generation_config.json": named})):
        commit = hub.publish("some/chat", {**files, **more}, commit=COMMITS[number])
        folder = tmp_path / str(number)
        stage = Stage(
            spec={"source": {"hub": "some/chat", "revision": commit}, "template": None},
            code="-",
            outputs={"tokenizer": folder / "t", "manifest": folder / "manifest.json"},
        )
        tokenizer.run(stage)
        end = read_json(folder / "manifest.json")["end"]
        expected = tuple(dict.fromkeys([end, *([3, 0] if more else [])]))
        assert end_tokens(load_tokenizer(folder / "t")) == expected
        assert ("ends" in read_json(folder / "manifest.json")) == bool(more)


# the tokenizer


def test_a_gated_tokenizer_says_how_to_log_in(hub, tmp_path) -> None:
    commit = hub.publish("meta/gated", {"tokenizer.json": b"{}", "config.json": b"{}"})
    hub.gated["meta/gated"] = TOKEN
    stage = Stage(
        spec={"source": {"hub": "meta/gated", "revision": commit}, "template": None},
        code="-",
        outputs={"tokenizer": tmp_path / "t", "manifest": tmp_path / "manifest.json"},
    )
    with pytest.raises(InputError, match=r"^the tokenizer meta/gated .*gated.*set HF_TOKEN"):
        tokenizer.run(stage)


# before a run


def base_jobs(experiment: Any) -> list[Job]:
    return [Job("base", name, {"model": name}) for name in experiment.settings["models"]]


@pytest.fixture
def asked_anew() -> Iterator[None]:
    for clear in (fetching.problem.cache_clear, fetching._listed.cache_clear):
        clear()
    yield
    for clear in (fetching.problem.cache_clear, fetching._listed.cache_clear):
        clear()


def test_what_is_to_be_fetched_is_counted_as_the_hub_says(hub, tmp_path, asked_anew) -> None:
    """Pickled weights twice: in the hub's cache, and written again as safetensors."""
    experiment = load(ROOT / "config/experiments/opt-dolly.yaml", ROOT)
    sizes = {}
    for number, (name, model) in enumerate(experiment.settings["models"].items()):
        weights = model["weights"]
        files = pickled(opt(number), tmp_path / name, shards=3 if number == 0 else 0)
        hub.publish(weights["hub"], {**files, **OTHERS}, commit=weights["revision"])
        sizes[name] = sum(len(body) for file, body in files.items() if ".bin" in file)
    jobs = base_jobs(experiment)
    names = [model["weights"]["hub"] for model in experiment.settings["models"].values()]
    assert fetching.not_fetched(experiment, jobs) == names
    assert fetching.fetched_bytes(experiment, jobs) == sum(sizes.values())
    assert not [path for path in hub.asked if path.startswith("CDN")]
    planned = Planner(experiment, CPU).plan(jobs)
    assert sum(each.written.stays for each in planned) == sum(sizes.values())
    # what has been fetched is not counted, what is written still is
    weights = experiment.settings["models"]["13B"]["weights"]
    hubs.fetch_model(weights["hub"], weights["revision"])
    assert fetching.not_fetched(experiment, jobs) == names[1:]
    assert fetching.fetched_bytes(experiment, jobs) == sum(sizes.values()) - sizes["13B"]
    assert Planner(experiment, CPU).plan(jobs)[0].written.stays == sizes["13B"]
    # a shard that is missing is to be fetched
    folder = hubs.fetch_model(weights["hub"], weights["revision"])
    hubs.discard(folder / "pytorch_model-00002-of-00003.bin")
    assert fetching.not_fetched(experiment, jobs) == names
    assert fetching.fetched_bytes(experiment, jobs) == sum(sizes.values()) - sum(
        path.stat().st_size for path in folder.glob("*.bin*")
    )


def test_without_the_hub_weights_count_as_float32(monkeypatch, tmp_path, asked_anew) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    experiment = load(ROOT / "config/experiments/gpt2-dolly.yaml", ROOT)
    jobs = base_jobs(experiment)
    assert fetching.fetched_bytes(experiment, jobs) == 4 * sum(experiment.parameters.values())
    assert fetching.problem() == "HF_HUB_OFFLINE is set"
    assert not any(each.written.stays for each in Planner(experiment, CPU).plan(jobs))


def test_a_mirror_that_does_not_answer_is_named_without_its_password(
    monkeypatch, asked_anew
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://me:pass@127.0.0.1:9")
    assert "http://127.0.0.1:9: " in (said := str(fetching.problem())) and "pass" not in said


def test_the_data_of_shipped_experiments_are_pinned_and_named() -> None:
    """No file by hand: every source is on the hub, or generated; those that may move have a digest."""
    for name in ("gpt2-dolly", "opt-dolly", "llama-dolly", "minillm-ablations"):
        settings = load(ROOT / f"config/experiments/{name}.yaml", ROOT).settings
        data = settings["data"]
        found = [data["train"], data["dev"], *settings["evaluation"]["sets"].values()]
        assert all(source["hub"].startswith("MiniLLM/") for source in found)
        moving = [source for source in found if not hubs.COMMIT.fullmatch(source["revision"])]
        assert all("sha256" in source and "rows_sha256" in source for source in moving)
        assert (data["train"]["rows"], data["dev"]["rows"]) == ([1000, None], [0, 1000])
