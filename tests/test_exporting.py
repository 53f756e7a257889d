"""The folder of a trained model says what it was trained and evaluated with, whatever its source said."""

import copy
import json
import os

import pytest
import torch
from families import FAMILIES, save_weights
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    PreTrainedTokenizerFast,
    pipeline,
)
from workspace import Workspace

from takd.models import load_model, load_tokenizer
from takd.sampling import Decoding, Prompt, draw
from takd.training.exporting import Exported

ROWS = 272  # of the embeddings; the tokenizer has 260 tokens
END, PAD = 258, 256
PROMPTS = ("say red", "a tall cat", "3 dogs\n", "Zażółć", "日本", "  two blanks")
# what sources say of decoding, in `generation_config.json` or, as older ones do, in `config.json`
BEAMS = {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True, "num_return_sequences": 2}
PENALTIES = {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2, "bad_words_ids": [[4], [5, 6]]}
SAMPLING = {"do_sample": True, "temperature": 1.7, "top_k": 3, "top_p": 0.5}
LENGTHS = {
    "min_length": 12,
    "max_length": 13,
    "min_new_tokens": 7,
    "exponential_decay_length_penalty": [1, 9.0],
}
FORCED = {
    "forced_bos_token_id": 4,
    "forced_eos_token_id": 5,
    "suppress_tokens": [2, 3],
    "begin_suppress_tokens": [6],
}
STOPS = {"eos_token_id": [3, 4], "stop_strings": ["red"], "bos_token_id": 5, "pad_token_id": None}
SOURCES = dict(zip(FAMILIES, (BEAMS, PENALTIES, SAMPLING, LENGTHS, FORCED, STOPS), strict=True))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Bytes, and the special tokens of a chat model: it ends with another token than the model was pretrained with."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.add_tokens(["<think>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(folder)
    return load_tokenizer(folder)


