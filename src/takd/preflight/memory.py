"""Peak memory of a stage on one GPU, computed from shapes.

Items are bytes by name of the tensors that the code allocates, so that it is visible what fills the memory. Memory
of PyTorch itself is given by the constants RUNTIME and HOST_RUNTIME, and the usable share of a card's memory by
USABLE; these are assumptions. tests/test_footprint.py compares the items with real runs; docs/preflight.md reports
how well they agree.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from takd.preflight.gpus import Card
from takd.preflight.shapes import Shape

GIB = 2**30
RUNTIME = 1.0 * GIB  # bytes: CUDA context, cuBLAS workspaces, NCCL's buffers
HOST_RUNTIME = 3.0 * GIB  # bytes of main memory of a process: libraries, CUDA's context, data
USABLE = 0.92  # share of a card's memory: the driver keeps some, and fragmentation wastes some

# copies of constants in takd.decoding.kv_cache, takd.losses.chunked and takd.training.loop,
# which import torch; a test compares them
GROWTH = 64
READ_AT_ONCE = {"cpu": 1024, "cuda": 16384}
CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
TILE = 64
HEAD_ROWS = 16384
DRAWN_AT_ONCE = 4  # micro-batches that a training decodes together

# float32 tensors of (chunk, vocabulary) that live at once while a loss is differentiated, as measured
LOGITS = {
    "label": 4.2,
    "likeliest": 5.2,
    "forward_kl": 6.2,
    "reverse_kl": 6.2,
    "total_variation": 6.2,
    "policy": 6.2,
    "alpha_beta": 8.2,
    "skewed_forward_kl": 10.2,
    "skewed_reverse_kl": 10.2,
    "jensen_shannon": 11.2,
}
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Texts:
    """Lengths of the longest texts of a stage, in tokens."""

    prompt: int
    response: int

    @property
    def whole(self) -> int:
        return self.prompt + self.response


@dataclass(frozen=True)
class Resources:
    """Resources of a job: processes (one per GPU) on each of its nodes, and how they run.

    Attributes:
        runtime: minutes of one attempt.
    """

    processes: int = 1
    nodes: int = 1
    micro_batch: int = 8
    gradient_checkpointing: bool = False
    runtime: float = math.inf

    @property
    def world(self) -> int:
        """Number of processes on all nodes."""
        return self.processes * self.nodes


@dataclass
class Footprint:
    """Bytes on one GPU, by name.

    Attributes:
        always: for the whole stage.
        moments: in addition during each phase; phases do not overlap.
    """

    always: dict[str, float] = field(default_factory=dict)
    moments: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def worst(self) -> str:
        """Phase with the largest footprint."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def peak(self) -> float:
        """Peak bytes."""
        return sum(self.always.values()) + sum(self.moments[self.worst].values())

    def items(self) -> list[tuple[str, float]]:
        """Items of the largest phase, the largest first."""
        found = {**self.always, **self.moments[self.worst]}
        return sorted(found.items(), key=lambda item: -item[1])

    def fits(self, card: Card) -> bool:
        """Return whether the footprint fits into the memory of a card."""
        return self.peak <= USABLE * card.gigabytes * GIB


