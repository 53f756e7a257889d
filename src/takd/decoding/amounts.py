"""How many rows are decoded together, and the bytes that they take; `takd plan` counts with it, without torch."""

import math
from typing import Any

# columns of keys and values are allocated in multiples of this; on a GPU, attention also reads so
# many, since each number of columns has a CUDA graph of its own
GROWTH = 64
# most tokens, padding included, in one pass over prompts
READ_AT_ONCE = {"cpu": 1024, "cuda": 16384}
# tokens that take as long as one more pass over prompts: further padding is worth a pass. A GPU
# computes them while the next operations are launched
PASS_TOKENS = {"cpu": 64, "cuda": 0}
# On a CPU, prompts that are read together are padded to a multiple of this: its kernels add up so
# many columns at once, so which other prompts a pass has should change no bit
LANES = 16
# steps between two looks at the tokens
AHEAD = {"cpu": 1, "cuda": 8}
# Rows beyond these are not worth their memory. A step reads as many columns of every row as the
# longest has: with the lengths of instruction data, the keys and values that 128 rows read are
# those that 16 rows read, and twice as many for 256. A CPU's products gain little beyond 64 rows
WORTH = {"cpu": 64, "cuda": 128}
# share of the memory that rows may take: the rest is for what is not counted, and fragments
USABLE = {"cpu": 0.125, "cuda": 0.85}
# numbers of a CPU's cache, and bytes on a GPU, of the noise that is computed at once
CACHED_WORDS = 2**16
NOISE_BYTES = 256 * 2**20


def room(tokens: int) -> int:
    """Return the columns that are allocated for texts of at most so many tokens."""
    return math.ceil(tokens / GROWTH) * GROWTH


def noisy_positions(rows: int, vocabulary: int, device: str) -> int:
    """Return the positions of each row whose noise is computed together, a power of two up to 8."""
    most = CACHED_WORDS if device == "cpu" else NOISE_BYTES // 4
    return 2 ** (max(1, min(most // (rows * vocabulary), 8)).bit_length() - 1)


def between(sample: bool = True, top_k: int = 0, top_p: float = 1.0, **more: Any) -> float:
    """Return how many float32 tensors of (rows, vocabulary) cutting or replacing takes for a moment, at most.

    Counted from what they allocate (tests/test_footprint.py).

    Args:
        sample, top_k, top_p: as in `Decoding`, as is `teacher_top_k`, among what else there is.
    """
    if more.get("teacher_top_k"):
        return 3.3
    if not sample:
        return 0.0
    return 5.5 + (top_k > 0) if top_p < 1 else 3.0 * (top_k > 0)


def next_tokens(
    rows: int, vocabulary: int, models: int, scored: bool, device: str, extra: float = 0.0
) -> float:
    """Return the bytes of the tensors of (rows, vocabulary) in a step, at most.

    Logits of each model; if they are scored, also their log-probabilities; the noise of some
    positions, on a GPU three times while it is computed, on a CPU in pieces; a mixture takes the
    memory of the logits.

    Args:
        extra: as `between` returns it.
    """
    positions = noisy_positions(rows, vocabulary, device)
    numbers = rows * vocabulary
    piece = positions * numbers
    if device == "cpu":
        piece = min(piece, max(CACHED_WORDS, vocabulary))
    tensors = models * (1 + scored) + positions
    # what was cut or replaced is there while the noise is computed
    works = max(2 * piece + numbers * (extra > 0), numbers * extra)
    return 4.0 * (numbers * tensors + works + vocabulary)


def fitting_rows(
    row: float,
    vocabulary: int,
    models: int,
    scored: bool,
    device: str,
    free: float,
    extra: float = 0.0,
) -> int:
    """Return the rows that fit into free memory, at least 1 and at most those worth decoding.

    Args:
        row: bytes of a row that are no tensor of (rows, vocabulary): keys, values, hidden states.
        free: bytes, of which `USABLE` are taken.
        extra: as `between` returns it.
    """
    kind = "cpu" if device == "cpu" else "cuda"
    rows = WORTH[kind]
    while rows > 1:
        needed = rows * row + next_tokens(rows, vocabulary, models, scored, kind, extra)
        if needed <= USABLE[kind] * free:
            break
        # 128, 96, 64, 48, 32 …: few sizes, so that a little more or less memory changes nothing
        rows = rows * 3 // 4 if rows & (rows - 1) == 0 and rows > 2 else rows * 2 // 3
    return max(rows, 1)
