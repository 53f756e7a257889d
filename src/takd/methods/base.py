"""What a method of training is: what it trains on at a step, and its loss there.

A method sees neither devices nor processes nor checkpoints; the loop sees no divergence. Batches are global and
pure functions of (seed, step), so that neither the number of processes nor a restart changes them.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from takd.layout import Layout
from takd.methods.teachers import StoredOutputs
from takd.sampling import Prompt, Response

# Sums over tokens, already divided by the global count: they add up over micro-batches and processes.
Statistics = dict[str, Tensor]
# (student, rows of one micro-batch) -> loss, statistics
LossFunction = Callable[[PreTrainedModel, Sequence[Any]], tuple[Tensor, Statistics]]
# (prompts, temperature, teacher's share α; None: the teacher is not asked) -> one response each, on the CPU, the
# same on every process
Sampler = Callable[[Sequence[Prompt], float, float | None], list[Response]]


@dataclass(frozen=True)
class Example:
    """A prompt and a response, as token ids.

    Attributes:
        id: number of the row in its source, which keys the noise of its prompt.
        index: its place in the prepared data set, where stored teacher outputs are found; -1 for none.
    """

    id: int
    index: int
    prompt: Sequence[int]
    response: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass
class Part:
    """Rows of the global batch of one step that share a loss."""

    rows: Sequence[Any]
    loss: LossFunction


@dataclass
class Context:
    """What a method may use.

    Attributes:
        settings: the method's settings, all defaults resolved.
        train: columns `prompt_ids`, `response_ids`, `id`.
        corpus: column `input_ids` of fixed-length blocks, or None.
        teacher: in evaluation mode, or None.
        stored: outputs of the teacher that a stage wrote down, for "train" and "corpus".
        vocabulary: entries to which both models' logits are cut.
        max_new_tokens: longest response that may be drawn.
    """

    settings: dict[str, Any]
    seed: int
    train: Dataset
    vocabulary: int
    max_new_tokens: int
    teacher: PreTrainedModel | None = None
    corpus: Dataset | None = None
    stored: dict[str, StoredOutputs] = field(default_factory=dict)


@dataclass
class Method:
    """Base of all methods."""

    context: Context
    decays_all = False  # weight decay spares biases and norms, as in the authors' code of sft, kd and distillm

    @staticmethod
    def asks_teacher(settings: dict[str, Any]) -> bool:
        """Whether the teacher itself is needed; else what a stage wrote down is all."""
        return True

    @property
    def settings(self) -> dict[str, Any]:
        return self.context.settings

    @property
    def teacher(self) -> PreTrainedModel:
        assert self.context.teacher is not None, "this method needs a teacher"
        return self.context.teacher

    def steps_per_epoch(self) -> float:
        """Optimizer steps in one pass over the training rows."""
        return len(self.context.train) / self.settings["batch_size"]

    def total_steps(self) -> int:
        """Optimizer steps of the run: by `steps` or by `epochs`, whichever is shorter."""
        steps, epochs = self.settings["steps"], self.settings["epochs"]
        bounds = [math.ceil(epochs * self.steps_per_epoch())] if epochs else []
        return max(1, min([*bounds, *([steps] if steps else [])]))

    def part_sizes(self) -> list[int]:
        """Rows of each part of a step's global batch."""
        return [self.settings["batch_size"]]

    def prepare(self, step: int, sample: Sampler) -> None:
        """Before a step: draw what it needs, if it has to be drawn."""

    def learned(self, step: int, values: dict[str, float]) -> None:
        """After the optimizer step of the batch that `parts(step)` gave.

        What a method makes of it has to be in `state`.

        Args:
            values: as in the training log, the same on all processes: `loss` and the statistics of the losses, all
                means over the global batch; `learning_rate`; `gradient_norm`, which is not finite where the step was
                skipped, as others may be then.
        """

    def observe(self, step: int, dev_loss: float) -> None:
        """After an evaluation on dev; `step` steps are done."""

    def parts(self, step: int) -> list[Part]:
        """The global batch of a step, counted from 0."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold besides weights and optimizer."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""


class LabelledRows(Method):
    """A method that trains on labelled rows, in shuffled passes, with one loss."""

    def rows(self, step: int) -> list[Example]:
        """Labelled rows of the batch of a step."""
        train, size = self.context.train, self.settings["batch_size"]
        return examples(train, batch_indices(len(train), size, step, self.context.seed))

    def parts(self, step: int) -> list[Part]:
        rows = self.rows(step)
        return [Part(rows, self.loss(response_tokens(rows)))]

    def loss(self, tokens: int) -> LossFunction:
        """The loss of a micro-batch as its share of the mean over `tokens`."""
        raise NotImplementedError


def generator(*key: int) -> torch.Generator:
    """A random generator that is a pure function of its key."""
    mixed = 0
    for word in key:
        mixed = (mixed * 6364136223846793005 + word + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)


# cached: each step needs it, and computing it takes seconds for a large corpus
@functools.lru_cache(maxsize=8)
def permutation(count: int, *key: int) -> Tensor:
    """A permutation of range(count) that is a pure function of its key, (count,); not to be written to."""
    return torch.randperm(count, generator=generator(*key))


def batch_indices(count: int, size: int, step: int, *key: int) -> list[int]:
    """Rows of the batch of a step: one shuffled pass over the data after the other, no row left out."""
    indices: list[int] = []
    position = step * size
    while len(indices) < size:
        epoch, offset = divmod(position, count)
        taken = permutation(count, *key, epoch)[offset : offset + size - len(indices)].tolist()
        indices += taken
        position += len(taken)
    return indices


def examples(dataset: Dataset, indices: Sequence[int]) -> list[Example]:
    """Rows of a prepared data set."""
    rows = dataset[list(indices)]
    columns = zip(rows["id"], indices, rows["prompt_ids"], rows["response_ids"], strict=True)
    return [Example(*row) for row in columns]


def prompts_of(rows: Sequence[Example], seed: int, draw: int) -> list[Prompt]:
    """The rows' prompts; one that comes again in another draw, or twice in this one, gets other noise."""
    return [
        Prompt(row.prompt, row.id, (seed * 1_000_003 + draw) * 8191 + line)
        for line, row in enumerate(rows)
    ]


