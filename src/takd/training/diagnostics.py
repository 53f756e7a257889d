"""Diagnostics of on-policy distillation: student and teacher on the student's own dev responses.

Each model reads the responses once, so that a run shows whether the two come closer where the
student goes: whether their likeliest tokens are the same, how far apart they are early and late in
a response, and how sure each of them is. Nothing in a training depends on these numbers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from takd.decoding.prompts import Prompt, Response
from takd.losses.batch import RightPadded, by_length
from takd.losses.chunked import chunk_size
from takd.losses.divergences import expectation, reverse_kl
from takd.methods.schedule import DIAGNOSED
from takd.models.logits import project
from takd.training.student import Student

LIKELIEST = 16
"""Likeliest tokens of each model whose overlap is measured."""
QUARTERS = 4
NAMES = (
    *("overlap", "overlap_student_mass", "overlap_teacher_mass", "disagreement"),
    *("reverse_kl", "student_entropy", "teacher_entropy"),
)


def diagnostics(
    student: Student,
    teacher: PreTrainedModel,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    vocabulary: int,
    micro_batch: int,
    max_tokens: int = 0,
) -> dict[str, float]:
    """Compare student and teacher at each token of the first responses, on all processes.

    Returns:
        Means over the tokens, by their names in the log (docs/report.md); that of a quarter of the
            responses only if it has tokens. All distributions are those at temperature 1.
    """
    accelerator = student.accelerator
    device, size = accelerator.device, chunk_size(vocabulary, accelerator.device)
    pairs = zip(prompts, responses, strict=True)
    texts = [(prompt.tokens, response.tokens.tolist()) for prompt, response in pairs][:DIAGNOSED]
    mine = texts[accelerator.process_index :: accelerator.num_processes]
    # sums of each quarter of the responses; the first column counts its tokens
    sums_qs = torch.zeros(QUARTERS, 1 + len(NAMES), dtype=torch.float64, device=device)
    places_q1 = torch.arange(QUARTERS, device=device)[:, None]
    with student.whole() as model:
        for _, layout in by_length(mine, micro_batch, device, max_tokens):
            columns = layout.hidden(model), layout.hidden(teacher), _quarters(layout)
            # in chunks, so that the logits of all tokens never exist at once
            for student_mh, teacher_mh, quarter_m in zip(
                *(column.split(size) for column in columns), strict=True
            ):
                pairs_ = ((model, student_mh), (teacher, teacher_mh))
                logs = [project(of, at, vocabulary).log_softmax(-1) for of, at in pairs_]
                sums_qs += (places_q1 == quarter_m).double() @ compared(*logs).double()
    sums_qs = accelerator.reduce(sums_qs, "sum").cpu()
    means = sums_qs.sum(0)[1:] / sums_qs[:, 0].sum()
    found = dict(zip(NAMES, means.tolist(), strict=True))
    for quarter, (count, *sums) in enumerate(sums_qs.tolist(), 1):
        if count:
            found[f"reverse_kl_quarter_{quarter}"] = sums[NAMES.index("reverse_kl")] / count
    return {name: round(value, 6) for name, value in found.items()}


def compared(student_mv: Tensor, teacher_mv: Tensor) -> Tensor:
    """Compute 1, and the quantities of `NAMES`, at each token, (m, 1 + quantities).

    Args:
        student_mv, teacher_mv: log q and log p, (m, vocabulary).
    """
    likeliest = min(LIKELIEST, student_mv.shape[-1])
    own_mk, other_mk = (log_mv.topk(likeliest).indices for log_mv in (student_mv, teacher_mv))
    shared_mk = (own_mk[:, :, None] == other_mk[:, None]).any(-1)
    masses = [
        (log.gather(-1, own_mk).exp() * shared_mk).sum(-1) for log in (student_mv, teacher_mv)
    ]
    disagree_m = own_mk[:, 0] != other_mk[:, 0]
    entropies = [-expectation(log_mv.exp(), log_mv) for log_mv in (student_mv, teacher_mv)]
    kl_m = reverse_kl(student_mv, teacher_mv)
    values = [shared_mk.float().mean(-1), *masses, disagree_m.float(), kl_m, *entropies]
    return torch.stack([torch.ones_like(kl_m), *values], -1)


def _quarters(layout: RightPadded) -> Tensor:
    """Return the quarter of its response, from 0, that each predicted token is in, (n,)."""
    # a first token that nothing precedes is not predicted: its response begins with the second one
    parts = [torch.arange(count) * QUARTERS // count for count in layout.counts if count]
    return torch.cat([torch.zeros(0, dtype=torch.long), *parts]).to(layout.ids_bt.device)
