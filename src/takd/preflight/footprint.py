"""Peak memory of a stage on one GPU, from shapes.

Every item is the bytes of tensors that the code makes, by name, so that a stage that does not fit tells what fills it.
What PyTorch itself takes is the constants RUNTIME and HOST_RUNTIME, and what it cannot use of a card's memory the share
USABLE; these are assumptions. tests/test_footprint.py holds the items against real runs; docs/preflight.md says how
well they agree.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from takd.preflight.datasheets import Card
from takd.preflight.shapes import Shape

GIB = 2**30
RUNTIME = 1.0 * GIB  # bytes: CUDA context, cuBLAS workspaces, NCCL's buffers
HOST_RUNTIME = 3.0 * GIB  # bytes of main memory of a process: libraries, CUDA's context, data
USABLE = 0.92  # of a card's memory: the driver keeps some, and the allocator's free pieces are not all of use

# as in takd.kvcache, takd.tokenloss, takd.training.loop, which cannot be imported without torch; a test compares them
GROWTH = 64
READ_AT_ONCE = {"cpu": 1024, "cuda": 16384}
CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
TILE = 64
HEAD_ROWS = 16384
DRAWN_AT_ONCE = 4  # micro-batches of a training that are decoded together

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
    """Longest texts of a stage, in tokens."""

    prompt: int
    response: int

    @property
    def whole(self) -> int:
        return self.prompt + self.response


@dataclass(frozen=True)
class Resources:
    """What a job gets: processes, one a GPU, on each of its nodes, and how they run.

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
        """Processes in all."""
        return self.processes * self.nodes


@dataclass
class Footprint:
    """Bytes on one GPU by what takes them.

    Attributes:
        always: as long as the stage runs.
        moments: what comes on top of it at times, never two at once.
    """

    always: dict[str, float] = field(default_factory=dict)
    moments: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def worst(self) -> str:
        """The moment that takes most."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def peak(self) -> float:
        """Bytes at the worst moment."""
        return sum(self.always.values()) + sum(self.moments[self.worst].values())

    def items(self) -> list[tuple[str, float]]:
        """What is there at the worst moment, the largest first."""
        found = {**self.always, **self.moments[self.worst]}
        return sorted(found.items(), key=lambda item: -item[1])

    def fits(self, card: Card) -> bool:
        """Whether a card can hold it."""
        return self.peak <= USABLE * card.gigabytes * GIB


def training(
    student: Shape,
    teacher: Shape | None,
    spec: Mapping[str, Any],
    texts: Texts,
    resources: Resources,
    card: Card,
) -> Footprint:
    """A training stage.

    Args:
        teacher: None where it is not loaded.
        spec: as `Experiment.train_spec` gives it.
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
    # never more rows than a process has prompts
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
    """A stage that asks a trained model: an evaluation, a part of a teacher's responses, its outputs, likelihoods.

    Args:
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
            # of one model, its log-probabilities; of two also what their divergences are summed from
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
    """Bytes of a node's main memory that a training on GPUs takes at its worst moment, by what takes them.

    Each process reads the whole student in float32, and a teacher while it is there. Later the first process holds a
    copy of what is written: of a checkpoint, or under DeepSpeed, which writes its own, of the exported model.
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
    """Parameters with a gradient."""
    lora = settings.get("lora")
    return shape.lora(lora["rank"], lora["targets"])[0] if lora else shape.parameters


def states(
    shape: Shape, settings: Mapping[str, Any], precision: str, processes: int
) -> dict[str, float]:
    """Bytes of the student's weights and of its optimizer on one GPU.

    Plain and DDP: weights in float32 (autocast computes in half precision), two moments of AdamW, and DDP's buckets,
    which hold every gradient once more. DeepSpeed: weights in the precision of the computation, of which ZeRO-3 keeps a
    part; master weights and moments in float32, divided over the processes from ZeRO-1 on; beside ZeRO-3 a whole copy
    in that precision that samples.
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
    # fp32 has no other master weights, but ZeRO keeps its own part of them all the same
    if "offload_optimizer" not in offload:
        found["master weights and moments"] = 12.0 * trained / (processes if stage else 1)
    if stage == 3:
        found["the copy that samples"] = weights
    return found


def zero(settings: Mapping[str, Any]) -> tuple[int | None, Mapping[str, Any]]:
    """ZeRO's stage, None without DeepSpeed, and its settings."""
    if not settings.get("deepspeed"):
        return None, {}
    config = settings["deepspeed"]["config"].get("zero_optimization", {})
    return int(config.get("stage", 0)), config


def gradients(shape: Shape, settings: Mapping[str, Any], precision: str, processes: int) -> float:
    """Bytes of gradients on one GPU, while micro-batches add up."""
    trained = trained_parameters(shape, settings)
    stage, _ = zero(settings)
    if stage is None:
        return 4.0 * trained
    return BYTES[precision] * trained / (processes if stage >= 2 else 1) + 4.0 * trained / processes


def half_copies(shape: Shape, settings: Mapping[str, Any], precision: str) -> dict[str, float]:
    """Autocast turns float32 weights into half precision once a pass, and keeps them until its end."""
    if precision == "fp32" or settings.get("deepspeed"):
        return {}
    if not settings.get("lora"):
        return {"weights in half precision": 2.0 * shape.body}
    # the adapted matrices are in half precision already
    lora = settings["lora"]
    adapters, adapted = shape.lora(lora["rank"], lora["targets"])
    return {"weights in half precision": 2.0 * (shape.body - adapted + adapters)}


def block_activations(shape: Shape, precision: str, dropout: bool = False) -> float:
    """Bytes that one block keeps of one token for the backward pass.

    Norms keep their input in float32 (RMSNorm also what it multiplies with its weight); each linear layer keeps its
    input, of which autocast makes a copy for every layer that reads it; attention its queries, keys, values and
    result; the feed-forward part the input and the result of its activation function, or the result alone (ReLU).
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
    """Bytes that the body keeps of a micro-batch for the backward pass."""
    tokens = rows * length
    block = block_activations(shape, precision, dropout)
    ends = 4 * shape.width * (3 if shape.gated else 2)  # the last norm, and what it gives
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
    """Bytes of the product with the vocabulary: a chunk's tensors, and what the head needs for all of them.

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
        found["hidden states"] += reading(teacher, whole, taught) / 2  # gone before the loss
    return found


def _compared(spec: Mapping[str, Any]) -> str:
    """What a method computes of a chunk of logits; a method that is not known here counts as the costliest."""
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
    """Tokens of a chunk of the loss; the same as `takd.tokenloss.chunk_size`."""
    tokens = CHUNK_BYTES[device] // (4 * vocabulary)
    return max(16, tokens - tokens % TILE if tokens > TILE else tokens)


def cache(shape: Shape, rows: int, columns: int, number: int) -> float:
    """Bytes of keys and values of rows that are decoded together."""
    return 2.0 * shape.layers * shape.keys * rows * columns * number


def reading(shape: Shape, tokens: int, number: int) -> float:
    """Bytes of one block at work on so many tokens, when nothing is kept for a backward pass."""
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
    """Bytes of decoding: caches, what reading prompts takes beside them, tensors of (rows, vocabulary).

    All prompts are read at once before there are caches; later a few at a time, a quarter of the rows at most.

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
    """Columns of a cache in the end, which has room for some more at first and grows by some at a time."""
    first = texts.prompt + GROWTH
    more = math.ceil(max(0, texts.whole - first) / (GROWTH + 1))
    return first + more * (GROWTH + 1)
