"""Models and prompts of the benchmarks: real sizes with random weights and tokens, so that nothing is downloaded."""

from collections.abc import Sequence

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from takd.models.causal_lm import FUSED_ACTIVATIONS

VOCABULARY = 50257  # GPT-2's


def gpt2(
    layers: int,
    width: int,
    *,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
    positions: int = 512,
    fused: bool = False,
    device: torch.device | str = "cpu",
) -> GPT2LMHeadModel:
    """Make a random GPT-2 in float32 without dropout, with 64 dimensions a head, in evaluation mode.

    Args:
        fused: whether its activation is one kernel, as in all models that takd loads, or eight, as the model has it.
    """
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        activation_function=FUSED_ACTIVATIONS["gelu_new"] if fused else "gelu_new",
        n_layer=layers,
        n_embd=width,
        n_head=max(1, width // 64),
        n_positions=positions,
        bos_token_id=vocabulary - 1,
        eos_token_id=vocabulary - 1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config).eval().to(device)


def random_prompts(
    count: int, shortest: int, longest: int, *, seed: int = 0, vocabulary: int = VOCABULARY
) -> list[list[int]]:
    """Draw prompts of random tokens, without the end token, of random lengths between two bounds."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return random_texts(lengths, seed=seed, vocabulary=vocabulary)


def random_texts(
    lengths: Sequence[int], *, seed: int = 0, vocabulary: int = VOCABULARY
) -> list[list[int]]:
    """Draw texts of random tokens, without the end token, of given lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, vocabulary - 1, (length,), generator=generator).tolist()
        for length in lengths
    ]
