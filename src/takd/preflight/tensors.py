"""Bytes of the tensors that a stage allocates on one GPU, from the shapes of its models.

tests/test_footprint.py compares them with real runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from takd.decoding import amounts
from takd.losses.amounts import HEAD_ROWS, block_tokens, chunk_tokens
from takd.methods.registry import METHODS
from takd.models.shapes import Shape

# float32 tensors of (chunk, vocabulary) that live at once while a loss is differentiated, as measured
LOGITS = {
    "label": 4.2,
    "likeliest": 5.2,
    "forward_kl": 6.2,
    "reverse_kl": 6.2,
    "total_variation": 6.2,
    "policy": 6.2,
    "interpolated": 7.2,
    "alpha_beta": 8.2,
    "skewed_forward_kl": 10.2,
    "skewed_reverse_kl": 10.2,
    "alpha_mixture": 11.2,
    "jensen_shannon": 11.2,
}
COSTLIEST = max(LOGITS.values())
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Texts:
    """Lengths of the longest texts of a stage, in tokens."""

    prompt: int
    response: int

    @property
    def whole(self) -> int:
        return self.prompt + self.response


class Loaded(NamedTuple):
    """A model, and the bytes of a number that it computes with."""

    shape: Shape
    number: int


def lora_weights(shape: Shape, settings: Mapping[str, Any]) -> tuple[int, int]:
    """Number of parameters with a gradient, and of weights that LoRA adapts (0 without LoRA)."""
    if lora := settings.get("lora"):
        return shape.lora(lora["rank"], lora["targets"])
    return shape.parameters, 0


def zero(settings: Mapping[str, Any]) -> tuple[int | None, Mapping[str, Any]]:
    """Stage and settings of ZeRO; the stage is None without DeepSpeed."""
    if not settings.get("deepspeed"):
        return None, {}
    config = settings["deepspeed"]["config"].get("zero_optimization", {})
    return int(config.get("stage", 0)), config


def states(
    shape: Shape, settings: Mapping[str, Any], precision: str, processes: int
) -> dict[str, float]:
    """Bytes of the student's weights and of its optimizer.

    Plain and DDP: weights in float32 (autocast computes in half precision), two moments of AdamW, and DDP's buckets,
    which hold a copy of every gradient. DeepSpeed: weights in the computing precision, partitioned with ZeRO-3; master
    weights and moments in float32, partitioned over the processes from ZeRO-1 on; with ZeRO-3 also a whole copy in the
    computing precision for sampling.
    """
    number, (trained, adapted) = BYTES[precision], lora_weights(shape, settings)
    stage, offload = zero(settings)
    if stage is None:
        frozen = adapted * number + 4 * (shape.parameters - adapted) if adapted else 0
        found = {"student's weights": frozen + 4.0 * trained, "AdamW's moments": 8.0 * trained}
        if processes > 1:
            found["DDP's buckets"] = 4.0 * trained
        return found
    weights = (shape.parameters + (trained if adapted else 0)) * number
    found = {"student's weights": weights / (processes if stage == 3 else 1)}
    if "offload_param" in offload:
        found["student's weights"] = 0.0
    # fp32 needs no separate master weights, but ZeRO keeps them all the same
    if "offload_optimizer" not in offload:
        found["master weights and moments"] = 12.0 * trained / (processes if stage else 1)
    if stage == 3:
        found["the copy that samples"] = weights
    return found


def gradients(shape: Shape, settings: Mapping[str, Any], precision: str, processes: int) -> float:
    """Bytes of gradients during accumulation over micro-batches."""
    (trained, _), (stage, _) = lora_weights(shape, settings), zero(settings)
    if stage is None:
        return 4.0 * trained
    return BYTES[precision] * trained / (processes if stage >= 2 else 1) + 4.0 * trained / processes


def half_copies(shape: Shape, settings: Mapping[str, Any], precision: str) -> dict[str, float]:
    """Bytes of autocast's half-precision copies of the weights, which are cached until the end of a pass."""
    if precision == "fp32" or settings.get("deepspeed"):
        return {}
    trained, adapted = lora_weights(shape, settings)
    # matrices that LoRA adapts are in half precision already
    matrices = shape.body - adapted + (trained if adapted else 0)
    return {"weights in half precision": 2.0 * matrices}


def activations(
    shape: Shape,
    rows: int,
    length: int,
    precision: str,
    dropout: bool = False,
    checkpointing: bool = False,
) -> float:
    """Bytes that all blocks keep of a micro-batch for the backward pass.

    Norms keep their input in float32 (RMSNorm also the normalised input); each linear layer keeps its input, which
    autocast copies for every layer that reads it; attention its queries, keys, values and result; the feed-forward part
    the input and the result of its activation function, or the result alone (ReLU).
    """
    number, width = BYTES[precision], shape.width
    norms = 4 * width * (4 if shape.gated else 2)
    copies = (1 if shape.family == "gpt2" else 3) + (2 if shape.gated else 1)
    inputs = 2 if precision == "fp32" else copies
    inner = 4 if shape.gated else 1 if shape.family == "opt" else 2
    kept = inputs * width + 2 * shape.queries + 2 * shape.keys + inner * shape.inner
    masks = 2 * width if dropout else 0
    block = norms + number * kept + masks + 4 * shape.heads
    ends = 4 * width * (3 if shape.gated else 2)  # input and output of the last norm
    blocks = 4 * width * shape.layers + block if checkpointing else shape.layers * block
    return rows * length * (blocks + ends)


