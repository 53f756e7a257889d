"""FLOPs of a model's passes, from its shape and the lengths of its texts; without torch.

Per token, a forward pass through the blocks costs two FLOPs per weight, and attention 4 · width · context per block;
the backward pass costs twice that, and for attention 2.5 times (its scores are recomputed). The output embedding is
applied to response tokens only. Padding is ignored: batches are sorted by length. A test compares the formulas with
torch's own counter.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from takd.models.shapes import Shape
from takd.runtime.files import read_json
from takd.runtime.records import SPENT

REFERENCE = "reference"
"""Input of a training: the manifest of the model whose cost is its budget."""
ATTENTION_BACKWARD = 2.5


def body_forward(shape: Shape, length: float) -> float:
    """FLOPs of a forward pass of one row, `length` tokens long, through the blocks."""
    return 2 * shape.body * length + 4 * shape.layers * length**2 * shape.queries


def head(shape: Shape, tokens: float) -> float:
    """FLOPs of the output embedding on a number of tokens."""
    return 2 * shape.embedding * tokens


def reading(shape: Shape, prompt: float, response: float) -> float:
    """FLOPs of a forward pass of one row, with the logits of its response."""
    return body_forward(shape, prompt + response) + head(shape, response)


def decoding(shape: Shape, prompt: float, response: float) -> float:
    """FLOPs of drawing a response token by token, after the pass over its prompt, which is not included."""
    steps, context = max(response - 1, 0), prompt + response / 2
    a_token = 2 * shape.body + 4 * shape.layers * context * shape.queries
    return steps * a_token + head(shape, response)


def distribution(shape: Shape, prompt: float, response: float, outputs: str) -> float:
    """FLOPs of a teacher's distributions of the response tokens of one row, in a training step.

    Args:
        outputs: "live" for a pass over the row; "hidden" or "kept" where its hidden states are there, so that only the
            output embedding is applied; "top_k" or "none" for nothing.
    """
    if outputs == "live":
        return reading(shape, prompt, response)
    return head(shape, response) if outputs in ("hidden", "kept") else 0.0


def trained(
    shape: Shape,
    length: float,
    predicted: float,
    lora: Any = None,
    checkpointing: bool = False,
    twice: bool = False,
) -> float:
    """FLOPs of one row forward and backward.

    Args:
        predicted: number of tokens whose distribution the loss needs.
        lora: settings of adapters, or None; frozen matrices have no gradient.
        twice: whether the output embedding is recomputed in the backward pass (ZeRO-3).
    """
    attention = 4 * shape.layers * length**2 * shape.queries
    matrices = 2 * shape.body * length
    total = (1 + 2) * matrices + (1 + ATTENTION_BACKWARD) * attention
    logits = (3 + twice) * head(shape, predicted)
    if lora:
        adapters, adapted = shape.lora(lora["rank"], lora["targets"])
        total += 3 * 2 * adapters * length - 2 * adapted * length
        logits -= head(shape, predicted)
    if checkpointing:
        total += matrices + attention
    return total + logits


def spent(folder: str, own: float, inputs: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Return what a manifest says of the FLOPs of a result and of all that it needs.

    Args:
        folder: of the result, below `results/NAME`.
        own: FLOPs of the stage itself.
        inputs: manifests that the stage reads.
    """
    return {"flops": round(own), SPENT: {**spent_before(inputs), folder: round(own)}}


def spent_before(inputs: Mapping[str, Sequence[Path]]) -> dict[str, int]:
    """Read from the manifests of a stage's inputs what was spent on them and on all that they need, each once.

    What is taken as it is, and data, have cost nothing here.
    """
    paths = (path for name, paths in inputs.items() if name != REFERENCE for path in paths)
    found: dict[str, int] = {}
    for path in paths:
        found |= read_json(path).get(SPENT, {})
    return found
