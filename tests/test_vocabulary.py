"""How many entries a tokenizer has, which of them are used, and in which tokens two tokenizers differ."""

import json

import pytest
import torch
from models_for_tests import tiny_gpt2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from workspace import Workspace

from takd.data import tokenizer as tokenizer_stage
from takd.models.causal_lm import check_vocabulary
from takd.models.tokenizer_check import entries, first_difference, used_entries
from takd.runtime.errors import InputError
from takd.runtime.stage import Stage

LETTERS = {"<end>": 0, "a": 1, "b": 2, "c": 3}
PADS = ["[PAD]", "<pad>", "<|pad|>", "<PAD>", "<|padding|>", "[pad]"]


def words(more, end="<end>", pad=None, special=()):
    """A tokenizer of letters and some more tokens with given ids."""
    plain = Tokenizer(models.BPE(vocab={**LETTERS, **more}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.decoder = decoders.Fuse()
    plain.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=end, pad_token=pad)


# tokenizers whose ids have gaps: an end or pad token far behind, names in the middle, reserved numbers
GAPS = {
    "end": (words({"<|end|>": 9}, end="<|end|>"), 10, 10),
    "end and pad": (words({"<|end|>": 9, "<|pad|>": 12}, "<|end|>", "<|pad|>"), 13, 10),
    "pad": (words({"[PAD]": 30}, pad="[PAD]"), 31, 4),
    "middle": (words({"d": 7, "e": 8}), 9, 9),
    "special": (words({"<|user|>": 64}, special=["<|user|>"]), 65, 65),
    "pad before others": (words({"<pad>": 6, "d": 7}, pad="<pad>"), 8, 8),
    "none": (words({}), 4, 4),
}


@pytest.mark.parametrize("kind", GAPS)
def test_entries_go_to_the_largest_id(tmp_path, kind):
    """`len(tokenizer)` is less where ids have gaps."""
    tokenizer, all_of_them, used = GAPS[kind]
    assert (entries(tokenizer), used_entries(tokenizer)) == (all_of_them, used)
    assert len(tokenizer) < all_of_them or kind == "none"
    tokenizer.save_pretrained(tmp_path / "source")
    outputs = {"tokenizer": tmp_path / "t/tokenizer", "manifest": tmp_path / "t/manifest.json"}

    def run(**declared):
        source = {"folder": str(tmp_path / "source"), **declared}
        tokenizer_stage.run(Stage(spec={"source": source}, code="", outputs=outputs))
        return json.loads(outputs["manifest"].read_text())["vocabulary"]

    assert run() == run(vocabulary=all_of_them) == all_of_them
    for other in {len(tokenizer), all_of_them - 1, all_of_them + 1} - {all_of_them}:
        with pytest.raises(InputError, match=f"vocabulary is {other}, .* set {all_of_them}, or"):
            run(vocabulary=other)


@pytest.mark.parametrize("name", PADS)
@pytest.mark.parametrize("named", [True, False])
def test_a_pad_token_at_the_end_needs_no_entry(name, named):
    tokenizer = words({name: 4}, pad=name if named else None, special=[name])
    assert check_vocabulary(tiny_gpt2(0, vocabulary=4), tokenizer, "m") == 4
    assert check_vocabulary(tiny_gpt2(0, vocabulary=5), tokenizer, "m") == 5
    assert check_vocabulary(tiny_gpt2(0, vocabulary=9), tokenizer, "m") == 5
    with pytest.raises(InputError, match="'m' has 3 vocabulary entries and the tokenizer 5"):
        check_vocabulary(tiny_gpt2(0, vocabulary=3), tokenizer, "m")


@pytest.mark.parametrize("name", ["<|im_start|>", "<padre>", "d", "pad", "<unk>", "</s>"])
def test_any_other_token_needs_one(name):
    tokenizer = words({name: 4}, pad="<end>", special=[name] if name not in ("d", "pad") else [])
    with pytest.raises(InputError, match="'m' has 4 vocabulary entries and the tokenizer 5"):
        check_vocabulary(tiny_gpt2(0, vocabulary=4), tokenizer, "m")
    ends = words({"<pad>": 4}, end="<pad>", pad="<pad>")
    with pytest.raises(InputError, match="'m' has 4 vocabulary entries and the tokenizer 5"):
        check_vocabulary(tiny_gpt2(0, vocabulary=4), ends, "m")


@pytest.mark.parametrize("name", PADS)
def test_a_pad_token_is_no_difference_whatever_its_name_and_place(name):
    plain, padded = words({}), words({name: 4}, pad=name)
    other = words({"<pad>": 4}, pad="<pad>")
    for own, ours in ((plain, padded), (padded, plain), (padded, other), (other, padded)):
        assert first_difference(own, ours) is None
    said = first_difference(words({"d": 4}), padded)
    assert said == f"token 4 is 'd' there and is {name!r} here"


def test_a_teacher_without_the_pad_token_trains_a_student_that_has_it(tmp_path):
    """Both are compared over the entries that they share."""
    space = Workspace(tmp_path)
    rows = len(space.tokenizer)
    folder = tmp_path / "tokenizer/tokenizer"
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<pad>"]
    names = tokenizer["model"]["vocab"]
    names["[PAD]"], names["unused"] = rows, names.pop("<pad>")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "[PAD]"}))
    space.manifest("tokenizer", kind="tokenizer", vocabulary=rows + 1, begin=[], end=0)
    for name, size in (("trained-teacher", rows), ("student", rows + 1)):
        tiny_gpt2(0, vocabulary=size, positions=32).save_pretrained(tmp_path / name / "model")
    space.manifest("trained-teacher", kind="model", lineage="teacher-sft", seed=3)
    space.manifest("student", kind="base", spec={"model": "student"})
    space.finished(space.train("trained", "kd", steps=2, evaluate_every=2, warmup_steps=0))
    lines = map(json.loads, (tmp_path / "trained/metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses and torch.tensor(losses).isfinite().all()