def laid_out(rows: Sequence[Example], device: torch.device) -> Layout:
    """Rows as one batch."""
    return Layout.of([(row.prompt, row.response) for row in rows], device)


def response_tokens(rows: Sequence[Example]) -> int:
    """Response tokens of a batch, the normaliser of means over tokens."""
    return sum(len(row.response) for row in rows)


def packed(rows: Sequence[Example], prefix: str = "") -> dict[str, Tensor]:
    """Rows as tensors whose names begin with `prefix`, for a checkpoint."""
    sizes = [[row.id, row.index, len(row.prompt), len(row.response)] for row in rows]
    return {
        f"{prefix}rows": torch.tensor(sizes, dtype=torch.long).reshape(-1, 4),
        f"{prefix}prompts": torch.tensor([t for row in rows for t in row.prompt], dtype=torch.long),
        f"{prefix}responses": torch.tensor(
            [t for row in rows for t in row.response], dtype=torch.long
        ),
    }


def unpacked(state: dict[str, Tensor], prefix: str = "") -> list[Example]:
    """The rows that `packed` made tensors of."""
    ids, indices, *sizes = state[f"{prefix}rows"].unbind(-1)
    texts = [
        [part.tolist() for part in state[f"{prefix}{name}"].split(size.tolist())]
        for name, size in zip(("prompts", "responses"), sizes, strict=True)
    ]
    return [Example(*row) for row in zip(ids.tolist(), indices.tolist(), *texts, strict=True)]