def loss(
    models: Sequence[Loaded], spec: Mapping[str, Any], tokens: float, read: float, device: str
) -> dict[str, float]:
    """Bytes of the output embedding and the loss: the tensors of one chunk, and those of the head for all chunks.

    Args:
        models: the student, and its teacher if there is one.
        tokens: predicted tokens of a micro-batch.
        read: all tokens of a micro-batch.
    """
    facts, settings = METHODS[spec["method"]], spec["settings"]
    compared = facts.loss or settings.get("divergence", "")
    if settings.get("teacher_outputs") == "top_k":
        compared = "likeliest"
    (student, number), *teachers = models
    tensors = LOGITS.get(compared, COSTLIEST)
    # on a CPU all but the logits, whose memory the gradients take, is computed of a few tokens at once
    whole = chunk(student, tokens, device)
    few = 4.0 * student.vocabulary * block_tokens(student.vocabulary, device)
    if 0 < few < whole:
        projected = len(teachers) if compared != "likeliest" else 0
        whole, tensors = whole * (1 + projected) + few * tensors, 1
    found = {"logits of a chunk": tensors * whole}
    if not settings.get("lora"):
        found["the head's gradient"] = 4 * student.embedding
        if number < 4:
            found["the head's copy"] = number * student.embedding
            part = min(student.vocabulary, HEAD_ROWS)
            found["a part of the head's gradient"] = 4 * part * student.width
    hidden = 4 * student.width * 2 + sum(size * teacher.width for teacher, size in teachers)
    found["hidden states"] = tokens * hidden
    if not facts.rollouts:  # what a teacher reads is freed before the loss
        for teacher, size in teachers:
            found["hidden states"] += reading(teacher, read, size) / 2
    return found


def chunk(shape: Shape, tokens: float, device: str) -> float:
    """Bytes of one float32 tensor of (chunk, vocabulary)."""
    return 4.0 * shape.vocabulary * min(tokens, chunk_tokens(shape.vocabulary, device))


def cache(shape: Shape, rows: int, columns: int, number: int) -> float:
    """Bytes of keys and values of rows that are decoded together."""
    return 2.0 * shape.layers * shape.keys * rows * columns * number


def reading(shape: Shape, tokens: float, number: int) -> float:
    """Bytes of one block's activations on a number of tokens, without a backward pass."""
    inner = (3 if shape.gated else 2) * shape.inner
    return float(tokens * (12 * shape.width + number * (2 * shape.width + shape.queries + inner)))


def sampling(
    models: Sequence[Loaded],
    rows: int,
    texts: Texts,
    device: str,
    scored: bool,
    extra: float = 0.0,
) -> dict[str, float]:
    """Bytes of decoding: caches, activations while prompts are read, and tensors of (rows, vocabulary).

    Args:
        models: the student, and the teacher if it decodes too.
        scored: whether log-probabilities are recorded.
        extra: as `takd.decoding.amounts.between` returns it.
    """
    prompts = min(rows * texts.prompt, max(amounts.READ_AT_ONCE[device], texts.prompt))
    # the first prompts are read before there are caches; later ones beside these, a few at a time
    later = 1.0 if prompts < rows * texts.prompt else 0.25
    found: dict[str, float] = {}
    moments = []
    for name, (model, number) in zip(("student's", "teacher's"), models, strict=False):
        columns = amounts.room(texts.whole)
        keys = found[f"{name} keys and values"] = cache(model, rows, columns, number)
        read = cache(model, 1, prompts, number)
        works = read + reading(model, prompts, number)
        moments += [read, works - keys, later * works]
    found["reading prompts"] = max(moments)
    vocabulary = models[0].shape.vocabulary
    found["next tokens"] = amounts.next_tokens(rows, vocabulary, len(models), scored, device, extra)
    for teacher, number in models[1:]:
        found["teacher's hidden states"] = float(rows * texts.response * teacher.width * number)
    return found


def decoded_rows(
    models: Sequence[Loaded],
    texts: Texts,
    device: str,
    scored: bool,
    free: float,
    extra: float = 0.0,
) -> int:
    """Number of rows that are decoded together, from the free bytes; as `takd.decoding` chooses it.

    Args:
        models, scored, extra: as of `sampling`.
    """
    columns = amounts.room(texts.whole)
    row = sum(cache(model, 1, columns, number) for model, number in models)
    row += sum(texts.response * teacher.width * number for teacher, number in models[1:])
    read = amounts.READ_AT_ONCE[device]
    free -= max(cache(model, 1, read, number) for model, number in models)
    vocabulary = models[0].shape.vocabulary
    return amounts.fitting_rows(row, vocabulary, len(models), scored, device, free, extra)
