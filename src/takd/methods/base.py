"""What a method of training is: what it trains on at a step, and its loss there.

A method sees neither devices nor processes nor checkpoints; the loop sees no divergence. Batches are global and
pure functions of (seed, step), so that neither the number of processes nor a restart changes them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from takd.models import hidden_states, project
from takd.sampling import Prompt, Response

# Sums over tokens, already divided by the global count: they add up over micro-batches and processes.
Statistics = dict[str, Tensor]
# (student, rows of one micro-batch) -> loss, statistics
LossFunction = Callable[[PreTrainedModel, Sequence[Any]], tuple[Tensor, Statistics]]
# prompts, teacher's share -> one response each, on the CPU, the same on every process
Sampler = Callable[[Sequence[Prompt], float, float], list[Response]]


@dataclass(frozen=True)
class Example:
    """A prompt and a response, as token ids."""

    id: int
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


@dataclass
class Method:
    """Base of all methods: supervised data in batches, no rounds."""

    context: Context
    # optimizer steps between two calls of begin_round; None: the method has no rounds
    steps_per_round: int | None = field(default=None, init=False)

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

    def part_sizes(self) -> list[int]:
        """Rows of each part of a step's global batch."""
        return [self.settings["batch_size"]]

    def begin_round(self, index: int, sample: Sampler) -> None:
        """Prepare the steps of a round."""

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

    def parts(self, step: int) -> list[Part]:
        train, size = self.context.train, self.settings["batch_size"]
        rows = examples(train, batch_indices(len(train), size, step, self.context.seed))
        return [Part(rows, self.loss(response_tokens(rows)))]

    def loss(self, tokens: int) -> LossFunction:
        """The loss of a micro-batch as its share of the mean over `tokens`."""
        raise NotImplementedError


def permutation(count: int, *key: int) -> Tensor:
    """A permutation of range(count) that is a pure function of its key, (count,)."""
    words = torch.tensor(key, dtype=torch.int64)
    mixed = 0
    for word in words.tolist():
        mixed = (mixed * 6364136223846793005 + word + 1442695040888963407) % 2**63
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed))


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
    columns = zip(rows["id"], rows["prompt_ids"], rows["response_ids"], strict=True)
    return [Example(*row) for row in columns]


@dataclass
class ResponseBatch:
    """Rows padded on the right to the longest, and where their response tokens are predicted.

    Attributes:
        ids_bt, mask_bt: (batch, length).
        rows_n, columns_n: positions whose next token is a response token.
        targets_n: those next tokens.
    """

    ids_bt: Tensor
    mask_bt: Tensor
    rows_n: Tensor
    columns_n: Tensor
    targets_n: Tensor

    @classmethod
    def of(cls, rows: Sequence[Example], device: torch.device) -> "ResponseBatch":
        """Lay out examples; an empty prompt gives its first response token no prediction."""
        width = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        where: list[tuple[int, int]] = []
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor([*row.prompt, *row.response])
            mask[index, : len(row)] = 1
            first = max(len(row.prompt), 1)
            where += [(index, column - 1) for column in range(first, len(row))]
        rows_n, columns_n = torch.tensor(where, dtype=torch.long).reshape(-1, 2).unbind(-1)
        targets_n = ids[rows_n, columns_n + 1]
        return cls(*(t.to(device) for t in (ids, mask, rows_n, columns_n, targets_n)))

    def hidden(self, model: PreTrainedModel) -> Tensor:
        """Hidden states that predict the response tokens, (n, hidden size)."""
        return hidden_states(model, self.ids_bt, self.mask_bt)[self.rows_n, self.columns_n]

    @torch.no_grad()
    def teacher_hidden(self, model: PreTrainedModel) -> Tensor:
        """The same from a model that is not trained."""
        return self.hidden(model)


def response_tokens(rows: Sequence[Example]) -> int:
    """Response tokens of a batch, the normaliser of means over tokens."""
    return sum(len(row.response) for row in rows)


def logits_of(model: PreTrainedModel, vocabulary: int) -> Callable[[Tensor], Tensor]:
    """Function from hidden states to float32 logits."""
    return lambda hidden: project(model, hidden, vocabulary)


def teacher_logits_of(model: PreTrainedModel, vocabulary: int) -> Callable[[Tensor], Tensor]:
    """The same of a model that is not trained."""
    return torch.no_grad()(logits_of(model, vocabulary))
