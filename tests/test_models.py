"""Loading, padding and vocabularies, over the families that experiments use."""

from types import SimpleNamespace

import pytest
import torch
from models_for_tests import tiny_gpt2, tokenizer_of
from test_all_families import DECODE, tiny
from tokenizers import Tokenizer, models
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from takd.decoding import amounts, kv_cache
from takd.decoding.kv_cache import RaggedCache
from takd.decoding.model_checks import check_decoding, check_projection
from takd.models.causal_lm import (
    DROPOUT_KEYS,
    check_vocabulary,
    dropout_settings,
    hidden_states,
    load_model,
)
from takd.models.logits import project
from takd.models.shapes import of_config
from takd.models.tokenizer_check import texts_of
from takd.runtime.errors import InputError
from takd.training.dev import dev_scores

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 13}
LLAMA_LIKE = {**SMALL, "intermediate_size": 24, "num_key_value_heads": 2}
GROUPED = {**LLAMA_LIKE, "num_key_value_heads": 1}
OPT = {**SMALL, "ffn_dim": 24, "max_position_embeddings": 32}
WINDOW = {"sliding_window": 3}
FAMILIES = {
    "gpt2": lambda: tiny_gpt2(0, vocabulary=13),
    "opt": lambda: OPTForCausalLM(OPTConfig(**OPT)),
    # as in opt-350m: narrower embeddings, norms after the blocks
    "opt-projected": lambda: OPTForCausalLM(
        OPTConfig(**OPT, word_embed_proj_dim=8, do_layer_norm_before=False)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE)),
    "llama-grouped": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED)),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**GROUPED, **WINDOW)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED, tie_word_embeddings=True)),
    "qwen2-untied": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    "qwen2-window": lambda: Qwen2ForCausalLM(
        Qwen2Config(**GROUPED, **WINDOW, use_sliding_window=True, max_window_layers=1)
    ),
}


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    return FAMILIES[request.param]().eval()


