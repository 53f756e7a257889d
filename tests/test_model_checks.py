"""What a model is asked before it is used: that real families pass in every type, and that each fault is seen."""

import pytest
import torch
from models_for_tests import tiny_gpt2
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
)

from takd.decoding import kv_cache, model_checks
from takd.decoding.kv_cache import RaggedCache
from takd.decoding.model_checks import (
    TOLERANCE,
    check_decoding,
    check_model,
    check_projection,
    check_reading,
    decoded_and_at_once,
    rows_to_check,
)
from takd.models.causal_lm import DecodingMasks, relative_error
from takd.runtime.errors import InputError

LONGEST = 48
LAYERS = 4
LLAMA = {
    **{"hidden_size": 64, "num_hidden_layers": LAYERS, "vocab_size": 64},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96},
    "max_position_embeddings": 64,
}
WINDOW = {"sliding_window": 16}
GEMMA = {**LLAMA, **WINDOW, "head_dim": 16, "pad_token_id": 0}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
}
FAMILIES = {
    "gpt2": GPT2Config(n_embd=64, n_layer=LAYERS, n_head=4, vocab_size=64, n_positions=64),
    "opt": OPTConfig(
        **{**LLAMA, "ffn_dim": 96, "word_embed_proj_dim": 64, "num_key_value_heads": 4}
    ),
    "llama": LlamaConfig(**LLAMA),
    "mistral-window": MistralConfig(**LLAMA, **WINDOW),
    "qwen2-window-in-some": Qwen2Config(
        **LLAMA, **WINDOW, use_sliding_window=True, max_window_layers=2
    ),
    "gemma3": Gemma3TextConfig(**GEMMA),
    # its settings lie one level deeper
    "gemma3-nested": Gemma3Config(text_config=GEMMA, vision_config=VISION),
}
WINDOWED = [name for name in FAMILIES if "window" in name or "gemma" in name]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def made(name, dtype=torch.float32):
    """A random model whose weights are about as large as those of trained ones, so that positions matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6.0)
            parameter.data = parameter.to(dtype)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_families_pass_in_every_type_with_room_to_spare(name, dtype):
    model = made(name, dtype)
    check_model(model, name, LONGEST)
    with torch.no_grad():
        found = decoded_and_at_once(model, rows_to_check(model.config, LONGEST))
    assert relative_error(*found) < TOLERANCE[dtype] / 2.5


@pytest.mark.parametrize("name", FAMILIES)
def test_families_pass_as_a_student_under_autocast(name):
    model = made(name)
    with torch.autocast("cpu", torch.bfloat16):
        check_model(model, name, LONGEST)


def without_window(mask, ends):
    """As the mask of a cache that knows of no window."""
    if not isinstance(mask, dict):
        shown = torch.arange(mask.shape[-1]) <= ends[..., None]
        return torch.where(shown, 0.0, -torch.inf).to(mask.dtype)[..., None, None, :]
    return dict.fromkeys(mask, mask["full_attention"])


def without_a_token(mask, ends):
    """As if the token before the last had not been written down; in the second row alone."""
    columns = next(iter(mask.values())) if isinstance(mask, dict) else mask
    hidden = torch.arange(columns.shape[-1]) == ends[..., None] - 1
    hidden[:, torch.arange(hidden.shape[1]) != 1] = False
    hidden = hidden[..., None, None, :]
    if isinstance(mask, dict):
        return {kind: each.masked_fill(hidden, -torch.inf) for kind, each in mask.items()}
    return mask.masked_fill(hidden, -torch.inf)


def faulty_mask(monkeypatch, change):
    plain = DecodingMasks.of
    monkeypatch.setattr(
        DecodingMasks, "of", lambda masks, ends, columns: change(plain(masks, ends, columns), ends)
    )


def shifted_positions(monkeypatch):
    plain = kv_cache.hidden_states

    def shifted(*args, positions_bt=None, **kwargs):
        at = None if positions_bt is None else positions_bt + 1
        return plain(*args, positions_bt=at, **kwargs)

    monkeypatch.setattr(kv_cache, "hidden_states", shifted)


def one_wrong_layer(monkeypatch):
    plain = RaggedCache.update

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        if layer_idx == 1:
            key_states, value_states = key_states.flip(0), value_states.flip(0)
        return plain(self, key_states, value_states, layer_idx, *args, **kwargs)

    monkeypatch.setattr(RaggedCache, "update", update)


FAULTS = {
    "no window": lambda m: faulty_mask(m, without_window),
    "a token less in one row": lambda m: faulty_mask(m, without_a_token),
    "positions": shifted_positions,
    "one layer": one_wrong_layer,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, f) for name in FAMILIES for f in FAULTS if f != "no window" or name in WINDOWED],
)
def test_each_fault_is_seen_in_every_type(monkeypatch, name, fault, dtype):
    model = made(name, dtype)
    FAULTS[fault](monkeypatch)
    with pytest.raises(InputError, match="other hidden states token by token than at once"):
        check_decoding(model, name, LONGEST)


def test_a_fault_that_rounding_hides_is_seen_in_a_student_under_autocast(monkeypatch):
    """Rotary positions hardly matter to freshly drawn weights; the student has them in float32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES["llama"]).eval()
    shifted_positions(monkeypatch)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(InputError, match="other hidden states"),
    ):
        check_decoding(model, "any", LONGEST)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_not_finite_are_told_as_such(value, dtype):
    model = made("llama", dtype)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0] = value
    said = "computes numbers that are not finite .* in " + str(dtype).removeprefix("torch.")
    for check in (check_projection, lambda m, n: check_decoding(m, n, LONGEST)):
        with pytest.raises(InputError, match=said):
            check(model, "any")


