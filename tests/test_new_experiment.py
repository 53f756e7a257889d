"""`takd new`: an experiment for one's own folder, from options or from answers."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, save_weights

from takd import __main__ as takd
from takd.commands import new
from takd.experiment.experiment import Experiment, load
from takd.runtime.errors import InputError

COMMIT = "15ea56dee5df4983c59b2538573817e1667135e2"
HUB = f"355M=openai-community/gpt2-medium@{COMMIT}", f"124M=openai-community/gpt2@{COMMIT}"


def jsonl(path: Path, count: int, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"instruction": f"Say {n}: こんにちは", "output": f"{n}", **more} for n in range(count))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository without experiments, beside a folder of data."""
    (tmp_path / "takd").mkdir()
    jsonl(tmp_path / "own data/train.jsonl", 300)
    return tmp_path / "takd"


def model(folder: Path, width: int, chat: bool) -> str:
    """A model in bfloat16 with a tokenizer."""
    save_weights(FAMILIES["qwen2"](64, width), folder, torch.bfloat16)
    (folder / "tokenizer.json").write_text("{}")
    template = {"chat_template": "{{ messages[0]['content'] }}"} if chat else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(template))
    return str(folder)


def made(root: Path, **given: Any) -> Experiment:
    options = {"name": "mine", "models": HUB, "data": str(root.parent / "own data"), **given}
    return load(new.write(root, options), root)


def test_models_of_the_hub_and_rows_held_out(root: Path) -> None:
    e = made(root)
    settings = e.settings
    assert settings["models"]["student"]["weights"]["revision"] == COMMIT
    assert e.parameters == {"teacher": 355_000_000, "student": 124_000_000}
    assert e.lineages == ["teacher-sft__student-minillm"]
    heldout = settings["evaluation"]["sets"]["heldout"]
    assert [s["rows"] for s in (settings["data"]["dev"], heldout, settings["data"]["train"])] == [
        *([0, 15], [15, 30], [30, 300]),
    ]


def test_own_files_are_used_where_they_are(root: Path) -> None:
    data = root.parent / "own data"
    jsonl(data / "dev.jsonl", 4)
    jsonl(data / "eval/my set.jsonl", 4)
    jsonl(data / "test.jsonl", 4)
    e = made(root)
    assert e.sets == ["test", "my-set"]
    assert "rows" not in e.settings["data"]["train"] and "rows" not in e.settings["data"]["dev"]
    assert e.settings["data"]["dev"]["json"] == str(data / "dev.jsonl")


def test_local_models_through_assistants(root: Path) -> None:
    """Sizes are counted, lengths fit the model, a chat tokenizer gets its own template."""
    places = [model(root.parent / f"m{width}", width, chat=True) for width in (32, 16, 8)]
    e = made(root, models=places, methods=["kd", "minillm"], tokenizer=places[1])
    assert len(e.lineages) == 4 and "teacher-sft__assistant-kd__student-kd" in e.lineages
    data = e.settings["data"]
    assert (data["template"], data["max_length"], data["max_prompt_length"]) == ("chat", 32, 16)
    assert e.settings["tokenizer"]["folder"] == places[1]
    assert sorted(e.parameters.values(), reverse=True) == list(e.parameters.values())


def test_conversations_get_the_template_of_the_tokenizer(root: Path) -> None:
    turns = [{"role": "user", "content": "こんにちは"}, {"role": "assistant", "content": "Hi."}]
    line = json.dumps({"messages": turns}, ensure_ascii=False) + "\n"
    (root.parent / "own data/train.jsonl").write_text(line * 50)
    assert made(root).settings["data"]["template"] == "chat"


@pytest.mark.parametrize("method", new.DISTILLING)
def test_every_method_can_be_chosen(method: str, root: Path) -> None:
    assert made(root, methods=[method]).lineages == [f"teacher-sft__student-{method}"]


def test_the_file_says_what_to_change_and_what_comes_next(root: Path) -> None:
    path = new.write(root, {"name": "mine", "models": HUB, "data": str(root.parent / "own data")})
    text = path.read_text()
    assert "held out for dev and test" in text and "docs/experiment.md has every key" in text
    assert all(len(line) < 200 for line in text.splitlines())
    assert "snakemake --profile profiles/local -n --config experiment=mine" in new.said(path, root)


def test_nothing_is_overwritten(root: Path) -> None:
    path = new.write(root, {"name": "mine", "models": HUB, "data": str(root.parent / "own data")})
    path.write_text("# changed by its user\n")
    with pytest.raises(InputError, match="is there already and stays as it is"):
        made(root, methods=["kd"])
    assert path.read_text() == "# changed by its user\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "a/b"}, "is no name of a file"),
        ({"models": ["nowhere", "none"]}, "--models nowhere: is no folder"),
        ({"models": HUB[:1]}, "at least two models"),
        ({"models": [*reversed(HUB)]}, "larger than"),
        ({"methods": ["minilm"]}, "did you mean 'minillm'"),
        ({"methods": ["sft"]}, "--methods sft: is none"),
        ({"data": "no/where"}, "holds no train.jsonl; there is nothing"),
        ({"data": __file__}, "is a file; name its folder"),
        ({"models": None}, "--models is missing: python -m takd new NAME --models"),
    ],
)
def test_a_wrong_option_is_said_and_no_file_is_left(
    given: dict[str, Any], said: str, root: Path
) -> None:
    with pytest.raises(InputError, match=said):
        made(root, **given)
    assert not list(root.rglob("*.yaml"))


def test_rows_with_other_keys_are_refused_with_their_line(root: Path) -> None:
    path = jsonl(root.parent / "own data/train.jsonl", 40)
    path.write_text(path.read_text() + '{"prompt": "no instruction", "output": "x"}\n')
    with pytest.raises(InputError, match=r"train\.jsonl, line 41"):
        made(root)
    assert not list(root.rglob("*.yaml"))


def test_a_hub_that_is_out_of_reach_names_what_to_write(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "model_info", refuse)
    with pytest.raises(InputError, match=r"no route to host\); write SIZE=some/model@COMMIT"):
        made(root, models=["some/model", HUB[1]])


def test_answers_are_asked_for_again_until_they_are_right(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["a/b", "mine", "nowhere x", " ".join(HUB), str(root.parent / "own data"), ""])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    monkeypatch.setattr(takd, "ROOT", root)
    assert takd.main(["new"]) == 0
    printed = capsys.readouterr()
    assert "is no name of a file" in printed.err and "nowhere: is no folder" in printed.err
    assert "config/experiments/mine.yaml is written" in printed.out
    assert load(root / "config/experiments/mine.yaml", root).lineages
