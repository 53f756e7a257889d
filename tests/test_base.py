"""Starting weights from a folder, from the hub's cache, from a GGUF file, from scratch."""

import json

import peft
import pytest
import torch
from models_for_tests import tiny_gpt2
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from takd.models import starting_weights, tokenizer_check
from takd.models.causal_lm import load_model
from takd.runtime import records
from takd.runtime.errors import InputError
from takd.runtime.files import write_json
from takd.runtime.records import digests, sealed
from takd.runtime.stage import Stage

SHAPE = {"architecture": "gpt2", "layers": 2, "width": 8, "heads": 2, "positions": 16}


WORDS = ["<end>", "a", "b", "c", "d", "ab", "cd", " "]


def save_tokenizer(folder, words=WORDS, merges=(("a", "b"), ("c", "d")), added=()):
    """A BPE of a few tokens, as a folder; `added` are special tokens beyond them."""
    vocabulary = {word: number for number, word in enumerate(words)}
    plain = Tokenizer(BPE(vocab=vocabulary, merges=list(merges), unk_token="<end>"))
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>")
    fast.add_special_tokens({"additional_special_tokens": list(added)})
    fast.save_pretrained(folder)


@pytest.fixture
def prepare(tmp_path):
    """Run the stage; returns its manifest."""
    tokenizer = tmp_path / "data/manifest.json"
    save_tokenizer(tmp_path / "data/tokenizer")
    tokenizer.write_text(json.dumps({"vocabulary": 11, "end": 0, "pad": 1}))

    def run(weights, parameters=1.0, max_length=16, **more):
        spec = {"model": "m", "weights": weights, "parameters": parameters, **more}
        stage = Stage(
            spec=spec | {"max_length": max_length},
            code="",
            inputs={"tokenizer": [tokenizer]},
            outputs={"model": tmp_path / "model", "manifest": tmp_path / "manifest.json"},
        )
        starting_weights.run(stage)
        return json.loads((tmp_path / "manifest.json").read_text())

    return run


def test_folder_is_linked_and_counted(prepare, tmp_path):
    model = tiny_gpt2(0)
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "optimizer.bin").write_bytes(b"not wanted")
    count = sum(p.numel() for p in model.parameters())
    manifest = prepare({"folder": str(tmp_path / "source")}, parameters=count * 1.1)
    assert manifest["parameters"] == count
    assert set(manifest["files"]) == {"model/config.json", "model/model.safetensors"}
    loaded = load_model(tmp_path / "model")
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight)


AS_IT_IS = {"lineage": "m-given", "seed": 0, "method": "given"}


def test_a_model_that_is_taken_as_it_is_has_its_tokenizer_and_the_manifest_of_a_model(
    prepare, tmp_path
):
    model = tiny_gpt2(0)
    model.save_pretrained(tmp_path / "source")
    count = sum(p.numel() for p in model.parameters())
    weights = {"folder": str(tmp_path / "source")}
    weights["sha256"] = starting_weights.weights_digests(tmp_path / "source")
    manifest = prepare(weights, parameters=count, **AS_IT_IS)
    assert {key: manifest[key] for key in ("kind", "steps", "best")} == {
        "kind": "model",
        "steps": 0,
        "best": {},
    }
    assert AS_IT_IS.items() <= manifest.items() and "origin" not in manifest
    assert manifest["spec"] == {"model": "m", **AS_IT_IS}
    assert {"model/model.safetensors", "model/tokenizer.json"} <= manifest["files"].keys()
    assert torch.equal(load_model(tmp_path / "model").lm_head.weight, model.lm_head.weight)
    (tmp_path / "source").rename(tmp_path / "moved")
    assert starting_weights.relink(
        tmp_path / "model", weights | {"folder": str(tmp_path / "moved")}
    )
    assert load_model(tmp_path / "model") is not None
    # one whose tokens mean something else cannot teach here, nor be scored
    save_tokenizer(tmp_path / "moved", words=["<end>", "b", "a", *WORDS[3:]])
    with pytest.raises(InputError, match="comes with another tokenizer than the experiment's"):
        prepare({"folder": str(tmp_path / "moved")}, parameters=count, **AS_IT_IS)


