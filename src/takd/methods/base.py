"""Interface of training methods: the batch of each step, and its loss.

A method does not depend on devices, processes or checkpoints, and the training loop does not depend
on losses. Batches are global, and pure functions of (seed, step), so neither the number of
processes nor a restart changes them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from takd.data.arrow import PreparedRows
from takd.decoding.sampling import Prompt, Response
from takd.losses.batch import RightPadded
from takd.losses.teacher_logits import StoredOutputs
from takd.methods.other_prompts import other_prompts
from takd.methods.schedule import total_steps

# sums over tokens, divided by the global count, so that micro-batches and processes can be added
Statistics = dict[str, Tensor]
# (student, rows of one micro-batch) -> loss, statistics
LossFunction = Callable[[PreTrainedModel, Sequence[Any]], tuple[Tensor, Statistics]]


class Sampler(Protocol):
    """Samples one response per prompt, on the CPU, the same on every process."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        temperature: float,
        teacher_mix: float | None,
        teacher_top_k: int = 0,
    ) -> list[Response]:
        """Sample.

        Args:
            teacher_mix: the teacher's share α; None leaves the teacher out.
            teacher_top_k: as in `takd.decoding.prompts.Decoding`.
        """
        ...


@dataclass(frozen=True)
class Example:
    """A prompt and a response, as token ids.

    Attributes:
        id: number of the row in its source, one of the keys of its sampling noise.
        index: row of the prepared data set, under which teacher outputs are stored; -1 for none.
        asked: prompt under which a teacher reads the response, as long; None for `prompt`.
    """

    id: int
    index: int
    prompt: Sequence[int]
    response: Sequence[int]
    asked: Sequence[int] | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass
class Part:
    """Rows of a step's global batch that share a loss.

    Attributes:
        outputs: how the teacher's distributions come about, by which their FLOPs are counted
            (`takd.models.flops.distribution`); empty for a pass of the teacher, if it is loaded.
    """

    rows: Sequence[Any]
    loss: LossFunction
    outputs: str = ""


@dataclass
class Context:
    """Data and models for a method.

    Attributes:
        settings: settings of the method, with all defaults.
        seed: training seed.
        train: columns `prompt_ids`, `response_ids`, `id`.
        corpus: column `input_ids` of fixed-length blocks, or None.
        teacher: teacher in evaluation mode, or None.
        stored: stored teacher outputs, for "train" and "corpus".
        vocabulary: entries to which the logits of both models are cut.
        max_new_tokens: longest response that may be sampled.
    """

    settings: dict[str, Any]
    seed: int
    train: PreparedRows
    vocabulary: int
    max_new_tokens: int
    teacher: PreTrainedModel | None = None
    corpus: PreparedRows | None = None
    stored: dict[str, StoredOutputs] = field(default_factory=dict)


@dataclass
class Method:
    """Base class of all training methods.

    Attributes:
        planned: number of steps of a run under a budget, as expected now; None where the settings
            give it.
    """

    context: Context
    planned: int | None = None
    decays_all = False
    """Whether weight decay includes biases and norms; the authors' code of most methods leaves them out."""

    @classmethod
    def needs_answers(cls, settings: Mapping[str, Any]) -> bool:
        """Return whether the method learns from the responses of the training rows, besides their prompts."""
        return False

    @property
    def settings(self) -> dict[str, Any]:
        return self.context.settings

    @property
    def teacher(self) -> PreTrainedModel:
        assert self.context.teacher is not None, "this method needs a teacher"
        return self.context.teacher

    def asked(self, rows: list[Example], draw: int) -> list[Example]:
        """Return rows as the teacher reads them: under other prompts, if the settings say so."""
        if self.settings.get("teacher_prompts", "own") == "own":
            return rows
        train = self.context.train
        order = permutation(len(train), self.context.seed, 3)  # others than those of the batches
        others = other_prompts([row.prompt for row in rows], train, order, draw)
        return [replace(row, asked=asked) for row, asked in zip(rows, others, strict=True)]

    def total_steps(self) -> int:
        """Return the optimizer steps of the run; under a budget, the number that is expected now."""
        if self.planned is not None:
            return self.planned
        steps = total_steps(self.settings, len(self.context.train))
        assert steps is not None, "an experiment gives steps or epochs"
        return steps

    def part_sizes(self) -> list[int]:
        """Return the number of rows in each part of a step's global batch."""
        return [self.settings["batch_size"]]

    def prepare(self, step: int, sample: Sampler) -> None:
        """Sample the responses that a step needs; called before each step."""

    def uses(self) -> list[list[int]]:
        """Return which of the responses that `prepare` samples each of their steps uses, as indices.

        A teacher's hidden states are given only to the processes that need them; other methods than
        those with rollouts keep none.
        """
        return []

    def learned(self, step: int, values: dict[str, float]) -> None:
        """Handle the end of the optimizer step on the batch that `parts(step)` returned.

        Anything that a method derives from it must be part of `state`.

        Args:
            step: the step, counted from 0.
            values: values as in the training log, the same on all processes: `loss` and the
                statistics of the loss, which are means over the global batch; `learning_rate`; and
                `gradient_norm`. If the step was skipped, `gradient_norm` is not finite, and others
                may not be finite either.
        """

    def observe(self, step: int, dev_loss: float) -> None:
        """Handle a dev evaluation, after `step` steps."""

    def parts(self, step: int) -> list[Part]:
        """Return the global batch of a step, counted from 0."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint needs in addition to weights and optimizer."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore a `state`."""


