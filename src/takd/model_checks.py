"""What a model is asked once it is loaded: whether the losses and the sampling of this package fit its family."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from takd.errors import InputError
from takd.kvcache import RaggedCache
from takd.models import hidden_states, lowered_type
from takd.weight_files import reason

FITTING = "use a family such as gpt2, opt, llama, mistral or qwen2."
STEPS = 4  # tokens that each row decodes
SHORT = 24  # tokens of the longer row where a family has no border and no text is longer
FAR = 1024  # tokens of the longest row, if texts are so long: borders may have names that are not known here
# Keys of a configuration that name a length from which on a model computes otherwise: windows, blocks, and switches
# of the rotary frequencies.
BORDERS = (
    *("sliding_window", "window_size"),
    *("attention_chunk_size", "original_max_position_embeddings"),
)
# Largest relative error of a hidden vector that is taken for rounding. Measured in these types: correct decoding is off
# by at most 1.3e-6, 0.0025 and 0.018 with SmolLM2-135M, and by 2.5e-6, 0.0053 and 0.037 with random GPT-2, OPT, Llama,
# Mistral, Qwen2 and Gemma 3 of 6 blocks of width 256 (GPT-2 and Llama of 30, too), weights up to four times as large as
# freshly drawn ones. Positions off by one, a token less in the cache, one layer with another row's keys, or no window
# are off by 0.14 and more with SmolLM2-135M, and by about 0.1 to 1.3 in random models whose weights are as large as
# those of trained ones. Freshly drawn weights hardly heed positions (0.006 to 0.05): there, float32 alone tells.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 7e-2}


def check_model(
    model: PreTrainedModel, name: str, longest: int | None = None, reads: int | None = None
) -> None:
    """Make sure that a model computes finite numbers, and in the way that this package relies on.

    It is asked on its device, in its types and under the autocast that is on, so call this as the model will be used.

    Args:
        longest: tokens of the longest text that it will decode; None if it only reads.
        reads: tokens of the longest text that it will read beside others, if it does not decode.

    Raises:
        InputError: as `check_projection`, `check_decoding` and `check_reading`.
    """
    check_projection(model, name)
    if longest is not None:
        check_decoding(model, name, longest)
    elif reads is not None:
        check_reading(model, name, reads)


@contextmanager
def _refusing(model: PreTrainedModel, name: str, what: str) -> Iterator[None]:
    """Have a model in evaluation mode; what it raises becomes an InputError that says `what` it cannot do."""
    was_training = model.training
    model.eval()
    try:
        yield
    except (InputError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # a family may ask for anything, and raises anything without it
        raise InputError(
            f"model '{name}' ({model.config.model_type}) cannot {what} ({reason(error)}); {FITTING}"
        ) from error
    finally:
        model.train(was_training)


@torch.no_grad()
def check_projection(model: PreTrainedModel, name: str) -> None:
    """Make sure that logits are the output embedding of the last hidden states, and nothing more.

    What enters and leaves the output embedding is watched: logits that are changed after it differ from its result in
    any precision, while logits computed twice in half precision differ by rounding.

    Raises:
        InputError: numbers that are not finite, a family that cannot read a text alone, or one that scales, caps or
            otherwise changes its logits.
    """
    with _refusing(model, name, "make logits of a text alone"):
        ids = torch.arange(4, device=model.device)[None]
        passed: list[tuple[Tensor, Tensor]] = []
        head = model.get_output_embeddings()
        watch = head.register_forward_hook(
            lambda _, inputs, output: passed.append((inputs[0], output))
        )
        try:
            logits = model(input_ids=ids).logits
        finally:
            watch.remove()
        hidden = hidden_states(model, ids)
        _check_finite(hidden, name)
        _check_finite(logits, name)
        if (
            not isinstance(head, nn.Linear)
            or not passed
            or passed[0][0].shape != hidden.shape
            or not torch.equal(passed[0][1].to(logits.dtype), logits)
            or not relative_error(passed[0][0], hidden) <= _tolerance(model)
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
    kind = model.device.type
    modes = {torch.is_autocast_enabled(kind)}
    # LoRA has frozen weights in half precision beside float32, with which autocast alone can compute
    if len({parameter.dtype for parameter in model.parameters()}) == 1:
        modes.add(False)
    with _refusing(model, name, "be decoded token by token"):
        lengths = rows_to_check(model.config, longest)
        for mixed in modes:
            with torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=mixed):
                found, expected = decoded_and_at_once(model, lengths)
                differs = "token by token than at once", "its samples could not be trusted"
                _check_equal(found, expected, model, name, lengths, *differs)


@torch.no_grad()
def check_reading(model: PreTrainedModel, name: str, longest: int) -> None:
    """Make sure that a text has the same hidden states beside longer texts as alone.

    Args:
        longest: tokens of the longest text that the model will read.

    Raises:
        InputError: numbers that are not finite, or results that depend on the other rows of a batch.
    """
    with _refusing(model, name, "read several texts at once"):
        lengths = rows_to_check(model.config, longest)
        texts = _random_texts(model, lengths)
        width = max(lengths)
        padded = torch.tensor([[*text, *text[-1:] * (width - len(text))] for text in texts])
        together = hidden_states(model, padded.to(model.device))
        for row, text in enumerate(texts):
            alone = hidden_states(model, torch.tensor([text], device=model.device))[0]
            found, expected = together[row, : len(text)][-STEPS:], alone[-STEPS:]
            differs = "for a text beside others than alone", "its results would depend on the batch"
            _check_equal(found, expected, model, name, lengths, *differs)


def _check_equal(
    found: Tensor,
    expected: Tensor,
    model: PreTrainedModel,
    name: str,
    lengths: Sequence[int],
    where: str,
    why: str,
) -> None:
    """Make sure that hidden states are finite, and equal but for rounding.

    Args:
        lengths: tokens of the texts.
        where: they differ, and `why` that matters, for the message.
    """
    _check_finite(expected, name)
    _check_finite(found, name)
    error = relative_error(found, expected)
    if not error <= _tolerance(model):
        settings = model.config.get_text_config().to_dict()
        crossed = [border for border in _borders(settings) if border < max(lengths)]
        remedy = f"keep data.max_length at most {min(crossed)}, or " if crossed else ""
        raise InputError(
            f"model '{name}' ({model.config.model_type}) computes other hidden states {where} ({error:.1%} off in texts"
            f" of {', '.join(map(str, lengths))} tokens), so that {why}; {remedy}{FITTING}"
        )


def rows_to_check(config: Any, longest: int) -> list[int]:
    """Lengths of texts that lead a model across each of its borders, and far beyond the last.

    None is longer than `longest`: what lies beyond that matters to nobody, and so the check costs no more than a few of
    the texts that the model is about to read in any case. The last row is as long as those, up to `FAR` tokens.
    """
    settings = config.get_text_config()
    longest = min(longest, getattr(settings, "max_position_embeddings", longest))
    borders = sorted({border for border in _borders(settings.to_dict()) if border < longest})
    # what a window hides must be a good part of the text to be seen; a switch has to fall among the decoded tokens
    far = max(2 * borders[-1] if borders else SHORT, min(longest, FAR))
    rows = [STEPS + 3, *(border + STEPS - 1 for border in borders), far]
    return [min(length, longest) for length in rows]


def _borders(settings: Mapping[str, Any]) -> Iterator[int]:
    for key, value in settings.items():
        if isinstance(
            value, Mapping
        ):  # the rotary frequencies, in Gemma 3 those of each kind of layer
            yield from _borders(value)
        elif key in BORDERS:
            # some families give one for each layer
            yield from (each for each in (value if isinstance(value, list) else [value]) if each)


def _random_texts(model: PreTrainedModel, lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    entries = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    return [torch.randint(entries, (n,), generator=generator).tolist() for n in lengths]


def decoded_and_at_once(model: PreTrainedModel, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Hidden states at the ends of random texts, decoded together and each text alone: (texts, tokens, hidden size)."""
    texts = _random_texts(model, lengths)
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
