"""Checks that a loaded model fits the losses and the sampling of this package."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from takd.decoding.kv_cache import RaggedCache
from takd.losses.batch import RightPadded
from takd.models.causal_lm import hidden_states, relative_error
from takd.models.logits import lowered_type
from takd.models.weight_files import FITTING
from takd.runtime.errors import InputError, reason

STEPS = 4  # tokens that each text decodes
SHORT = 24  # tokens of the longer text, if the family has no borders and texts are no longer
FAR = 1024  # tokens of the last text, if texts are that long: families may have borders under other keys
# Configuration keys for lengths beyond which a model computes differently: attention windows,
# chunks, and changes of the rotary frequencies.
BORDERS = (
    *("sliding_window", "window_size"),
    *("attention_chunk_size", "original_max_position_embeddings"),
)
# Largest relative error of a hidden vector that counts as rounding, by dtype. Measured for correct
# decoding (float32, float16, bfloat16): at most 1.3e-6, 0.0025 and 0.018 with SmolLM2-135M, and
# 2.5e-6, 0.0053 and 0.037 with random GPT-2, OPT, Llama, Mistral, Qwen2 and Gemma 3 of 6 blocks of
# width 256 (also GPT-2 and Llama of 30 blocks), with weights up to four times as large as initial
# ones. Wrong positions, a missing token in the cache, keys of another row in one layer, or a
# missing window cause errors of 0.14 and more with SmolLM2-135M, and of about 0.1 to 1.3 in random
# models with weights as large as trained ones. Initial weights hardly depend on positions (errors
# of 0.006 to 0.05), so only float32 detects errors there.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 7e-2}


def check_model(
    model: PreTrainedModel, name: str, longest: int | None = None, reads: int | None = None
) -> None:
    """Check that a model computes finite values, and in the way that this package relies on.

    The check runs on the model's device, in its dtypes and under the current autocast, so call it
    where the model will be used.

    Args:
        name: name of the model, for error messages.
        longest: tokens of the longest text that it will decode; None if it only reads texts.
        reads: tokens of the longest text that it will read in a batch, if it does not decode.

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
    """Run a check in evaluation mode; turn exceptions into an InputError that says what fails."""
    was_training = model.training
    model.eval()
    try:
        yield
    except (InputError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # an unsupported family may raise any exception
        raise InputError(
            f"model '{name}' ({model.config.model_type}) cannot {what} ({reason(error)}); {FITTING}"
        ) from error
    finally:
        model.train(was_training)


@torch.no_grad()
def check_projection(model: PreTrainedModel, name: str) -> None:
    """Check that logits are exactly the output embedding applied to the last hidden states.

    A hook records input and output of the output embedding. Logits that are changed later differ
    from its output in any precision, whereas computing logits twice in half precision would differ
    by rounding.

    Raises:
        InputError: values are not finite; the family cannot process a text alone; or it scales,
            caps or otherwise changes its logits.
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
        # written as `not ... <=` so that NaN fails, too
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
    """Check that decoding token by token gives the same hidden states as a single pass.

    The texts cross all length limits of the family. Under autocast, the check also runs without it,
    where errors stand out from rounding, unless the weights have several dtypes.

    Raises:
        InputError: values are not finite, or attention needs more from its cache than keys and
            values.
    """
    kind = model.device.type
    modes = {torch.is_autocast_enabled(kind)}
    # LoRA models have half-precision weights beside float32 ones, which only autocast can combine
    if len({parameter.dtype for parameter in model.parameters()}) == 1:
        modes.add(False)
    with _refusing(model, name, "be decoded token by token"):
        differs = "token by token than at once", "its samples could not be trusted"
        lengths = rows_to_check(model.config, longest)
        for mixed in modes:
            with torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=mixed):
                found, expected = decoded_and_at_once(model, lengths)
                _check_equal(found, expected, model, name, lengths, *differs)


@torch.no_grad()
def check_reading(model: PreTrainedModel, name: str, longest: int) -> None:
    """Check that a text has the same hidden states in a batch with longer texts as alone.

    Raises:
        InputError: values are not finite, or depend on the other rows of the batch.
    """
    with _refusing(model, name, "read several texts at once"):
        differs = "for a text beside others than alone", "its results would depend on the batch"
        lengths = rows_to_check(model.config, longest)
        texts = _random_texts(model, lengths)
        # padded on the right without a mask, as the losses pad their batches
        together = hidden_states(
            model, RightPadded.of([([], t) for t in texts], model.device).ids_bt
        )
        for row, text in enumerate(texts):
            found = together[row, : len(text)][-STEPS:]
            _check_equal(found, _alone(model, text)[-STEPS:], model, name, lengths, *differs)


def _check_equal(
    found: Tensor,
    expected: Tensor,
    model: PreTrainedModel,
    name: str,
    lengths: Sequence[int],
    where: str,
    why: str,
) -> None:
    """Check that hidden states are finite, and equal up to rounding.

    `where` and `why` are parts of the message: where results differ, and why that matters.
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
    """Return lengths of texts that cross each length limit of a model, and go well beyond the last.

    None exceeds `longest`, as longer texts do not occur, so the check costs no more than a few
    texts of the real data. The last length is that of the longest texts, up to `FAR` tokens.
    """
    settings = config.get_text_config()
    longest = min(longest, getattr(settings, "max_position_embeddings", longest))
    borders = sorted({border for border in _borders(settings.to_dict()) if border < longest})
    # a missing window shows only if it hides a large part of the text; a change of frequencies must
    # lie among the decoded tokens
    far = max(2 * borders[-1] if borders else SHORT, min(longest, FAR))
    rows = [STEPS + 3, *(border + STEPS - 1 for border in borders), far]
    return [min(length, longest) for length in rows]


def _borders(settings: Mapping[str, Any]) -> Iterator[int]:
    for key, value in settings.items():
        if isinstance(value, Mapping):  # rotary settings, which Gemma 3 nests by kind of layer
            yield from _borders(value)
        elif key in BORDERS:
            # some families have one value per layer
            yield from (each for each in (value if isinstance(value, list) else [value]) if each)


def _random_texts(model: PreTrainedModel, lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    entries = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    return [torch.randint(entries, (n,), generator=generator).tolist() for n in lengths]


def decoded_and_at_once(model: PreTrainedModel, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Compute the last hidden states of random texts in two ways, (texts, tokens, hidden size).

    Returns:
        The states when decoding all texts together token by token, and when reading each text
            alone.
    """
    texts = _random_texts(model, lengths)
    steps = min(STEPS, min(lengths) - 1)
    alone = [_alone(model, text)[-steps - 1 :] for text in texts]
    cache = RaggedCache(model, len(texts))
    # the first state comes from reading the prompts, the others from decoding `steps` tokens
    decoded = [cache.read([text[:-steps] for text in texts], range(len(texts)))]
    for step in range(-steps, 0):
        tokens_b = torch.tensor([text[step] for text in texts], device=model.device)
        decoded.append(cache.step(tokens_b))
    return torch.stack(decoded, 1), torch.stack(alone)


def _alone(model: PreTrainedModel, text: list[int]) -> Tensor:
    """Hidden states of one text, (length, hidden size)."""
    return hidden_states(model, torch.tensor([text], device=model.device))[0]


def _tolerance(model: PreTrainedModel) -> float:
    return TOLERANCE[lowered_type(model) or model.dtype]


def _check_finite(values: Tensor, name: str) -> None:
    if not values.isfinite().all():
        kind = str(values.dtype).removeprefix("torch.")
        raise InputError(
            f"model '{name}' computes numbers that are not finite (NaN or infinity) in {kind}: its weights are damaged,"
            " or it leaves the range of that type; see that its source is whole, or choose precision 'fp32' or 'bf16'."
        )