def as_published(family, folder, decoding, **settings):
    """Weights in bfloat16 whose files say how their makers decode."""
    config = FAMILIES[family](ROWS, 16)
    for key, value in {"bos_token_id": 3, "eos_token_id": [4, 7], "pad_token_id": None}.items():
        setattr(config, key, value)
    save_weights(config, folder, torch.bfloat16)
    config = json.loads((folder / "config.json").read_text())
    task = {"text-generation": {"do_sample": True, "max_length": 50}}
    config |= decoding | settings | {"task_specific_params": task, "prefix": "say say"}
    config |= {"auto_map": {"AutoConfig": "code.Config"}, "_name_or_path": "/home/somebody/model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(decoding))
    return folder


def export(tokenizer, source, folder, decoding):
    """Read and write, as a training does with a model that it changes in between."""
    model = load_model(source, dropout=0.3)
    exported = Exported.of(model, source, tokenizer, len(tokenizer), decoding)
    assert exported.misread() is None
    with torch.no_grad():  # what would win every argmax, but is no token
        model.get_output_embeddings().weight[len(tokenizer) :] *= 3
    exported.write(model, model.state_dict(), folder)


@pytest.mark.parametrize("no_repeat", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_pipeline_gives_the_texts_of_a_greedy_evaluation(tokenizer, tmp_path, family, no_repeat):
    source = as_published(family, tmp_path / "source", SOURCES[family])
    decoding = Decoding(9, sample=True, temperature=0.7, no_repeat_ngram=no_repeat)
    export(tokenizer, source, tmp_path / "out", decoding)
    model = load_model(tmp_path / "out")
    prompts = [Prompt(tokenizer(text).input_ids, key, 1) for key, text in enumerate(PROMPTS)]
    greedy = Decoding(9, sample=False, no_repeat_ngram=no_repeat)
    drawn = draw(model, prompts, greedy, end_token=END, vocabulary=260, micro_batch=4)
    generate = pipeline("text-generation", model=str(tmp_path / "out"))
    for text, response in zip(PROMPTS, drawn, strict=True):
        (found,) = generate(text, return_tensors=True)
        assert (
            found["generated_token_ids"][len(tokenizer(text).input_ids) :]
            == response.tokens.tolist()
        )
        (found,) = generate(text, return_full_text=False)
        assert found["generated_text"] == tokenizer.decode(
            response.tokens, skip_special_tokens=True
        )
    lengths = {len(response.tokens) for response in drawn}
    assert max(lengths) == 9 or no_repeat


@pytest.mark.parametrize("family", FAMILIES)
def test_the_files_say_nothing_of_the_source(tokenizer, tmp_path, family):
    source = as_published(family, tmp_path / "source", {**BEAMS, **LENGTHS, **FORCED, **SAMPLING})
    export(tokenizer, source, tmp_path / "out", Decoding(9))
    config = json.loads((tmp_path / "out/config.json").read_text())
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    tokens = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD}
    assert {key: config.get(key) for key in tokens} == tokens
    read = AutoConfig.from_pretrained(tmp_path / "out")
    assert (read.bos_token_id, read.eos_token_id, read.pad_token_id) == (None, END, PAD)
    version = generation.pop("transformers_version")
    assert generation == {
        "do_sample": False,
        "max_new_tokens": 9,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "suppress_tokens": list(range(260, ROWS)),
    }
    text = json.dumps(config)
    for word in ("task_specific", "prefix", "auto_map", "somebody", "beam", "forced", "penalty"):
        assert word not in text, word
    assert config["dtype"] == "float32" and config["pretrained_dtype"] == "bfloat16" and version
    # dropout of the source, not of the training
    for key, value in AutoConfig.from_pretrained(source).to_dict().items():
        if "drop" in key:
            assert getattr(read, key) == value, key
    assert "local_files_only" not in (tmp_path / "out/tokenizer_config.json").read_text()
    assert load_tokenizer(tmp_path / "out").get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("said", [False, True])
def test_embeddings_are_called_tied_where_they_are(tokenizer, tmp_path, tied, said):
    """A configuration that says otherwise would lose the output embedding, or look for one that is not there."""
    config = GPT2Config(**FAMILIES["gpt2"](ROWS, 16).to_diff_dict() | {"tie_word_embeddings": tied})
    save_weights(config, tmp_path / "source", torch.float32)
    file = tmp_path / "source/config.json"
    model = load_model(tmp_path / "source")
    model.config.tie_word_embeddings = said
    exported = Exported.of(model, tmp_path / "source", tokenizer, 260, Decoding(9))
    exported.write(model, model.state_dict(), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is tied
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight) and file.exists()
    assert (again.lm_head.weight is again.transformer.wte.weight) is tied


def test_a_pad_token_that_is_the_end_token_still_learns(tokenizer, tmp_path):
    """torch gives the row of `padding_idx` no gradient, and texts of a corpus hold end tokens."""
    source = as_published("llama", tmp_path / "source", {})
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    export(tokenizer, source, tmp_path / "out", Decoding(9))
    model = load_model(tmp_path / "out")
    assert model.config.pad_token_id == model.config.eos_token_id == END
    model(torch.tensor([[END, 3, 4]])).logits[:, -1].logsumexp(-1).sum().backward()
    assert model.get_input_embeddings().weight.grad[END].any()


def test_stages_export_what_they_trained_and_may_be_read_by_others(tmp_path):
    """Supervised and distilled; `init` as well as `model`."""
    space = Workspace(tmp_path)
    as_published("qwen2", tmp_path / "origin/model", {**BEAMS, **STOPS})
    (tmp_path / "origin/model/generation_config.json").unlink()  # `base` takes none
    space.manifest("origin", kind="base", model="student")
    settings = {"steps": 2, "evaluate_every": 2, "dev_rows": 2, "dropout": 0.2}
    old = os.umask(0o027)
    try:
        for name, method in (("trained-student", "sft"), ("taught", "kd")):
            inputs = {"base": "origin"} | ({"teacher": "teacher"} if method == "kd" else {})
            space.manifest("teacher", kind="model", lineage="teacher-sft", seed=3)
            space.finished(space.train(name, method, inputs=inputs, **settings))
    finally:
        os.umask(old)
    for folder in ("trained-student/model", "trained-student/init", "taught/model"):
        generation = json.loads((tmp_path / folder / "generation_config.json").read_text())
        assert generation["eos_token_id"] == 0 and generation["max_new_tokens"] == 8
        assert "num_beams" not in generation
        assert json.loads((tmp_path / folder / "config.json").read_text())["attention_dropout"] == 0
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / folder).iterdir()}
        assert set(modes.values()) == {0o640}, modes
