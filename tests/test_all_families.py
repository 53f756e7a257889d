"""Families of the installed transformers: a tiny model decodes as `generate` does, or is refused in one sentence.

docs/families.md gives the counts.
"""

import re

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from takd.decoding.model_checks import check_model
from takd.decoding.sampling import Decoding, Prompt, draw
from takd.runtime.errors import InputError

END = 2
# settings by the names that families have for them; each takes those that it knows
TINY = {
    **{"bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0},
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8},
    **{"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64},
    **{"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48, "ffn_dim": 48},
    **{"d_model": 32, "n_layers": 2, "n_heads": 4, "ffn_hidden_size": 48, "max_seq_len": 64},
    **{"moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "q_lora_rank": 8, "kv_lora_rank": 8},
    **{"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "sliding_window": 8},
    **{"hidden_size_per_layer_input": 4, "shared_expert_intermediate_size": 16, "rotary_dim": 4},
    **{"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
}
DECODE = """
    afmoe apertus arcee aria_text biogpt bitnet bloom codegen ctrl cwm diffllama doge ernie4_5 ernie4_5_moe exaone4
    exaone_moe falcon flex_olmo flint gemma gemma3_text gemma4_text gemma4_unified_text glm glm4 glm4_moe gpt-sw3
    gpt2 gpt_bigcode gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa
    granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax internlm3 iquestcoder jais2 jetmoe
    kolibri1 laguna lfm2 llama mellum mimo_v2_flash minimax_m2 minimax_m3_vl_text ministral ministral3 mistral
    mixtral mpt nemotron olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe
    seed_oss smollm3 solar_open stablelm starcoder2 xglm
"""
REFUSED = """
    bart beam bert bert-generation big_bird bigbird_pegasus blenderbot camembert cohere cohere2 cohere2_moe cpmant
    deepseek_v2 deepseek_v3 deepseek_v4 electra ernie falcon_mamba gemma2 gpt_neo hy_v4 inkling_text jamba
    kimi_linear lfm3 llama4_text mamba marian mbart megatron-bert minicpm3 minimax modernbert-decoder moshi mvp
    nanochat olmo_hybrid openai-gpt pegasus qwen3_5_text qwen3_next recurrent_gemma rembert roberta roformer trocr
    vaultgemma xlm xlnet xlstm xmod youtu
"""
PROMPTS = [[5, 6, 7], [*range(9, 3, -1), *range(9, 19)], [11, 12, 13, 14, 20, 21]]
LONGEST = 40
LATER = 8  # tokens after each prompt: beyond a window after the shortest one, too


def tiny(kind, vocabulary=64, **more):
    """A random model whose weights are about as large as those of trained ones."""
    family = CONFIG_MAPPING[kind]
    known = {key for each in family.__mro__ for key in getattr(each, "__annotations__", {})}
    known |= set(family.attribute_map)
    torch.manual_seed(0)
    settings = {key: value for key, value in TINY.items() if key in known}
    settings |= {key: vocabulary for key in known & {"vocab_size", "vocab_size_per_layer_input"}}
    config = family(**settings | more)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model


@pytest.mark.parametrize("kind", DECODE.split())
def test_a_family_decodes_as_generate_does(kind):
    """Greedily, prompts of different lengths together against each alone; windows are shorter than the texts."""
    compare_with_generate(tiny(kind), kind)


@pytest.mark.parametrize("newer", [False, True])
def test_falcon_with_alibi_decodes_as_generate_does(newer):
    model = tiny("falcon", alibi=True, new_decoder_architecture=newer)
    compare_with_generate(model, "falcon")


@torch.no_grad()
def compare_with_generate(model, kind):
    check_model(model, kind, LONGEST)
    check_model(model, kind, reads=LONGEST)
    rows = [Prompt(tokens, key, 7) for key, tokens in enumerate(PROMPTS)]
    drawn = draw(
        model, rows, Decoding(LATER, sample=False), end_token=END, vocabulary=64, micro_batch=8
    )
    for tokens, response in zip(PROMPTS, drawn, strict=True):
        whole = model.generate(
            torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
            do_sample=False,
            max_new_tokens=LATER,
            eos_token_id=END,
            pad_token_id=0,
        )
        assert response.tokens.tolist() == whole[0, len(tokens) :].tolist()


@pytest.mark.parametrize("kind", REFUSED.split())
def test_any_other_family_is_refused_in_one_sentence(kind):
    with pytest.raises(InputError) as told:
        check_model(tiny(kind), kind, LONGEST)
    said = str(told.value)
    assert said.startswith(f"model '{kind}' (") and said.endswith("mistral or qwen2.")
    assert "\n" not in said and not re.search(r"\. [A-Z]", said)


def test_a_window_of_gpt_neo_is_the_longest_text():
    """It counts from the longest row of a batch; no longer texts have none of it."""
    model = tiny("gpt_neo")
    check_model(model, "gpt_neo", 8)
    for longest in (9, 12, LONGEST):
        with pytest.raises(InputError, match=r"keep data\.max_length at most 8, or "):
            check_model(model, "gpt_neo", longest)
