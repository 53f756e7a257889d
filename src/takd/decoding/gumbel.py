"""Counter-based Gumbel noise for sampling: each value depends on its keys only, with no state."""

import functools

import torch
from torch import Tensor

from takd.decoding.amounts import CACHED_WORDS

# on the host also for a GPU, which gets it as a number
HALF_A_STEP = torch.tensor(-(2.0**-32), dtype=torch.float32, device="cpu")


def _int32(words: Tensor) -> Tensor:
    """Return the lower 32 bits of words as signed integers, whose products wrap around."""
    # torch has no unsigned 32-bit products: words from 2^31 on become negative, with equal bits
    words = words & 0xFFFFFFFF
    return (words - ((words & 0x80000000) << 1)).int()


def _mix_(x: Tensor) -> Tensor:
    """Mix all bits of 32-bit words in place, with the finaliser of MurmurHash3, a bijection."""
    # constants less 2^32 are the int32 numbers of equal bits
    _shifted_xor_(x, 16)
    x.mul_(0x85EBCA6B - 2**32)
    _shifted_xor_(x, 13)
    x.mul_(0xC2B2AE35 - 2**32)
    return _shifted_xor_(x, 16)


def _shifted_xor_(x: Tensor, bits: int) -> Tensor:
    """Compute x ^ (x >> bits) of unsigned 32-bit words in place."""
    if bits == 16 and x.device.type != "cpu" and not torch.compiler.is_compiling():
        # the upper half stays: a GPU, whose memory limits it, reads and writes the words once
        halves = x.view(torch.int16)
        halves[..., ::2].bitwise_xor_(halves[..., 1::2])
        return x
    # `>>` copies the sign bit of an int32, so the mask clears the upper bits
    return x.bitwise_xor_((x >> bits).bitwise_and_(2 ** (32 - bits) - 1))


@functools.lru_cache(maxsize=4)
def _token_words(vocabulary: int, device: torch.device) -> Tensor:
    # the same for all rows and steps, so computed once
    return _mix_(torch.arange(1, vocabulary + 1, dtype=torch.int32, device=device))


def noise_words(seeds: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
    """Mix the keys of noise into two 32-bit words each, (2, ...), int32.

    Two words (64 bits), because with one, two rows would soon share all of their noise.

    Args:
        seeds, keys, positions: int64 tensors that broadcast to one shape, of which the lower 32
            bits are used.
    """
    first, second = (_int32(torch.full_like(seeds, c)) for c in (0x243F6A88, 0x13198A2E))
    for words in map(_int32, (seeds, keys, positions)):
        first = _mix_((first ^ words) + (0x9E3779B9 - 2**32))
        second = _mix_((second + words) * 0x27D4EB2F)
    return torch.stack([first, second])


def _bits(tokens: Tensor, words_2: Tensor) -> Tensor:
    """Mix words of tokens and of noise, which broadcast, into 31 random bits each, int32."""
    return _mix_((tokens ^ words_2[0]).add_(words_2[1])).bitwise_and_(0x7FFFFFFF)


def negative_noise(tokens: Tensor, words_2: Tensor) -> Tensor:
    """Compute the noise of `negative_noise_` by operations that torch.compile fuses into one.

    Args:
        tokens: numbers of tokens, int32.
        words_2: as returned by `noise_words`, (2, ...), so that each half broadcasts with the tokens.
    """
    bits = _bits(_mix_(tokens + 1), words_2)
    minus_v = bits.to(torch.float32) * -(2.0**-31) - 2.0**-32
    return minus_v.clamp(min=2.0**-24 - 1).log1p().neg().log()


def negative_noise_(out_nv: Tensor, words_2n: Tensor) -> Tensor:
    """Fill a float32 tensor, (n, vocabulary), with negative Gumbel noise; return it.

    Negative, because `x - (-g)` equals `x + g` in every bit and saves an operation.

    Args:
        words_2n: as returned by `noise_words`, (2, n).
    """
    rows, vocabulary = out_nv.shape
    tokens_v = _token_words(vocabulary, out_nv.device)
    # a CPU is ten times faster on pieces that fit into its cache
    size = max(1, CACHED_WORDS // vocabulary) if out_nv.device.type == "cpu" else rows
    for start in range(0, rows, size):
        words_2m1 = words_2n[:, start : start + size, None]
        # v is uniform in (0, 1), E = -log(1 - v) is exponential, and -log E is Gumbel noise. The
        # largest noise comes from the smallest v, where float32 is finest and log1p keeps all
        # digits
        minus_v = out_nv[start : start + size]
        # powers of two round nothing, so that one operation does for adding 0.5 and scaling
        torch.add(HALF_A_STEP, _bits(tokens_v, words_2m1), alpha=-(2.0**-31), out=minus_v)
        minus_v.clamp_(min=2.0**-24 - 1).log1p_().neg_().log_()
    return out_nv


def gumbel_noise(seeds_b: Tensor, keys_b: Tensor, positions_b: Tensor, vocabulary: int) -> Tensor:
    """Compute standard Gumbel noise as a pure function of its keys, (batch, vocabulary), float32.

    Args:
        seeds_b, keys_b, positions_b: keys, (batch,) int64, of which the lower 32 bits are used.
        vocabulary: number of tokens.
    """
    noise_bv = torch.empty(len(seeds_b), vocabulary, device=seeds_b.device)
    return negative_noise_(noise_bv, noise_words(seeds_b, keys_b, positions_b)).neg_()
