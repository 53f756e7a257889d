"""Starting weights from a folder, from the hub's cache, from a GGUF file, from scratch."""

import json

import pytest
import torch
from models_for_tests import tiny_gpt2
from transformers import LlamaConfig, LlamaForCausalLM

from takd import base
from takd.errors import InputError
from takd.models import load_model
from takd.stage import Stage

SHAPE = {"architecture": "gpt2", "layers": 2, "width": 8, "heads": 2, "positions": 16}


@pytest.fixture
def prepare(tmp_path):
    """Run the stage; returns its manifest."""
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(json.dumps({"vocabulary": 11, "end": 0, "pad": 1}))

    def run(weights, parameters=1.0):
        stage = Stage(
            spec={"model": "m", "weights": weights, "parameters": parameters},
            code="",
            inputs={"tokenizer": [tokenizer]},
            outputs={"model": tmp_path / "model", "manifest": tmp_path / "manifest.json"},
        )
        base.run(stage)
        return json.loads((tmp_path / "manifest.json").read_text())

    return run


def test_folder_is_linked_and_counted(prepare, tmp_path):
    model = tiny_gpt2(0)
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "optimizer.bin").write_bytes(b"not wanted")
    count = sum(p.numel() for p in model.parameters())
    manifest = prepare({"folder": str(tmp_path / "source")}, parameters=count * 1.1)
    assert manifest["parameters"] == count
    assert set(manifest["files"]) == {"config.json", "model.safetensors"}
    loaded = load_model(tmp_path / "model")
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight)


def test_wrong_size_is_refused(prepare, tmp_path):
    tiny_gpt2(0).save_pretrained(tmp_path / "source")
    with pytest.raises(InputError, match=r"model 'm' is declared with 1.2e\+08 parameters"):
        prepare({"folder": str(tmp_path / "source")}, parameters=1.2e8)
    assert not (tmp_path / "manifest.json").exists()


def test_pickled_weights_are_refused(prepare, tmp_path):
    tiny_gpt2(0).config.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no model\*\.safetensors"):
        prepare({"folder": str(tmp_path / "source")})


def test_hub_is_asked_for_the_pinned_revision_and_safetensors_alone(prepare, tmp_path, monkeypatch):
    import huggingface_hub

    model = tiny_gpt2(0)
    model.save_pretrained(tmp_path / "snapshot")
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    count = sum(p.numel() for p in model.parameters())
    prepare({"hub": "some/model", "revision": "abc"}, parameters=count)
    assert asked["name"] == "some/model" and asked["revision"] == "abc"
    assert not any(".bin" in p or ".py" in p for p in asked["allow_patterns"])


def test_scratch_is_a_configuration_that_the_seed_fills(prepare, tmp_path):
    manifest = prepare({"scratch": SHAPE}, parameters=1234)
    assert list(manifest["files"]) == ["config.json"] and manifest["parameters"] == 1234
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
