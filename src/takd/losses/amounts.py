"""How many tokens a loss compares at once, and what stays on a device; `takd plan` counts with it, without torch."""

# bytes of one (chunk, vocabulary) tensor: small on a CPU, which loses time on new memory pages;
# large on a GPU, to keep all its cores busy
CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
# bytes of the logits that a loss gets at once on a CPU: what it computes of them stays in the
# processor's cache. A GPU's losses get a whole chunk
BLOCK_BYTES = 2**18
LEAST_BLOCK = 4  # tokens: with fewer, calls take longer than what they compute
TILE = 64  # tokens: matrix products are fastest for multiples of it
HEAD_ROWS = 16384  # rows of a half-precision head whose float32 gradients are computed at once
# most of a card's memory that the hidden states of a round of responses take there
KEPT_SHARE = 1 / 16


def chunk_tokens(vocabulary: int, device: str) -> int:
    """Return the number of tokens per chunk, from the memory that their float32 logits take."""
    tokens = CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * vocabulary)
    return max(16, tokens - tokens % TILE if tokens > TILE else tokens)


def block_tokens(vocabulary: int, device: str) -> int:
    """Return the number of tokens whose losses are computed at once; 0 for all of a chunk."""
    return max(LEAST_BLOCK, BLOCK_BYTES // (4 * vocabulary)) if device == "cpu" else 0
