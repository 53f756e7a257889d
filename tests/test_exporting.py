"""The folder of a trained model says what it was trained and evaluated with, whatever its source said."""

import copy
import json
import os

import pytest
import torch
from chat_tokenizers import save_chat
from families import FAMILIES, save_weights
from test_all_families import DECODE, tiny
from test_data import SHORT, run_tokenizer
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    GenerationConfig,
    GPT2Config,
    PreTrainedModel,
    pipeline,
)
from workspace import Workspace

from takd.data.template import fill
from takd.data.tokenise import Encoder
from takd.decoding.sampling import Decoding, Prompt, draw
from takd.models.causal_lm import load_model, load_tokenizer
from takd.models.tokenizer_check import ALSO_END, end_tokens
from takd.runtime.errors import InputError
from takd.training.exporting import Exported

ROWS = 400  # of the embeddings; the tokenizers have fewer
END, PAD, TOKENS = 261, 259, 263  # of `tokenizer`
PROMPTS = (("say red", ""), ("a tall", "cat"), ("3 dogs\n", ""), ("Zażółć", "日本"), ("", "in"))
CHATS = {
    "gpt2": "chatml",
    "opt": "phi3",
    "llama": "llama3",
    "mistral": "mistral",
    "qwen2": "qwen",
    "gemma3": "gemma",
}
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
def manifests(tmp_path_factory):
    """Tokenizers as chat models have them, prepared for an experiment with a template of its own: their manifests."""
    found = {}
    for name in CHATS.values():
        folder = tmp_path_factory.mktemp(name)
        save_chat(name, folder / "published")
        spec = {"source": {"folder": str(folder / "published")}, "template": SHORT}
        found[name] = run_tokenizer(folder, spec)
    return found


@pytest.fixture
def tokenizer(manifests):
    """Ends with another token than the model was pretrained with."""
    return load_tokenizer(manifests["qwen"].parent / "tokenizer")


def as_published(family, folder, decoding, **settings):
    """Weights in bfloat16 whose files say how their makers decode."""
    config = FAMILIES[family](ROWS, 16)
    for key, value in {"bos_token_id": 3, "eos_token_id": [4, 7], "pad_token_id": None}.items():
        setattr(config, key, value)
    save_weights(config, folder, torch.bfloat16)
    return with_decoding(folder, decoding, **settings)


