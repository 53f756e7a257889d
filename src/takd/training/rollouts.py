"""Responses that several processes sample: shares of equal work, and who gets what of them.

Texts and their log-probabilities go to all processes. The teacher's hidden states, which are a
thousand times larger, go to those that train on them, from device to device.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel

from takd.decoding.prompts import Prompt, Response
from takd.models.logits import output_layer

AT_ONCE = 64  # responses whose hidden states are sent in one operation


def share(lengths: Sequence[int], process: int, processes: int) -> list[int]:
    """Return the texts of one process: every n-th of those sorted by length, as indices."""
    return sorted(range(len(lengths)), key=lambda i: lengths[i])[process::processes]


def states_size(teacher: PreTrainedModel | None, responses: int, longest: int) -> int:
    """Bytes of the teacher's hidden states of that many responses, at most; 0 without a teacher."""
    if teacher is None:
        return 0
    return responses * longest * output_layer(teacher).in_features * teacher.dtype.itemsize


def exchanged(
    accelerator: Accelerator,
    prompts: Sequence[Prompt],
    drawn: Mapping[int, Response],
    uses: Iterable[Sequence[int]],
    teacher: PreTrainedModel | None,
    keep: Callable[[Tensor], Tensor],
) -> list[Response]:
    """Return the responses that all processes have drawn, with the hidden states that this one needs.

    Args:
        drawn: this process's responses, by the index of their prompts.
        uses: the responses that each step trains on, as indices.
        teacher: None if there are no hidden states.
        keep: puts hidden states where they are kept.
    """
    light = {i: replace(r, teacher_hidden=torch.zeros(0)) for i, r in drawn.items()}
    parts: list[dict[int, Response]] = gather_object([light])
    by_index = {index: response for part in parts for index, response in part.items()}
    responses = [by_index[i] for i in range(len(prompts))]
    if teacher is not None:
        pairs = zip(prompts, responses, strict=True)
        lengths = [len(prompt.tokens) + len(response.tokens) for prompt, response in pairs]
        hidden = {i: response.teacher_hidden for i, response in drawn.items()}
        needed = wanted(uses, lengths, len(parts))
        deliver(responses, hidden, [set(part) for part in parts], needed, teacher, keep)
    return responses


def wanted(uses: Iterable[Sequence[int]], lengths: Sequence[int], processes: int) -> list[set[int]]:
    """Return the responses whose hidden states each process needs.

    Args:
        uses: the responses of each step, as indices.
        lengths: tokens of each prompt with its response, by which `share` divides them.
    """
    found: list[set[int]] = [set() for _ in range(processes)]
    for batch in uses:
        for process, needed in enumerate(found):
            needed |= {batch[i] for i in share([lengths[i] for i in batch], process, processes)}
    found[0] = set(range(len(lengths)))  # the first process writes checkpoints
    return found


def deliver(
    responses: Sequence[Response],
    hidden: Mapping[int, Tensor],
    drawn: Sequence[set[int]],
    wanted: Sequence[set[int]],
    teacher: PreTrainedModel,
    keep: Callable[[Tensor], Tensor],
) -> None:
    """Send each process the hidden states that it needs; `responses` get them.

    Args:
        hidden: hidden states of the responses that this process has drawn, by index.
        drawn, wanted: the responses that each process has drawn, and needs.
        keep: puts hidden states where they are kept.
    """
    me, width = dist.get_rank(), output_layer(teacher).in_features
    nothing = torch.zeros(0, width, dtype=teacher.dtype, device=teacher.device)

    def tokens(indices: Iterable[int]) -> int:
        return sum(len(responses[i].tokens) for i in indices)

    for start in range(0, len(responses), AT_ONCE):
        some = range(start, min(start + AT_ONCE, len(responses)))
        sent = [[i for i in some if i in drawn[me] and i in needed] for needed in wanted]
        due = [[i for i in some if i in own and i in wanted[me]] for own in drawn]
        rows = [hidden[i].to(nothing) for indices in sent for i in indices]
        given_nh = torch.cat([nothing, *rows])
        taken_nh = nothing.new_empty(sum(map(tokens, due)), width)
        dist.all_to_all_single(
            taken_nh, given_nh, [tokens(each) for each in due], [tokens(each) for each in sent]
        )
        arrived = [i for indices in due for i in indices]
        parts = taken_nh.split([len(responses[i].tokens) for i in arrived])
        for index, hidden_th in zip(arrived, parts, strict=True):
            responses[index].teacher_hidden = keep(hidden_th)
