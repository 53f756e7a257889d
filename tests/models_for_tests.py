"""Models and data of a few kilobytes, made by the tests."""

import itertools
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from takd.methods.base import Context

END = 0
MINILLM_PAPER = {
    "batch_size": 4,
    "rollouts_per_round": 4,
    "inner_epochs": 1,
    "teacher_mix": 0.0,
    "temperature": 1.0,
    "discount": 1.0,
    "return_includes_current": False,
    "reward_scale": 1.0,
    "reward_clip": 1e9,
    "length_normalisation": False,
    "whitening": "none",
    "ratio_clip": None,
    "clip_weighted_ratio": True,
    "importance": "token",
    "single_step_weight": 1.0,
    "single_step_importance": False,
    "mean_over": "tokens",
    "lm_weight": 0.0,
    "lm_teacher_share": 0.5,
    "lm_batch_size": None,
    "lm_teacher_outputs": "live",
    "teacher_prompts": "own",
    "advantage": "teacher",
}
MINILLM_REFERENCE = {
    **MINILLM_PAPER,
    "inner_epochs": 4,
    "teacher_mix": 0.2,
    "discount": 0.95,
    "return_includes_current": True,
    "reward_scale": 0.5,
    "reward_clip": 100.0,
    "length_normalisation": True,
    "whitening": "slots",
    "ratio_clip": 0.2,
}


def tiny_gpt2(
    seed: int,
    vocabulary: int = 11,
    width: int = 16,
    layers: int = 2,
    positions: int = 64,
    scale: float = 4.0,
) -> GPT2LMHeadModel:
    """Build a random GPT-2; `scale` multiplies the weights, so that its distributions are far from uniform."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_layer=layers,
        n_embd=width,
        n_head=2,
        n_positions=positions,
        bos_token_id=END,
        eos_token_id=END,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def tokenizer_of(tokens: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer of `tokens` words, the first of which is the end token."""
    words = WordLevel({f"w{number}": number for number in range(tokens)})
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token=f"w{END}")


def context(settings: dict[str, Any], teacher: Any, vocabulary: int, **more: Any) -> Context:
    """Build a method's context with four made-up rows."""
    rows = {
        "id": [0, 1, 2, 3],
        "prompt_ids": [[1, 2], [2, 1, 1], [1], [2, 2]],
        "response_ids": [[1, 2, END], [2, END], [1, 1, 1, END], [END]],
    }
    values: dict[str, Any] = {
        "settings": settings,
        "seed": 5,
        "train": Dataset.from_dict(rows),
        "vocabulary": vocabulary,
        "max_new_tokens": 3,
        "teacher": teacher,
    }
    return Context(**{**values, **more})


def all_responses(vocabulary: int, longest: int) -> list[list[int]]:
    """List every response of at most `longest` tokens that ends with the end token or at the limit."""
    others = [token for token in range(vocabulary) if token != END]
    found = [
        [*start, END]
        for length in range(longest)
        for start in itertools.product(others, repeat=length)
    ]
    return found + [list(full) for full in itertools.product(others, repeat=longest)]


def token_log_probabilities(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Log-probability of each response token by one full forward pass, (length,)."""
    ids = torch.tensor([[*prompt, *response]])
    logits = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logits.gather(-1, ids[0, len(prompt) :, None])[:, 0]


def teacher_hidden(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Last hidden states that predict each response token, (length, hidden size)."""
    ids = torch.tensor([[*prompt, *response]])
    return model.base_model(ids).last_hidden_state[0, len(prompt) - 1 : -1]