def with_decoding(folder, decoding, **settings):
    """Write into a model's files how its makers decode."""
    config = json.loads((folder / "config.json").read_text())
    task = {"text-generation": {"do_sample": True, "max_length": 50}}
    config |= decoding | settings | {"task_specific_params": task, "prefix": "say say"}
    config |= {"auto_map": {"AutoConfig": "code.Config"}, "_name_or_path": "/home/somebody/model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(decoding))
    return folder


def export(tokenizer, source, folder, decoding, dropout=0.3):
    """Read and write, as a training does with a model that it changes in between."""
    model = load_model(source, dropout=dropout)
    exported = Exported.of(model, source, tokenizer, len(tokenizer), decoding)
    assert exported.misread() is None
    with torch.no_grad():  # what would win every argmax, but is no token
        model.get_output_embeddings().weight[len(tokenizer) :] *= 3
    exported.write(model, model.state_dict(), folder)
    ids = torch.arange(7)[None]
    with torch.no_grad():
        assert_close(load_model(folder)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("no_repeat", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_pipeline_gives_the_texts_of_a_greedy_evaluation(manifests, tmp_path, family, no_repeat):
    manifest = manifests[CHATS[family]]
    tokenizer, encoder = (
        load_tokenizer(manifest.parent / "tokenizer"),
        Encoder.beside(manifest, SHORT),
    )
    source = as_published(family, tmp_path / "source", SOURCES[family])
    decoding = Decoding(9, sample=True, temperature=0.7, no_repeat_ngram=no_repeat)
    export(tokenizer, source, tmp_path / "out", decoding)
    drawn = compare_with_pipeline(tmp_path / "out", tokenizer, encoder, no_repeat)
    assert max(len(response.tokens) for response in drawn) == 9


def greedily(model, prompts, tokenizer, end, no_repeat=0):
    """What an evaluation draws."""
    rows = [Prompt(ids, key, 1) for key, ids in enumerate(prompts)]
    decoding = Decoding(9, sample=False, no_repeat_ngram=no_repeat)
    return draw(model, rows, decoding, end_token=end, vocabulary=len(tokenizer), micro_batch=4)


def compare_with_pipeline(folder, tokenizer, encoder, no_repeat=0, pairs=PROMPTS):
    """Responses of the model in `folder`, which its pipeline gives as well, for texts and for messages."""
    asked = encoder.prompts([encoder.fill(*pair) for pair in pairs])
    drawn = greedily(load_model(folder), asked, tokenizer, encoder.end, no_repeat)
    generate = pipeline("text-generation", model=str(folder))
    for pair, ids, response in zip(pairs, asked, drawn, strict=True):
        (found,) = generate(fill(SHORT, *pair), return_tensors=True)
        assert found["generated_token_ids"] == [*ids, *response.tokens.tolist()]
        text = tokenizer.decode(response.tokens, skip_special_tokens=True)
        (found,) = generate([{"role": "user", "content": pair[0], "input": pair[1]}])
        assert found["generated_text"][-1]["content"] == text
    return drawn


@pytest.mark.parametrize("family", DECODE.split())
def test_pipeline_decodes_each_family_and_stops_as_an_evaluation(manifests, tmp_path, family):
    """The end token wins where another one would have been the third of the first text."""
    manifest = manifests["qwen"]  # the tokenizer that transformers reads alike beside each family
    tokenizer, encoder = (
        load_tokenizer(manifest.parent / "tokenizer"),
        Encoder.beside(manifest, SHORT),
    )
    model = tiny(family, ROWS)
    asked = encoder.prompts([encoder.fill(*PROMPTS[0])])
    (response,) = greedily(model, asked, tokenizer, encoder.end)
    with torch.no_grad():
        for parameter in model.get_output_embeddings().parameters():
            parameter[encoder.end] = 1.05 * parameter[response.tokens[2]]
    model.to(torch.bfloat16).save_pretrained(tmp_path / "source")
    says = list(SOURCES.values())[DECODE.split().index(family) % len(SOURCES)]
    source = with_decoding(tmp_path / "source", says)
    dropout = 0.0 if family == "diffllama" else 0.3
    export(tokenizer, source, tmp_path / "out", Decoding(9), dropout)
    first = compare_with_pipeline(tmp_path / "out", tokenizer, encoder, pairs=PROMPTS[:2])[0]
    assert first.finished and first.tokens[-1] == encoder.end and len(first.tokens) <= 3
    read = AutoConfig.from_pretrained(tmp_path / "out")
    begin = encoder.end if family == "cwm" else None  # its configuration has to have one
    pad = 0 if family == "xglm" else PAD  # the number of a position, too
    assert (read.bos_token_id, read.eos_token_id, read.pad_token_id) == (begin, END, pad)
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.bos_token_id, generation.pad_token_id) == (None, PAD)


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
        "suppress_tokens": list(range(TOKENS, ROWS)),
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


def test_weights_of_any_size_are_one_file(tokenizer, tmp_path, monkeypatch):
    """Of more than 50 GB, `save_pretrained` alone would make several, and a manifest has the digest of one."""
    plain = PreTrainedModel.save_pretrained

    def save(model, folder, max_shard_size="40KB", **more):
        return plain(model, folder, max_shard_size=max_shard_size, **more)

    source = as_published("llama", tmp_path / "source", {})
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    load_model(source).save_pretrained(tmp_path / "parts")
    assert len([*(tmp_path / "parts").glob("*.safetensors")]) > 1
    export(tokenizer, source, tmp_path / "out", Decoding(9))
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors*")] == [
        "model.safetensors"
    ]


def test_a_tokenizer_that_is_misread_beside_its_model_is_told(manifests, tmp_path):
    """transformers takes every Qwen2's for its own kind, of which this one splits line feeds otherwise."""
    tokenizer = load_tokenizer(manifests["chatml"].parent / "tokenizer")
    for family, says in (("llama", None), ("qwen2", "text is normalised or cut into words")):
        source = as_published(family, tmp_path / family, {})
        model = load_model(source)
        found = Exported.of(model, source, tokenizer, len(tokenizer), Decoding(9)).misread()
        assert found is None if says is None else found and found.startswith(says)


def test_a_model_with_images_speaks_for_the_experiment_in_both_its_settings(manifests, tmp_path):
    """The larger Gemma 3: a configuration of the text within that of the whole."""
    manifest = manifests["gemma"]
    tokenizer, encoder = (
        load_tokenizer(manifest.parent / "tokenizer"),
        Encoder.beside(manifest, SHORT),
    )
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"intermediate_size": 16, "image_size": 28, "patch_size": 14}
    text = FAMILIES["gemma3"](ROWS, 16).to_dict()
    save_weights(
        Gemma3Config(text_config=text, vision_config=vision), tmp_path / "source", torch.bfloat16
    )
    source = with_decoding(tmp_path / "source", {**STOPS, **BEAMS})
    export(tokenizer, source, tmp_path / "out", Decoding(9))
    compare_with_pipeline(tmp_path / "out", tokenizer, encoder, pairs=PROMPTS[:3])
    read = AutoConfig.from_pretrained(tmp_path / "out")
    for part in (read, read.get_text_config()):
        found = (part.bos_token_id, part.eos_token_id, part.pad_token_id)
        assert found == (tokenizer.bos_token_id, encoder.end, tokenizer.pad_token_id)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("said", [False, True])