def test_logits_are_the_projected_hidden_states(model):
    check_projection(model, "any")
    ids = torch.tensor([[3, 4, 5]])
    ours = project(model, hidden_states(model, ids), 13)
    torch.testing.assert_close(ours, model(ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_on_the_right_changes_nothing(model):
    alone = hidden_states(model, torch.tensor([[3, 4, 5]]))
    padded = hidden_states(model, torch.tensor([[3, 4, 5, 0, 0, 0], [6, 7, 8, 9, 10, 11]]))
    torch.testing.assert_close(padded[0, :3], alone[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_of_different_lengths_decode_as_if_alone(model):
    """Also after a row was freed and read anew, and after others were dropped."""
    check_decoding(model, "any", longest=24)
    texts = [[3, 4, 5, 6, 7, 8, 9], [6, 7, 8, 9, 10, 11, 12, 2, 1], [5, 4, 3, 2, 1, 6, 7]]
    alone = [hidden_states(model, torch.tensor([text]))[0] for text in texts]
    cache = RaggedCache(model, 3)
    first = cache.read([texts[0][:2], texts[1][:5]], [0, 2])
    torch.testing.assert_close(first, torch.stack([alone[0][1], alone[1][4]]), atol=1e-4, rtol=1e-4)
    for step in range(2):
        hidden = cache.step(torch.tensor([texts[0][2 + step], 0, texts[1][5 + step]]))
        torch.testing.assert_close(hidden[0], alone[0][2 + step], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(hidden[2], alone[1][5 + step], atol=1e-4, rtol=1e-4)
    cache.free([0])
    cache.read([texts[2][:3]], [0])
    assert cache.lengths == [3, 0, 7]
    hidden = cache.step(torch.tensor([texts[2][3], 0, texts[1][7]]))
    torch.testing.assert_close(hidden[0], alone[2][3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hidden[2], alone[1][7], atol=1e-4, rtol=1e-4)
    cache.keep([0])
    hidden = cache.step(torch.tensor([texts[2][4]]))
    torch.testing.assert_close(hidden[0], alone[2][4], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_short_prompts_are_not_padded_to_a_long_one(monkeypatch):
    model, read = tiny_gpt2(1, scale=3), []
    plain = kv_cache.hidden_states

    def spy(model, ids_bt, **more):
        if ids_bt.shape[1] > 1:  # a step's are one token each
            read.append(tuple(ids_bt.shape))
        return plain(model, ids_bt, **more)

    monkeypatch.setattr(kv_cache, "hidden_states", spy)
    prompts = [[1 + (row + at) % 9 for at in range(2 + row % 4)] for row in range(8)]
    prompts += [[1 + at % 9 for at in range(40)], [2 + at % 9 for at in range(37)]]
    found = []
    for padding in (amounts.PASS_TOKENS["cpu"], 0):
        monkeypatch.setitem(amounts.PASS_TOKENS, "cpu", padding)
        cache = RaggedCache(model, len(prompts))
        hidden = cache.read(prompts, range(len(prompts)))
        found.append([hidden, cache.step(torch.arange(len(prompts))).clone()])
    # prompts of 2 to 5 tokens, and the long ones; then all of them as long as the longest
    assert read == [(8, 16), (2, 40), (10, 40)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# further ones of transformers: `docs/families.md` names them
OTHERS = {
    "fits": {
        "qwen3": {"head_dim": 8},
        "smollm3": {},
        "gemma3_text": {"head_dim": 8, **WINDOW},
        "gpt_neox": {},
        "phi3": {},
        "olmo2": {},
        "ministral": {"head_dim": 8, **WINDOW},
        "bloom": {"n_layer": 2, "n_head": 2},
    },
    "refused": {
        "gemma2": {"head_dim": 8, **WINDOW},
        "granite": {"logits_scaling": 8.0},
        "mamba": {},
        "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 3},
    },
}


@pytest.mark.parametrize(
    ("name", "fits"), [(name, kind == "fits") for kind in OTHERS for name in OTHERS[kind]]
)
def test_what_other_families_do_is_told(name, fits):
    torch.manual_seed(0)
    settings = OTHERS["fits" if fits else "refused"][name]
    config = CONFIG_MAPPING[name](**{**GROUPED, "pad_token_id": 0, **settings})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    try:
        check_projection(model, name)
        check_decoding(model, name, longest=24)
    except InputError as error:
        assert not fits
        assert f"model '{name}' (" in str(error) and "use a family such as gpt2" in str(error)
    else:
        assert fits


def test_a_family_that_decodes_otherwise_is_refused():
    model = tiny_gpt2(0)
    body = model.base_model
    plain = body.forward

    def forgetful(*args, position_ids=None, **kwargs):
        return plain(
            *args, position_ids=None if position_ids is None else position_ids * 0, **kwargs
        )

    body.forward = forgetful
    with pytest.raises(InputError, match=r"model 'odd' .* token by token"):
        check_decoding(model, "odd", longest=24)


def test_a_family_that_changes_its_logits_is_refused():
    model = tiny_gpt2(0)
    plain = model.forward

    class Scaled(type(model)):
        def forward(self, *args, **kwargs):
            out = plain(*args, **kwargs)
            out.logits = out.logits * 0.5
            return out

    model.__class__ = Scaled
    with pytest.raises(InputError, match=r"model 'odd' .* changes its logits"):
        check_projection(model, "odd")


def test_pickled_weights_are_not_read(tmp_path):
    tiny_gpt2(0).config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n")
    with pytest.raises(InputError, match="pickled format only; convert them to safetensors"):
        load_model(tmp_path)


def test_a_folder_without_weights_is_drawn_from_the_seed(tmp_path):
    GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9).save_pretrained(tmp_path)
    first, again, other = (load_model(tmp_path, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


def test_saved_models_come_back_with_the_asked_dropout(tmp_path):
    model = tiny_gpt2(0)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, dropout=0.25)
    assert loaded.transformer.drop.p == 0.25 and loaded.transformer.h[0].mlp.dropout.p == 0.25
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(loaded.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", ["biogpt", "seed_oss", "starcoder2"])
def test_no_dropout_is_left_where_none_is_asked_for(tmp_path, kind):
    """Families name it otherwise; published ones of these have it in embeddings, attention or residuals."""
    config = tiny(kind).config
    names = {key for key in vars(config) if "drop" in key}
    for key in names:
        setattr(config, key, 0.0 if key == "layerdrop" else 0.3)
    config.save_pretrained(tmp_path)
    ids = torch.arange(3, 12)[None]
    for dropout, different in ((0.0, 1), (0.5, 2)):
        model = load_model(tmp_path, dropout=dropout).train()
        assert len({model(ids).logits.sum().item() for _ in range(2)}) == different
    assert names and names <= {*DROPOUT_KEYS}


def test_no_family_that_decodes_has_dropout_of_another_name():
    """Heads that classify or summarise, which no training has, may have their own."""
    for kind in DECODE.split():
        config = CONFIG_MAPPING[kind]()
        names = {name for name in config.to_dict() if "drop" in name and name != "layerdrop"}
        others = {name for name in names if not name.startswith(("classifier_", "summary_"))}
        assert others <= {*DROPOUT_KEYS}, kind
        for part, key in dropout_settings(config):
            setattr(part, key, 0.25)  # configurations check the type of what they are given


def test_the_shape_of_a_model_is_read_by_its_familys_names():
    """From `config.json` alone, as costs and budgets are counted: no family has the usual values of another."""
    for kind in DECODE.split():
        config = CONFIG_MAPPING[kind]().get_text_config()
        shape = of_config(config.to_dict())
        found = shape.width, shape.layers, shape.heads
        names = "hidden_size", "num_hidden_layers", "num_attention_heads"
        assert found == tuple(getattr(config, name) for name in names), kind
    falcon = of_config(FalconConfig(hidden_size=64, num_attention_heads=4).to_dict())
    assert (falcon.keys, falcon.queries) == (16, 64)  # one head of keys for all
    gemma = {key: value for key, value in GemmaConfig().to_dict().items() if "tie" not in key}
    assert of_config(gemma).tied and not of_config(LlamaConfig().to_dict()).tied


def test_activations_of_many_kernels_are_replaced_by_equal_ones(tmp_path):
    model = tiny_gpt2(0)
    assert model.config.activation_function == "gelu_new"
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path).eval()
    assert loaded.config.activation_function == "gelu_pytorch_tanh"
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_responses_keep_their_blanks_before_punctuation():
    """As French has them, and references: some tokenizers' settings would take them away."""
    words = Tokenizer(models.WordLevel({"qui": 0, "?": 1}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=True)
    assert tokenizer.decode([0, 1]) == "qui?" and texts_of(tokenizer, [[0, 1]]) == ["qui ?"]
    dev = {"references": [["qui ?"]], "response_ids": [[0, 1]]}
    drawn = [SimpleNamespace(tokens=torch.tensor([0, 1]))]
    assert dev_scores(drawn, dev, tokenizer, "standard")["exact_match"] == 100


def test_vocabularies_may_be_padded_but_not_too_small():
    tokenizer = tokenizer_of(10)
    assert check_vocabulary(tiny_gpt2(0, vocabulary=16), tokenizer, "padded") == 10
    with pytest.raises(
        InputError, match="model 'small' has 8 vocabulary entries and the tokenizer 10"
    ):
        check_vocabulary(tiny_gpt2(0, vocabulary=8), tokenizer, "small")