def training(
    student: Shape,
    teacher: Shape | None,
    spec: Mapping[str, Any],
    texts: Texts,
    resources: Resources,
    card: Card,
) -> Footprint:
    """Footprint of a training stage.

    Args:
        teacher: None if it is not loaded.
        spec: as returned by `takd.experiment.specs.train`.
    """
    settings = spec["settings"]
    precision = card.precision(settings["precision"], student.pretrained)
    number = BYTES[precision]
    taught = number
    if teacher is not None:
        taught = BYTES[card.precision(settings["precision"], teacher.pretrained)]
    device = "cpu" if card.on_cpu else "cuda"
    footprint = Footprint({} if card.on_cpu else {"PyTorch and CUDA": RUNTIME})
    always = footprint.always
    always |= states(student, settings, precision, resources.world)
    if teacher is not None:
        always["teacher's weights"] = float(teacher.parameters * taught)
    pass_ = activations(
        student,
        rows=resources.micro_batch,
        length=texts.whole,
        precision=precision,
        dropout=settings["dropout"] > 0,
        checkpointing=resources.gradient_checkpointing,
    )
    moment = {
        "activations": pass_,
        "gradients": gradients(student, settings, precision, resources.world),
        **half_copies(student, settings, precision),
        **loss(student, teacher, spec, texts, resources.micro_batch, number, device, taught),
    }
    footprint.moments["training"] = moment
    rows, world = resources.micro_batch * DRAWN_AT_ONCE, resources.world
    copies = half_copies(student, settings, precision)
    # a process has no more rows than prompts
    asked = min(rows, math.ceil(settings["dev_rows"] / world)) if settings["dev_rows"] else rows
    footprint.moments["answering dev"] = {
        **copies,
        **sampling(student, None, asked, texts, number, device),
    }
    if spec["method"] == "minillm":
        asked = min(rows, math.ceil(settings["rollouts_per_round"] / world))
        mixing = teacher if settings["teacher_mix"] else None
        footprint.moments["drawing rollouts"] = {
            **copies,
            **sampling(student, mixing, asked, texts, number, device, taught),
        }
    return footprint


def asking(
    model: Shape,
    texts: Texts,
    resources: Resources,
    card: Card,
    decodes: bool = True,
    beside: Shape | None = None,
    setting: str = "auto",
) -> Footprint:
    """Footprint of a stage that runs a trained model: evaluation, teacher generations or outputs, likelihoods.

    Args:
        decodes: whether the stage samples; otherwise it only reads texts.
        beside: a teacher that reads the same texts.
        setting: the stage's `precision`.
    """
    number = BYTES[card.precision(setting, model.pretrained)]
    device = "cpu" if card.on_cpu else "cuda"
    footprint = Footprint({} if card.on_cpu else {"PyTorch and CUDA": RUNTIME})
    footprint.always["weights"] = model.parameters * number
    rows = resources.micro_batch
    if decodes:
        footprint.moments["sampling"] = sampling(model, None, rows, texts, number, device)
    else:
        tokens = rows * texts.response
        both = [model, *([beside] if beside else [])]
        if beside is not None:
            taught = BYTES[card.precision(setting, beside.pretrained)]
            footprint.always["the teacher's weights"] = float(beside.parameters * taught)
            number = max(number, taught)
        footprint.moments["reading"] = {
            "one block's activations": max(reading(m, rows * texts.whole, number) for m in both),
            # log-probabilities of one model; of two also the terms of their divergences
            "logits": (3 if beside is None else 6) * _chunk(model, tokens, device),
        }
    return footprint


def host(
    student: Shape,
    teacher: Shape | None,
    spec: Mapping[str, Any],
    resources: Resources,
    card: Card,
) -> dict[str, float]:
    """Peak bytes of a node's main memory in a training on GPUs, by name.

    Each process loads the whole student in float32, and a teacher where there is one. Later the first process holds a
    copy of what is written: a checkpoint, or with DeepSpeed, which writes its own checkpoints, the exported model.
    """
    settings, processes = spec["settings"], resources.processes
    trained = trained_parameters(student, settings)
    start = {"the student as it is read": 4.0 * student.parameters * processes}
    if teacher is not None:
        taught = BYTES[card.precision(settings["precision"], teacher.pretrained)]
        start["the teacher as it is read"] = float(taught * teacher.parameters * processes)
    stage, offload = zero(settings)
    later = {"what is written": 12.0 * trained if stage is None else 4.0 * student.parameters}
    share = processes / resources.world
    if "offload_optimizer" in offload:
        later["master weights and moments"] = 12.0 * trained * share
    if "offload_param" in offload:
        number = BYTES[card.precision(settings["precision"], student.pretrained)]
        later["student's weights"] = number * student.parameters * share
    worst = max(start, later, key=lambda moment: sum(moment.values()))
    return {"Python and PyTorch": HOST_RUNTIME * processes, **worst}