def test_embeddings_are_called_tied_where_they_are(tokenizer, tmp_path, tied, said):
    """A configuration that says otherwise would lose the output embedding, or look for one that is not there."""
    config = GPT2Config(**FAMILIES["gpt2"](ROWS, 16).to_diff_dict() | {"tie_word_embeddings": tied})
    save_weights(config, tmp_path / "source", torch.float32)
    file = tmp_path / "source/config.json"
    model = load_model(tmp_path / "source")
    model.config.tie_word_embeddings = said
    exported = Exported.of(model, tmp_path / "source", tokenizer, TOKENS, Decoding(9))
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


def test_generate_ends_at_any_of_several_end_tokens(tokenizer, tmp_path):
    """As an evaluation; one token is a number, as before."""
    source, prompts = as_published("llama", tmp_path / "source", {}), [[6, 7], [8], [9, 10, 11]]
    others: list[int] = []
    ended = 0
    for _ in range(2):
        changed = copy.deepcopy(tokenizer)
        if others:
            changed.init_kwargs[ALSO_END] = others
        export(changed, source, tmp_path / "out", Decoding(9))
        said = json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"]
        assert said == ([END, *others] if others else END)
        again = load_tokenizer(tmp_path / "out")
        assert end_tokens(again) == (END, *others)
        drawn = greedily(load_model(tmp_path / "out"), prompts, again, end_tokens(again))
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        for ids, response in zip(prompts, drawn, strict=True):
            found = model.generate(torch.tensor([ids]))[0].tolist()
            assert found == [*ids, *response.tokens.tolist()]
        ended += sum(response.tokens[-1] in others for response in drawn)
        longest = max((response.tokens.tolist() for response in drawn), key=len)
        others = sorted({longest[0], 5} - {END})
    assert ended


def test_stages_export_what_they_trained_and_may_be_read_by_others(tmp_path):
    """`init` as well as `model`."""
    space = Workspace(tmp_path)
    as_published("qwen2", tmp_path / "origin/model", {**BEAMS, **STOPS})
    (tmp_path / "origin/model/generation_config.json").unlink()  # `base` takes none
    space.manifest("origin", kind="base", model="student")
    settings = {"steps": 2, "evaluate_every": 2, "dev_rows": 2, "dropout": 0.2}
    old = os.umask(0o027)
    try:
        space.finished(space.train("taught", "sft", inputs={"base": "origin"}, **settings))
    finally:
        os.umask(old)
    for folder in ("taught/model", "taught/init"):
        generation = json.loads((tmp_path / folder / "generation_config.json").read_text())
        assert generation["eos_token_id"] == 0 and generation["max_new_tokens"] == 8
        assert "num_beams" not in generation
        assert json.loads((tmp_path / folder / "config.json").read_text())["attention_dropout"] == 0
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / folder).iterdir()}
        assert set(modes.values()) == {0o640}, modes


def test_a_family_that_refuses_dropout_is_told_in_one_sentence(tmp_path):
    tiny("diffllama").save_pretrained(tmp_path)
    assert load_model(tmp_path).config.attention_dropout == 0
    with pytest.raises(InputError, match=r"^a diffllama cannot be .* set `dropout: 0` in `tr"):
        load_model(tmp_path, dropout=0.1)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"^a diffllama cannot be trained with dropout"):
        load_model(tmp_path, dropout=0.1)
