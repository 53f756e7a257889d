"""What a model is asked once it is loaded: whether the losses and the sampling of this package fit its family."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from takd.errors import InputError
from takd.kvcache import RaggedCache
from takd.models import hidden_states, lowered_type

FITTING = "use a family such as gpt2, opt, llama, mistral or qwen2."
STEPS = 4  # tokens that each row decodes
SHORT = 24  # tokens of the longer row where a family has no border
# Keys of a configuration that name a length from which on a model computes otherwise: windows, blocks, and switches
# of the rotary frequencies.
BORDERS = ("sliding_window", "attention_chunk_size", "original_max_position_embeddings")
# Largest relative error of a hidden vector that is taken for rounding. Measured in these types: correct decoding is off
# by at most 1.3e-6, 0.0025 and 0.018 with SmolLM2-135M, and by 2.5e-6, 0.0053 and 0.037 with random GPT-2, OPT, Llama,
# Mistral, Qwen2 and Gemma 3 of 6 blocks of width 256 (GPT-2 and Llama of 30, too), weights up to four times as large as
# freshly drawn ones. Positions off by one, a token less in the cache, one layer with another row's keys, or no window
# are off by 0.14 and more with SmolLM2-135M, and by about 0.1 to 1.3 in random models whose weights are as large as
# those of trained ones. Freshly drawn weights hardly heed positions (0.006 to 0.05): there, float32 alone tells.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 7e-2}


def check_model(model: PreTrainedModel, name: str, longest: int | None = None) -> None:
    """Make sure that a model computes finite numbers, and in the way that this package relies on.

    It is asked on its device, in its types and under the autocast that is on, so call this as the model will be used.

    Args:
        longest: tokens of the longest text that it will decode; None if it only reads.

    Raises:
        InputError: as `check_projection` and `check_decoding`.
    """
    check_projection(model, name)
    if longest is not None:
        check_decoding(model, name, longest)


@torch.no_grad()
def check_projection(model: PreTrainedModel, name: str) -> None:
    """Make sure that logits are the output embedding of the last hidden states, and nothing more.

    What enters and leaves the output embedding is watched: logits that are changed after it differ from its result in
    any precision, while logits computed twice in half precision differ by rounding.

    Raises:
        InputError: numbers that are not finite, or a family that scales, caps or otherwise changes its logits.
    """
    was_training = model.training
    model.eval()
    ids = torch.arange(4, device=model.device)[None]
    passed: list[tuple[Tensor, Tensor]] = []
    watch = model.get_output_embeddings().register_forward_hook(
        lambda _, inputs, output: passed.append((inputs[0], output))
    )
    try:
        logits = model(input_ids=ids).logits
    finally:
        watch.remove()
    hidden = hidden_states(model, ids)
    model.train(was_training)
    _check_finite(hidden, name)
    _check_finite(logits, name)
    if (
        not isinstance(model.get_output_embeddings(), nn.Linear)
        or not passed
        or not torch.equal(passed[0][1].to(logits.dtype), logits)
        or relative_error(passed[0][0], hidden) > _tolerance(model)
    ):
        raise InputError(
            f"model '{name}' ({model.config.model_type}) changes its logits before or after the output embedding,"
            f" which the losses here do not know; {FITTING}"
        )


@torch.no_grad()
def check_decoding(model: PreTrainedModel, name: str, longest: int) -> None:
    """Make sure that a model decodes token by token what it computes at once, across all borders of its family.

    Under autocast it is compared without it as well, where faults stand out of the rounding, unless its weights are of
    several types.

    Args:
        longest: tokens of the longest text that it will decode.

    Raises:
        InputError: numbers that are not finite, or attention that asks more of its cache than keys and values.
    """
    was_training = model.training
    model.eval()
    kind, lengths = model.device.type, rows_to_check(model.config, longest)
    modes = {torch.is_autocast_enabled(kind)}
    # LoRA has frozen weights in half precision beside float32, with which autocast alone can compute
    if len({parameter.dtype for parameter in model.parameters()}) == 1:
        modes.add(False)
    why = ""
    try:
        for mixed in modes:
            with torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=mixed):
                found, expected = decoded_and_at_once(model, lengths)
                _check_finite(expected, name)
                _check_finite(found, name)
                error = relative_error(found, expected)
                if error > _tolerance(model):
                    why = (
                        f"computes other hidden states token by token than at once ({error:.1%} off in texts of"
                        f" {', '.join(map(str, lengths))} tokens)"
                    )
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (
        AttributeError,
        IndexError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        # what a model raises whose layers are no attention, or ask their cache for something else
        reason = str(error).strip().partition("\n")[0]
        why = f"cannot be decoded token by token ({type(error).__name__}: {reason})"
    finally:
        model.train(was_training)
    if why:
        raise InputError(
            f"model '{name}' ({model.config.model_type}) {why}, so that its samples could not be trusted; {FITTING}"
        )


def rows_to_check(config: Any, longest: int) -> list[int]:
    """Lengths of texts that lead a model across each of its borders, and far beyond the last.

    None is longer than `longest`: what lies beyond that matters to nobody, and so the check costs no more than a few of
    the texts that the model is about to read in any case.
    """
    settings = config.get_text_config()
    longest = min(longest, getattr(settings, "max_position_embeddings", longest))
    borders = sorted({border for border in _borders(settings.to_dict()) if border < longest})
    # what a window hides must be a good part of the text to be seen; a switch has to fall among the decoded tokens
    far = 2 * borders[-1] if borders else SHORT
    rows = [STEPS + 3, *(border + STEPS - 1 for border in borders), far]
    return [min(length, longest) for length in rows]


def _borders(settings: Mapping[str, Any]) -> Iterator[int]:
    for key, value in settings.items():
        if isinstance(
            value, Mapping
        ):  # the rotary frequencies, in Gemma 3 those of each kind of layer
            yield from _borders(value)
        elif key in BORDERS and value:
            yield int(value)


def decoded_and_at_once(model: PreTrainedModel, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Hidden states at the ends of random texts, decoded together and each text alone: (texts, tokens, hidden size)."""
    generator = torch.Generator().manual_seed(0)
    entries = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    texts = [torch.randint(entries, (length,), generator=generator).tolist() for length in lengths]
    steps = min(STEPS, min(lengths) - 1)
    alone = [
        hidden_states(model, torch.tensor([text], device=model.device))[0, -steps - 1 :]
        for text in texts
    ]
    cache = RaggedCache(model, len(texts))
    decoded = [cache.read([text[:-steps] for text in texts], range(len(texts)))]
    for step in range(-steps, 0):
        tokens_b = torch.tensor([text[step] for text in texts], device=model.device)
        decoded.append(cache.step(tokens_b))
    return torch.stack(decoded, 1), torch.stack(alone)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest distance of two vectors (of the last dimension), as a share of the second one's length."""
    found, expected = found.float(), expected.float()
    distance, length = (found - expected).norm(dim=-1), expected.norm(dim=-1)
    return (distance / length.clamp_min(1e-30)).max().item()


def _tolerance(model: PreTrainedModel) -> float:
    return TOLERANCE[lowered_type(model) or model.dtype]


def _check_finite(values: Tensor, name: str) -> None:
    if not values.isfinite().all():
        kind = str(values.dtype).removeprefix("torch.")
        raise InputError(
            f"model '{name}' computes numbers that are not finite (NaN or infinity) in {kind}: its weights are damaged,"
            " or it leaves the range of that type; see that its source is whole, or choose precision 'fp32' or 'bf16'."
        )