def trained_parameters(shape: Shape, settings: Mapping[str, Any]) -> int:
    """Number of parameters with a gradient."""
    lora = settings.get("lora")
    return shape.lora(lora["rank"], lora["targets"])[0] if lora else shape.parameters


def states(
    shape: Shape, settings: Mapping[str, Any], precision: str, processes: int
) -> dict[str, float]:
    """Bytes of the student's weights and of its optimizer on one GPU.

    Plain and DDP: weights in float32 (autocast computes in half precision), two moments of AdamW, and DDP's buckets,
    which hold a copy of every gradient. DeepSpeed: weights in the computing precision, partitioned with ZeRO-3; master
    weights and moments in float32, partitioned over the processes from ZeRO-1 on; with ZeRO-3 also a whole copy in the
    computing precision for sampling.
    """
    trained, number = trained_parameters(shape, settings), BYTES[precision]
    frozen = 0.0
    if settings.get("lora"):
        adapted = shape.lora(settings["lora"]["rank"], settings["lora"]["targets"])[1]
        frozen = adapted * number + 4 * (shape.parameters - adapted)
    whole = frozen + 4 * trained
    stage, offload = zero(settings)
    if stage is None:
        found = {"student's weights": whole, "AdamW's moments": 8.0 * trained}
        if processes > 1:
            found["DDP's buckets"] = 4.0 * trained
        return found
    weights = (shape.parameters + (trained if frozen else 0)) * number
    found = {"student's weights": weights / (processes if stage == 3 else 1)}
    if "offload_param" in offload:
        found["student's weights"] = 0.0
    # fp32 needs no separate master weights, but ZeRO keeps them all the same
    if "offload_optimizer" not in offload:
        found["master weights and moments"] = 12.0 * trained / (processes if stage else 1)
    if stage == 3:
        found["the copy that samples"] = weights
    return found


def zero(settings: Mapping[str, Any]) -> tuple[int | None, Mapping[str, Any]]:
    """Stage and settings of ZeRO; the stage is None without DeepSpeed."""
    if not settings.get("deepspeed"):
        return None, {}
    config = settings["deepspeed"]["config"].get("zero_optimization", {})
    return int(config.get("stage", 0)), config


def gradients(shape: Shape, settings: Mapping[str, Any], precision: str, processes: int) -> float:
    """Bytes of gradients on one GPU during accumulation over micro-batches."""
    trained = trained_parameters(shape, settings)
    stage, _ = zero(settings)
    if stage is None:
        return 4.0 * trained
    return BYTES[precision] * trained / (processes if stage >= 2 else 1) + 4.0 * trained / processes


def half_copies(shape: Shape, settings: Mapping[str, Any], precision: str) -> dict[str, float]:
    """Bytes of autocast's half-precision copies of the weights, which are cached until the end of a pass."""
    if precision == "fp32" or settings.get("deepspeed"):
        return {}
    if not settings.get("lora"):
        return {"weights in half precision": 2.0 * shape.body}
    # the adapted matrices are in half precision already
    lora = settings["lora"]
    adapters, adapted = shape.lora(lora["rank"], lora["targets"])
    return {"weights in half precision": 2.0 * (shape.body - adapted + adapters)}