def test_a_model_that_leaves_the_range_of_float16_is_told_to_take_another_type():
    model = made("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e6)
    check_model(model, "any", LONGEST)
    with pytest.raises(InputError, match=r"not finite .* float16: .* precision 'fp32' or 'bf16'"):
        check_model(nn.Module.to(model, torch.float16), "any", LONGEST)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_that_are_changed_a_little_are_refused_in_every_type(dtype):
    model = nn.Module.to(tiny_gpt2(0), dtype)
    plain = model.forward

    class Capped(type(model)):
        def forward(self, *args, **kwargs):
            out = plain(*args, **kwargs)
            out.logits = 30 * torch.tanh(out.logits / 30)
            return out

    model.__class__ = Capped
    with pytest.raises(InputError, match="changes its logits"):
        check_projection(model, "capped")


def phi3(**settings):
    """Rotary frequencies that change at a length of 16."""
    scaled = {"rope_type": "longrope", "rope_theta": 1e4}
    scaled |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    scaled["original_max_position_embeddings"] = 16
    config = Phi3Config(
        **{**LLAMA, "original_max_position_embeddings": 16, "pad_token_id": 0},
        rope_parameters=scaled,
        **settings,
    )
    return config


def test_texts_that_cross_a_switch_of_the_frequencies_are_checked():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(phi3()).eval()
    check_decoding(model, "any", longest=16)
    with pytest.raises(InputError, match="other hidden states"):
        check_decoding(model, "any", longest=LONGEST)


def switching(kind, **settings):
    """Rotary frequencies that change for all rows of a batch when one of them is longer than 16 tokens."""
    torch.manual_seed(0)
    scaled = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16}
    scaled |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    config = CONFIG_MAPPING[kind](
        **{**LLAMA, "pad_token_id": 0}, rope_parameters=scaled, **settings
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "olmo2", "smollm3"])
def test_a_text_that_depends_on_the_others_of_its_batch_is_refused(kind):
    model = switching(kind)
    check_model(model, kind, reads=16)
    check_model(model, kind, longest=16)
    for lengths in ({"reads": LONGEST}, {"longest": LONGEST}):
        with pytest.raises(InputError, match=r"other hidden states .* data\.max_length at most 16"):
            check_model(model, kind, **lengths)


@pytest.mark.parametrize("long", [13, 30, 600])
def test_a_border_that_no_setting_names_is_crossed(long):
    """As experts with room for so many tokens of a batch, and attention to some of so many blocks."""
    model = made("llama")
    model.config.max_position_embeddings = 2000
    plain = model.model.layers[1].mlp.forward
    model.model.layers[1].mlp.forward = lambda hidden: plain(hidden) * (hidden.shape[1] <= long)
    check_reading(model, "any", longest=long)
    with pytest.raises(InputError, match="for a text beside others than alone"):
        check_reading(model, "any", longest=2 * long)


def test_comparisons_do_not_pass_with_numbers_that_are_not_finite(monkeypatch):
    """`nan > x` is false for every x."""
    model = made("llama")
    monkeypatch.setattr(model_checks, "_check_finite", lambda values, name: None)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    for check in (check_decoding, check_reading):
        with pytest.raises(InputError, match="other hidden states"):
            check(model, "any", LONGEST)


class Failing(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, *args, **kwargs):
        raise self.error


ERRORS = [
    IndexError("list index out of range"),
    KeyError("pixel_values"),
    AssertionError(),
    ImportError("flash_attn is needed"),
    ValueError("You have to specify encoder_hidden_states\nor encoder_outputs"),
    ZeroDivisionError("division by zero"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_family_raises_is_one_sentence(error):
    model = made("gpt2")
    model.transformer.h[1].mlp = Failing(error)
    model.train()
    for check, longest in ((check_projection, []), (check_decoding, [24]), (check_reading, [24])):
        with pytest.raises(InputError) as told:
            check(model, "odd", *longest)
        said = str(told.value)
        assert "model 'odd' (gpt2) cannot" in said and type(error).__name__ in said
        assert said.endswith("mistral or qwen2.") and "\n" not in said
        assert model.training


def test_the_check_reads_no_further_than_the_texts_of_the_experiment():
    assert rows_to_check(MistralConfig(sliding_window=4096), 512) == [7, 512]
    assert rows_to_check(MistralConfig(sliding_window=4096), 10_000) == [7, 4099, 8192]
    assert rows_to_check(MistralConfig(sliding_window=500), 512) == [7, 503, 512]
    assert rows_to_check(FAMILIES["gemma3-nested"], 48) == [7, 19, 48]
    assert rows_to_check(FAMILIES["gemma3-nested"], 12) == [7, 12]
    assert rows_to_check(FAMILIES["gpt2"], 1000) == [7, 64]
    assert rows_to_check(GPT2Config(n_positions=4096), 4000) == [7, 1024]
    assert rows_to_check(phi3(), 64) == [7, 19, 64]
    # no further than a model has positions
    assert max(rows_to_check(MistralConfig(**LLAMA, sliding_window=40), 1000)) == 64
    for longest in range(2, 80):
        for config in FAMILIES.values():
            assert 2 <= max(rows_to_check(config, longest)) <= longest
