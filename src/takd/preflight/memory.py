"""Peak memory of a stage on one GPU, and of a node's main memory in a training.

Items are bytes by name of the tensors that the code allocates (`takd.preflight.tensors`), so that it is visible what
fills the memory. Memory of PyTorch itself is given by the constants RUNTIME and HOST_RUNTIME, and the usable share of a
GPU's memory by USABLE; these are assumptions. docs/preflight.md reports how well the items agree with real runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from takd.decoding.amounts import between
from takd.losses.amounts import KEPT_SHARE
from takd.methods.registry import METHODS
from takd.models.shapes import Shape
from takd.preflight import tensors
from takd.preflight.gpus import Gpu
from takd.preflight.tensors import BYTES, Loaded, Texts

GIB = 2**30
RUNTIME = 1.0 * GIB  # bytes: CUDA context, cuBLAS workspaces, NCCL's buffers
HOST_RUNTIME = 3.0 * GIB  # bytes of main memory of a process: libraries, CUDA's context, data
USABLE = 0.92  # share of a GPU's memory: the driver keeps some, and fragmentation wastes some


@dataclass(frozen=True)
class Resources:
    """Resources of a job: processes (one per GPU) on each of its nodes, and how they run.

    Attributes:
        max_tokens: tokens of a micro-batch, padding included; 0 for no limit.
        runtime: minutes of one attempt.
    """

    processes: int = 1
    nodes: int = 1
    micro_batch: int = 8
    max_tokens: int = 0
    gradient_checkpointing: bool = False
    runtime: float = math.inf

    @property
    def world(self) -> int:
        """Number of processes on all nodes."""
        return self.processes * self.nodes

    def tokens(self, longest: int) -> int:
        """Tokens of a micro-batch of the longest texts."""
        whole = self.micro_batch * longest
        return min(whole, max(self.max_tokens, longest)) if self.max_tokens else whole


@dataclass
class Footprint:
    """Bytes on one GPU, by name.

    Attributes:
        always: for the whole stage.
        moments: in addition during each phase; phases do not overlap.
        rows: responses that memory allows to decode together, by what they are for.
    """

    always: dict[str, float] = field(default_factory=dict)
    moments: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    @property
    def worst(self) -> dict[str, float]:
        """Items of the phase with the largest footprint."""
        return max(self.moments.values(), key=lambda items: sum(items.values()))

    @property
    def peak(self) -> float:
        """Peak bytes."""
        return sum(self.always.values()) + sum(self.worst.values())

    def items(self) -> list[tuple[str, float]]:
        """Items of the largest phase, the largest first."""
        return largest({**self.always, **self.worst})

    def fits(self, gpu: Gpu) -> bool:
        """Return whether the footprint fits into the memory of a GPU."""
        return self.peak <= USABLE * gpu.gigabytes * GIB


def largest(items: Mapping[str, float]) -> list[tuple[str, float]]:
    """Items by size, the largest first."""
    return sorted(items.items(), key=lambda item: -item[1])


def loaded(gpu: Gpu, setting: str, *shapes: Shape | None) -> list[Loaded]:
    """Models that are not None, with the bytes of a number that they compute with under a setting `precision`."""
    return [Loaded(s, BYTES[gpu.precision(setting, s.pretrained)]) for s in shapes if s is not None]


def training(
    student: Shape,
    teacher: Shape | None,
    spec: Mapping[str, Any],
    texts: Texts,
    resources: Resources,
    gpu: Gpu,
) -> Footprint:
    """Footprint of a training stage.

    Args:
        teacher: None if it is not loaded.
        spec: as returned by `takd.experiment.specs.train`.
    """
    settings, world, read = spec["settings"], resources.world, resources.tokens(texts.whole)
    precision = gpu.precision(settings["precision"], student.pretrained)
    models = loaded(gpu, settings["precision"], student, teacher)
    always = {} if gpu.on_cpu else {"PyTorch and CUDA": RUNTIME}
    always |= tensors.states(student, settings, precision, world)
    for shape, number in models[1:]:
        always["teacher's weights"] = float(shape.parameters * number)
    facts = METHODS[spec["method"]]
    total = math.inf if gpu.on_cpu else GIB * gpu.gigabytes
    for shape, number in models[1:] if facts.rollouts or facts.teacher_draws(settings) else []:
        drawn = settings.get("rollouts_per_round") or settings["batch_size"]
        size = float(drawn * texts.response * shape.width * number)
        if size <= KEPT_SHARE * total:  # else in main memory
            always["the round's hidden states"] = size
    copies = tensors.half_copies(student, settings, precision)
    dropout, checkpointing = settings["dropout"] > 0, resources.gradient_checkpointing

    found = Footprint(always)
    casts = copies | ({"the head's copy": 2.0 * student.embedding} if copies else {})

    def drawing(
        use: str, prompts: int | None, models: Sequence[Loaded], scored: bool, **decoding: Any
    ) -> None:
        how, extra = (texts, gpu.device, scored), between(**decoding)
        free = USABLE * total - sum((always | casts).values())
        rows = tensors.decoded_rows(models, *how, free, extra)
        found.rows[use] = rows
        if prompts:  # a process has no more rows than prompts
            rows = min(rows, math.ceil(prompts / world))
        found.moments[f"drawing {use}"] = casts | tensors.sampling(models, rows, *how, extra)

    found.moments["training"] = {
        "activations": tensors.activations(student, 1, read, precision, dropout, checkpointing),
        "gradients": tensors.gradients(student, settings, precision, world),
        **copies,
        **tensors.loss(
            models, spec, min(read, resources.micro_batch * texts.response), read, gpu.device
        ),
    }
    drawing("dev", settings["dev_rows"], models[:1], scored=False, **spec.get("dev_decoding", {}))
    top_k = settings.get("teacher_top_k", 0)
    mixing = models if facts.teacher_draws(settings) else models[:1]
    if facts.rollouts:
        drawing(
            "rollouts", settings["rollouts_per_round"], mixing, scored=True, teacher_top_k=top_k
        )
    elif facts.on_policy and settings["on_policy"] != "off":
        drawing(
            "student responses",
            settings["batch_size"],
            mixing,
            scored=len(mixing) > 1,
            teacher_top_k=top_k,
        )
    return found


def asking(
    model: Shape,
    texts: Texts,
    resources: Resources,
    gpu: Gpu,
    decodes: bool = True,
    beside: Shape | None = None,
    setting: str = "auto",
    decoding: Mapping[str, Any] | None = None,
) -> Footprint:
    """Footprint of a stage that runs a trained model: evaluation, teacher generations or outputs, likelihoods.

    Args:
        decodes: whether the stage samples; otherwise it only reads texts.
        beside: a teacher that reads the same texts.
        setting: the stage's `precision`.
        decoding: its settings of sampling.
    """
    models, read = loaded(gpu, setting, model, beside), resources.tokens(texts.whole)
    always = {} if gpu.on_cpu else {"PyTorch and CUDA": RUNTIME}
    for name, (shape, number) in zip(("weights", "the teacher's weights"), models, strict=False):
        always[name] = float(shape.parameters * number)
    if decodes:
        free = math.inf if gpu.on_cpu else USABLE * GIB * gpu.gigabytes - sum(always.values())
        extra = between(**(decoding or {}))
        rows = tensors.decoded_rows(models, texts, gpu.device, False, free, extra)
        sampling = tensors.sampling(models, rows, texts, gpu.device, False, extra)
        return Footprint(always, {"sampling": sampling}, {"responses": rows})
    number = max(each.number for each in models)
    block = max(tensors.reading(each.shape, read, number) for each in models)
    # log-probabilities of one model; of two also the terms of their divergences
    tokens = min(read, resources.micro_batch * texts.response)
    logits = 3 * len(models) * tensors.chunk(model, tokens, gpu.device)
    return Footprint(always, {"reading": {"one block's activations": block, "logits": logits}})


def host(
    student: Shape,
    teacher: Shape | None,
    spec: Mapping[str, Any],
    resources: Resources,
    gpu: Gpu,
) -> dict[str, float]:
    """Peak bytes of a node's main memory in a training on GPUs, by name.

    Each process loads the whole student in float32, and a teacher where there is one. Later the first process holds a
    copy of what is written: a checkpoint, or with DeepSpeed, which writes its own checkpoints, the exported model.
    """
    settings, processes = spec["settings"], resources.processes
    trained, _ = tensors.lora_weights(student, settings)
    start = {"the student as it is read": 4.0 * student.parameters * processes}
    own, *teachers = loaded(gpu, settings["precision"], student, teacher)
    for shape, number in teachers:
        start["the teacher as it is read"] = float(number * shape.parameters * processes)
    stage, offload = tensors.zero(settings)
    later = {"what is written": 12.0 * trained if stage is None else 4.0 * student.parameters}
    share = processes / resources.world
    if "offload_optimizer" in offload:
        later["master weights and moments"] = 12.0 * trained * share
    if "offload_param" in offload:
        later["student's weights"] = own.number * student.parameters * share
    worst = max(start, later, key=lambda moment: sum(moment.values()))
    return {"Python and PyTorch": HOST_RUNTIME * processes, **worst}