def block_activations(shape: Shape, precision: str, dropout: bool = False) -> float:
    """Bytes per token that one block keeps for the backward pass.

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
    return norms + number * kept + masks + 4 * shape.heads


def activations(
    shape: Shape,
    rows: int,
    length: int,
    precision: str,
    dropout: bool = False,
    checkpointing: bool = False,
) -> float:
    """Bytes that all blocks keep of a micro-batch for the backward pass."""
    tokens = rows * length
    block = block_activations(shape, precision, dropout)
    ends = 4 * shape.width * (3 if shape.gated else 2)  # input and output of the last norm
    if checkpointing:
        return tokens * (4 * shape.width * shape.layers + block + ends)
    return tokens * (shape.layers * block + ends)


def loss(
    student: Shape,
    teacher: Shape | None,
    spec: Mapping[str, Any],
    texts: Texts,
    micro_batch: int,
    number: int,
    device: str,
    taught: int = 2,
) -> dict[str, float]:
    """Bytes of the output embedding and the loss: the tensors of one chunk, and those of the head for all chunks.

    Args:
        number, taught: bytes of a number of the student's, and of the teacher's.
    """
    tokens = micro_batch * texts.response
    found = {"logits of a chunk": LOGITS[_compared(spec)] * _chunk(student, tokens, device)}
    if not spec["settings"].get("lora"):
        found["the head's gradient"] = 4 * student.embedding
        if number < 4:
            found["the head's copy"] = number * student.embedding
            rows = min(student.vocabulary, HEAD_ROWS)
            found["a part of the head's gradient"] = 4 * rows * student.width
    hidden = 4 * student.width * 2
    if teacher is not None:
        hidden += taught * teacher.width
    found["hidden states"] = tokens * hidden
    if teacher is not None and spec["method"] != "minillm":
        whole = micro_batch * texts.whole
        found["hidden states"] += reading(teacher, whole, taught) / 2  # freed before the loss
    return found


def _compared(spec: Mapping[str, Any]) -> str:
    """Loss that a method computes on a chunk of logits; unknown methods count as the costliest."""
    settings = spec["settings"]
    if settings.get("teacher_outputs") == "top_k":
        return "likeliest"
    fixed = {"sft": "label", "seqkd": "label", "minillm": "policy", "abkd": "alpha_beta"}
    named = settings.get("divergence", "jensen_shannon")
    return fixed.get(spec["method"], named if named in LOGITS else "jensen_shannon")


def _chunk(shape: Shape, tokens: int, device: str) -> float:
    """Bytes of one float32 tensor of (chunk, vocabulary)."""
    return 4.0 * shape.vocabulary * min(tokens, chunk_tokens(shape.vocabulary, device))


def chunk_tokens(vocabulary: int, device: str) -> int:
    """Number of tokens in a chunk of the loss; the same as `takd.losses.chunked.chunk_size`."""
    tokens = CHUNK_BYTES[device] // (4 * vocabulary)
    return max(16, tokens - tokens % TILE if tokens > TILE else tokens)


def cache(shape: Shape, rows: int, columns: int, number: int) -> float:
    """Bytes of keys and values of rows that are decoded together."""
    return 2.0 * shape.layers * shape.keys * rows * columns * number


def reading(shape: Shape, tokens: int, number: int) -> float:
    """Bytes of one block's activations on a number of tokens, without a backward pass."""
    inner = (3 if shape.gated else 2) * shape.inner
    return float(tokens * (12 * shape.width + number * (2 * shape.width + shape.queries + inner)))


def sampling(
    student: Shape,
    teacher: Shape | None,
    rows: int,
    texts: Texts,
    number: int,
    device: str,
    taught: int = 2,
) -> dict[str, float]:
    """Bytes of decoding: caches, activations while prompts are read, and tensors of (rows, vocabulary).

    The first prompts are all read at once, before there are caches; later ones a few at a time, at most a quarter of
    the rows.

    Args:
        number, taught: bytes of a number of the student's, and of the teacher's.
    """
    models = {"student's": (student, number)}
    if teacher is not None:
        models["teacher's"] = (teacher, taught)
    columns = room(texts)
    prompts = min(rows * texts.prompt, max(READ_AT_ONCE[device], texts.prompt))
    found = {
        f"{name} keys and values": cache(model, rows, columns, size)
        for name, (model, size) in models.items()
    }
    moments = [0.0]
    for name, (model, size) in models.items():
        read, works = cache(model, 1, prompts, size), reading(model, prompts, size)
        moments += [read, read + works - found[f"{name} keys and values"], (read + works) / 4]
    found["reading prompts"] = max(moments)
    found["next tokens"] = 4.0 * rows * student.vocabulary * (6 if teacher else 4)
    if teacher is not None:
        found["teacher's hidden states"] = float(rows * texts.response * teacher.width * taught)
    return found


def room(texts: Texts) -> int:
    """Final number of columns of a cache, which grows in steps."""
    first = texts.prompt + GROWTH
    more = math.ceil(max(0, texts.whole - first) / (GROWTH + 1))
    return first + more * (GROWTH + 1)
