"""Plain text, tokenised and cut into blocks of equal length."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from takd.data import sources
from takd.data.arrow import save
from takd.data.tally import Unused
from takd.data.tokenise import Encoder
from takd.runtime.errors import InputError

PORTION = 2**20  # characters of a corpus tokenised at once, since a document may be a whole book


def write_corpus(
    spec: dict[str, Any], encoder: Encoder, folder: Path
) -> tuple[dict[str, Any], list[str]]:
    """Write the blocks of a corpus as a data set.

    Returns:
        Fields of its manifest, and lines for the console.

    Raises:
        InputError: the corpus does not fill one block.
    """
    from datasets import Features, List, Value

    size, wanted = spec["block_length"], spec["blocks"]
    counts = {"documents": 0, "blocks": 0, "left_over_tokens": 0, "empty_documents": 0}
    unused = Unused()

    def empty() -> None:
        counts["empty_documents"] += 1

    def blocks() -> Iterator[dict[str, Any]]:
        stream: list[int] = []
        for portion in _portions(sources.texts(spec["source"], empty, unused)):
            for document in encoder.responses(portion):
                counts["documents"] += 1
                stream += document
                full = len(stream) - len(stream) % size
                for start in range(0, full, size):
                    counts["blocks"] += 1
                    yield {"input_ids": stream[start : start + size]}
                stream = stream[full:]
        counts["left_over_tokens"] = len(stream)

    # islice leaves the rest of the source unread
    features = Features({"input_ids": List(Value("int32"))})
    digest = save(islice(blocks(), wanted), features, folder)
    if not counts["blocks"]:
        raise InputError(
            f"{sources.describe(spec['source'])}: {counts['documents']} documents with"
            f" {counts['left_over_tokens']} tokens do not fill one block of {size} tokens; set a smaller"
            " data.corpus.block_length."
        )
    tokens = {"text": counts["blocks"] * size}
    message = f"{counts['blocks']} blocks of {size} tokens from {counts['documents']} documents"
    if wanted and counts["blocks"] < wanted:
        message += f", all that there are of the {wanted} wanted"
    if counts["empty_documents"]:
        message += f", {counts['empty_documents']} empty documents left out"
    found = {"counts": counts, "unused": unused.record(), "tokens": tokens, "sha256": digest}
    return found, [message, *unused.sentences(0, 0)]


def _portions(documents: Iterable[str]) -> Iterator[list[str]]:
    """Cut a stream of documents into lists of about `PORTION` characters."""
    portion: list[str] = []
    size = 0
    for document in documents:
        portion.append(document)
        size += len(document)
        if size >= PORTION:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