def test_a_model_of_an_earlier_training_names_it(prepare, tmp_path):
    model = tiny_gpt2(0)
    model.save_pretrained(tmp_path / "other/model")
    files = digests([tmp_path / "other/model"], tmp_path / "other")
    said = {"kind": "model", "lineage": "t-sft__m-kd", "seed": 7, "files": files}
    write_json(tmp_path / "other/manifest.json", sealed(said))
    weights = {"folder": str(tmp_path / "other/model")}
    manifest = prepare(weights, sum(p.numel() for p in model.parameters()), **AS_IT_IS)
    assert manifest["origin"] == {
        "lineage": "t-sft__m-kd",
        "seed": 7,
        "digest": sealed(said)["digest"],
    }


def test_equal_weights_have_an_equal_manifest_wherever_they_lie(prepare, tmp_path):
    """Nor does what was only checked, such as a corrected number of parameters, make other weights."""
    model = tiny_gpt2(0)
    count = sum(p.numel() for p in model.parameters())
    found = []
    for place, declared, longest in (("a", count, 16), ("b", count * 1.2, 8)):
        model.save_pretrained(tmp_path / place)
        weights = {
            "folder": str(tmp_path / place),
            "sha256": starting_weights.weights_digests(tmp_path / place),
        }
        prepare(weights, parameters=declared, max_length=longest)
        found.append((tmp_path / "manifest.json").read_bytes())
    assert found[0] == found[1]
    (tmp_path / "b/model.safetensors").write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"b/model.safetensors changed after the workflow was"):
        prepare(weights, parameters=count)


def test_weights_that_are_not_those_of_their_record_are_refused(prepare, tmp_path):
    """A model of another experiment, overwritten by hand: to start again would not help."""
    model = tiny_gpt2(0)
    model.save_pretrained(tmp_path / "other/model")
    files = digests([tmp_path / "other/model"], tmp_path / "other")
    write_json(tmp_path / "other/manifest.json", sealed({"kind": "model", "files": files}))
    tiny_gpt2(1).save_pretrained(tmp_path / "other/model")
    weights = {"folder": str(tmp_path / "other/model")}
    weights["sha256"] = starting_weights.weights_digests(tmp_path / "other/model")
    with pytest.raises(InputError, match=r"not what the manifest .* or make that model anew"):
        prepare(weights, parameters=sum(p.numel() for p in model.parameters()))


def test_links_follow_the_same_weights_to_another_place(prepare, tmp_path):
    model = tiny_gpt2(0)
    model.save_pretrained(tmp_path / "old")
    folders = {"old": tmp_path / "old", "new": tmp_path / "new"}
    said = {name: {"folder": str(path)} for name, path in folders.items()}
    said["old"]["sha256"] = starting_weights.weights_digests(folders["old"])
    before = prepare(said["old"], parameters=sum(p.numel() for p in model.parameters()))
    assert not starting_weights.relink(tmp_path / "model", said["old"])
    folders["old"].rename(folders["new"])
    said["new"]["sha256"] = starting_weights.weights_digests(folders["new"])
    assert starting_weights.relink(tmp_path / "model", said["new"])
    assert (tmp_path / "model/model.safetensors").resolve().parent == folders["new"]
    assert not records.faults(tmp_path / "manifest.json", before)
    # other weights wait for their job
    tiny_gpt2(1).save_pretrained(tmp_path / "other")
    other = {
        "folder": str(tmp_path / "other"),
        "sha256": starting_weights.weights_digests(tmp_path / "other"),
    }
    starting_weights.relink(tmp_path / "model", other)
    assert (tmp_path / "model/model.safetensors").resolve().parent == folders["new"]


def test_wrong_size_is_refused(prepare, tmp_path):
    tiny_gpt2(0).save_pretrained(tmp_path / "source")
    with pytest.raises(InputError, match=r"model 'm' is declared with 1.2e\+08 parameters"):
        prepare({"folder": str(tmp_path / "source")}, parameters=1.2e8)
    assert not (tmp_path / "manifest.json").exists()


def test_a_folder_without_weights_is_refused(prepare, tmp_path):
    tiny_gpt2(0).config.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(
        InputError, match=r"holds neither model\.safetensors .* convert its weights"
    ):
        prepare({"folder": str(tmp_path / "source")})


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_refused_and_not_ignored(prepare, tmp_path, whole):
    """As peft saves it, alone or beside the model that it belongs to."""
    peft.get_peft_model(tiny_gpt2(0), peft.LoraConfig(r=2)).save_pretrained(tmp_path / "source")
    if whole:
        tiny_gpt2(0).save_pretrained(tmp_path / "source")
    with pytest.raises(InputError, match=r"^model 'm': its source holds an adapter .*merge it"):
        prepare({"folder": str(tmp_path / "source")})


