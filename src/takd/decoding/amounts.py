"""How many rows are decoded together, and the bytes that they take; `takd plan` counts with it, without torch."""

import math

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


def next_tokens(rows: int, vocabulary: int, models: int, scored: bool, device: str) -> float:
    """Return the bytes of the tensors of (rows, vocabulary) in a step, at most.

    Logits of each model; if they are scored, also their log-probabilities; for two models, what a
    teacher that replaces tokens needs (one that mixes uses the memory of the logits); the noise of
    some positions, on a GPU three times while it is computed, and what warpers return.
    """
    positions = noisy_positions(rows, vocabulary, device)
    logs = models * (1 + scored) + (3 if models > 1 else 0)
    noise = positions * (1 if device == "cpu" else 3) + 1
    return 4.0 * rows * vocabulary * (logs + noise)


def fitting_rows(
    row: float, vocabulary: int, models: int, scored: bool, device: str, free: float
) -> int:
    """Return the rows that fit into free memory, at least 1 and at most those worth decoding.

    Args:
        row: bytes of a row that are no tensor of (rows, vocabulary): keys, values, hidden states.
        free: bytes, of which `USABLE` are taken.
    """
    kind = "cpu" if device == "cpu" else "cuda"
    rows = WORTH[kind]
    while rows > 1:
        needed = rows * row + next_tokens(rows, vocabulary, models, scored, kind)
        if needed <= USABLE[kind] * free:
            break
        # 128, 96, 64, 48, 32 …: few sizes, so that a little more or less memory changes nothing
        rows = rows * 3 // 4 if rows & (rows - 1) == 0 and rows > 2 else rows * 2 // 3
    return max(rows, 1)