class LabelledRows(Method):
    """Base class of methods with one loss on labelled rows, in shuffled passes."""

    @classmethod
    def needs_answers(cls, settings: Mapping[str, Any]) -> bool:
        return True

    def rows(self, step: int) -> list[Example]:
        """Return the labelled rows of a step's batch."""
        train, size = self.context.train, self.settings["batch_size"]
        return examples(train, batch_indices(len(train), size, step, self.context.seed))

    def parts(self, step: int) -> list[Part]:
        rows = self.asked(self.rows(step), step)
        outputs = self.settings.get("teacher_outputs", "")
        return [Part(rows, self.loss(response_tokens(rows)), outputs)]

    def loss(self, tokens: int) -> LossFunction:
        """Return the loss of a micro-batch, as its share of the mean over `tokens`."""
        raise NotImplementedError


def generator(*key: int) -> torch.Generator:
    """Return a random generator that is a pure function of its key."""
    mixed = 0
    for word in key:
        mixed = (mixed * 6364136223846793005 + word + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)


# cached: each step needs it, and computing it takes seconds for a large corpus
@functools.lru_cache(maxsize=8)
def permutation(count: int, *key: int) -> Tensor:
    """Return a permutation of range(count) that is a pure function of its key, (count,).

    The tensor is cached, so it must not be modified.
    """
    return torch.randperm(count, generator=generator(*key))


def batch_indices(count: int, size: int, step: int, *key: int) -> list[int]:
    """Return the rows of a step's batch: shuffled passes over the data, without dropping a rest."""
    indices: list[int] = []
    position = step * size
    while len(indices) < size:
        epoch, offset = divmod(position, count)
        taken = permutation(count, *key, epoch)[offset : offset + size - len(indices)].tolist()
        indices += taken
        position += len(taken)
    return indices


def examples(dataset: PreparedRows, indices: Sequence[int]) -> list[Example]:
    """Return rows of a prepared data set."""
    rows = dataset[list(indices)]
    columns = zip(rows["id"], indices, rows["prompt_ids"], rows["response_ids"], strict=True)
    return [Example(*row) for row in columns]


def prompts_of(rows: Sequence[Example], seed: int, draw: int) -> list[Prompt]:
    """Return prompts whose noise differs between draws, and between equal prompts of one draw."""
    return [
        Prompt(row.prompt, row.id, (seed * 1_000_003 + draw) * 8191 + line, asked=row.asked)
        for line, row in enumerate(rows)
    ]


def laid_out(rows: Sequence[Example], device: torch.device) -> RightPadded:
    """Return rows as one padded batch."""
    return RightPadded.of([(row.prompt, row.response) for row in rows], device)


def response_tokens(rows: Sequence[Example]) -> int:
    """Count the response tokens of a batch, over which losses are averaged."""
    return sum(len(row.response) for row in rows)


def packed(rows: Sequence[Example], prefix: str = "") -> dict[str, Tensor]:
    """Convert rows to tensors for a checkpoint; names begin with `prefix`."""
    sizes = [[row.id, row.index, len(row.prompt), len(row.response)] for row in rows]
    return {
        f"{prefix}rows": torch.tensor(sizes, dtype=torch.long).reshape(-1, 4),
        f"{prefix}prompts": torch.tensor([t for row in rows for t in row.prompt], dtype=torch.long),
        f"{prefix}responses": torch.tensor(
            [t for row in rows for t in row.response], dtype=torch.long
        ),
    }


def unpacked(state: dict[str, Tensor], prefix: str = "") -> list[Example]:
    """Convert the tensors of `packed` back to rows."""
    ids, indices, *sizes = state[f"{prefix}rows"].unbind(-1)
    texts = [
        [part.tolist() for part in state[f"{prefix}{name}"].split(size.tolist())]
        for name, size in zip(("prompts", "responses"), sizes, strict=True)
    ]
    return [Example(*row) for row in zip(ids.tolist(), indices.tolist(), *texts, strict=True)]