def in_shards(model, folder):
    """Save a model as several files and their index."""
    size = sum(p.nbytes for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=f"{size // 1000 // 3}KB")
    assert len(list(folder.glob("*.safetensors"))) > 2


def test_shards_are_linked_by_their_index_and_a_missing_one_is_named(prepare, tmp_path):
    model = tiny_gpt2(0, width=64)
    source = tmp_path / "source"
    in_shards(model, source)
    (source / "model-00009-of-00009.safetensors").write_bytes(b"of another model")
    count = sum(p.numel() for p in model.parameters())
    manifest = prepare({"folder": str(source)}, parameters=count)
    assert "model/model-00009-of-00009.safetensors" not in manifest["files"]
    loaded = load_model(tmp_path / "model").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
    shard = sorted(n.removeprefix("model/") for n in manifest["files"] if "/model-" in n)[1]
    (source / shard).unlink()
    with pytest.raises(InputError, match=f"its source lacks {shard}; fetch or copy it again"):
        prepare({"folder": str(source)}, parameters=count)


def test_weights_that_are_not_all_there_are_refused(prepare, tmp_path):
    """A model would be trained from random numbers in their place."""
    model = tiny_gpt2(0)
    model.save_pretrained(tmp_path / "source")
    count = sum(p.numel() for p in model.parameters())
    file = tmp_path / "source/model.safetensors"
    weights = load_file(file)
    less = {key: value for key, value in weights.items() if "h.1.mlp.c_fc" not in key}
    save_file(less, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack transformer\.h\.1\.mlp\.c_fc\.bias, .* 1 others"):
        prepare({"folder": str(tmp_path / "source")}, parameters=count)
    name = "transformer.wte.weight"
    save_file({**weights, name: weights[name][:8].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack .*transformer\.wte\.weight"):
        prepare({"folder": str(tmp_path / "source")}, parameters=count)


def test_texts_longer_than_the_positions_are_refused(prepare, tmp_path):
    model = tiny_gpt2(0)
    model.save_pretrained(tmp_path / "source")
    count = sum(p.numel() for p in model.parameters())
    with pytest.raises(InputError, match=r"'m' has 64 positions, but data\.max_length is 65"):
        prepare({"folder": str(tmp_path / "source")}, parameters=count, max_length=65)


def test_a_vocabulary_may_be_padded_but_not_smaller_than_the_tokenizer(prepare, tmp_path):
    for size in (8, 64):
        model = tiny_gpt2(0, vocabulary=size)
        model.save_pretrained(tmp_path / "source")
        prepare({"folder": str(tmp_path / "source")}, sum(p.numel() for p in model.parameters()))
    model = tiny_gpt2(0, vocabulary=7)
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(InputError, match="'m' has 7 vocabulary entries and the tokenizer 8"):
        prepare({"folder": str(tmp_path / "source")}, sum(p.numel() for p in model.parameters()))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({}, None),
        ({"added": ["<pad>", "<start>"]}, None),
        (
            {"words": ["<end>", "a", "b", "d", "c", "ab", "cd", " "]},
            "token 3 is 'd' there and is 'c' here",
        ),
        ({"words": [*WORDS, "bc"]}, "token 8 is 'bc' there and is missing here"),
        ({"words": WORDS[:-1]}, "token 7 is missing there and is ' ' here"),
        ({"merges": [("a", "b")]}, r"token \d+ of the text .* is 'c' there and 'cd' here"),
    ],
)
def test_a_model_of_another_tokenizer_is_refused(prepare, tmp_path, monkeypatch, other, says):
    monkeypatch.setattr(tokenizer_check, "TEXTS", ("a b c d", "dab cdc"))
    model = tiny_gpt2(0)
    model.save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source", **other)
    count = sum(p.numel() for p in model.parameters())
    if says is None:
        manifest = prepare({"folder": str(tmp_path / "source")}, parameters=count)
        assert manifest["tokenizer"] == "equal"
        return
    with pytest.raises(InputError, match=f"'m' comes with another tokenizer .*: {says}"):
        prepare({"folder": str(tmp_path / "source")}, parameters=count)


def test_a_pad_token_of_the_experiment_is_no_other_tokenizer(prepare, tmp_path):
    model = tiny_gpt2(0)
    model.save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source")
    save_tokenizer(tmp_path / "data/tokenizer", added=["<pad>"])
    count = sum(p.numel() for p in model.parameters())
    assert prepare({"folder": str(tmp_path / "source")}, count)["tokenizer"] == "equal"


def test_a_tokenizer_that_cannot_be_read_is_told_and_no_obstacle(prepare, tmp_path, capsys):
    model = tiny_gpt2(0)
    model.save_pretrained(tmp_path / "source")
    count = sum(p.numel() for p in model.parameters())
    assert prepare({"folder": str(tmp_path / "source")}, count)["tokenizer"] == "none"
    (tmp_path / "source/tokenizer.json").write_text("no JSON")
    assert prepare({"folder": str(tmp_path / "source")}, count)["tokenizer"] == "unread"
    assert "its own tokenizer was not compared, as reading it fails" in capsys.readouterr().out


def test_scratch_is_a_configuration_that_the_seed_fills(prepare, tmp_path):
    manifest = prepare({"scratch": SHAPE}, parameters=1234)
    assert list(manifest["files"]) == ["model/config.json"] and manifest["parameters"] == 1234
    one, two = (load_model(tmp_path / "model", seed=seed) for seed in (1, 2))
    assert one.config.vocab_size == 11 and one.config.eos_token_id == 0
    assert not torch.equal(one.transformer.wte.weight, two.transformer.wte.weight)


def test_gguf_is_dequantised(prepare, tmp_path):
    """An unquantised file made here with the names that llama.cpp gives to a Llama's tensors."""
    gguf = pytest.importorskip("gguf")
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=8,
    )
    model = LlamaForCausalLM(config)
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(8)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([b"<s>", b"</s>", b"a", b"b", b"c", b"d", b"e", b"f"])
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "input_layernorm.weight": "attn_norm.weight",
        "post_attention_layernorm.weight": "ffn_norm.weight",
        "mlp.gate_proj.weight": "ffn_gate.weight",
        "mlp.up_proj.weight": "ffn_up.weight",
        "mlp.down_proj.weight": "ffn_down.weight",
        "self_attn.v_proj.weight": "attn_v.weight",
        "self_attn.o_proj.weight": "attn_output.weight",
        "self_attn.q_proj.weight": "attn_q.weight",
        "self_attn.k_proj.weight": "attn_k.weight",
    }
    for name, value in model.state_dict().items():
        short = name.removeprefix("model.layers.0.")
        prefix = "blk.0." if short != name else ""
        writer.add_tensor(prefix + names[short], value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    count = sum(p.numel() for p in model.parameters())
    manifest = prepare({"gguf": str(tmp_path / "m.gguf")}, parameters=count)
    assert manifest["parameters"] == count
    loaded = load_model(tmp_path / "model")
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight)
    manifest = prepare({"gguf": str(tmp_path / "m.gguf"), "keep_layers": [0]}, parameters=count)
    assert manifest["layers"] == [0] and set(manifest["files"]) == {
        "model/config.json",
        "model/model.safetensors",
    }


def test_a_smaller_model_is_made_of_some_layers(prepare, tmp_path):
    whole = tiny_gpt2(0, layers=4)
    whole.save_pretrained(tmp_path / "source")
    count = sum(p.numel() for p in tiny_gpt2(0, layers=2).parameters())
    weights = {"folder": str(tmp_path / "source"), "keep_layers": 2}
    manifest = prepare(weights, parameters=count)
    assert (manifest["parameters"], manifest["layers"]) == (count, [0, 3])
    assert set(manifest["files"]) == {"model/config.json", "model/model.safetensors"}
    loaded = load_model(tmp_path / "model")
    last = whole.transformer.h[3].mlp.c_fc.weight
    assert torch.equal(loaded.transformer.h[1].mlp.c_fc.weight, last)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("tmp")] == []
    with pytest.raises(InputError, match=r"keep_layers is 5, but the source has 4 layers"):
        prepare({**weights, "keep_layers": 5}, parameters=count)
