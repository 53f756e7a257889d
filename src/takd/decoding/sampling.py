"""Sampling from a language model, alone or mixed with its teacher, with noise keyed by the prompt.

Each token is the argmax of log-probabilities plus Gumbel noise, which is an exact sample of the
distribution. The noise is a pure function of (seed, prompt, position, token), so a response depends
on neither the size nor the order of a batch, nor on padding or the number of devices, except where
rounding changes the order of two nearly equal tokens. Prompts can therefore be sorted by length,
and finished rows replaced at once.

Teacher-mixed sampling is that of MiniLLM (arXiv 2306.08543, section 2.2): tokens come from p̃ = α p
+ (1 - α) q, with teacher p and student q. Or the student proposes each token, and the teacher
replaces what is not among its likeliest ones (speculative knowledge distillation).
"""

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import cast

import torch
from transformers import PreTrainedModel

from takd.decoding.amounts import READ_AT_ONCE, WORTH, between
from takd.decoding.decoder import Decoder
from takd.decoding.memory import KeptDecoder, rows_that_fit
from takd.decoding.prompts import Decoding, Prompt, Response
from takd.losses.batch import by_length
from takd.losses.chunked import chunk_size
from takd.losses.divergences import log_likelihood
from takd.models.logits import lowered_type, project, tempered


@torch.no_grad()
def draw(
    student: PreTrainedModel,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    *,
    end_token: int | tuple[int, ...],
    vocabulary: int,
    micro_batch: int | None = None,
    teacher: PreTrainedModel | None = None,
    teacher_mix: float = 0.0,
    finished: Callable[[int, Response], None] | None = None,
    kept: KeptDecoder | None = None,
) -> list[Response]:
    """Sample one response per prompt, in the order of the prompts.

    Each model reads a prompt once and then one token per step. Log-probabilities and the teacher's
    hidden states are recorded while decoding, so no second pass is needed. A teacher that does not
    mix takes no part in decoding: it reads all texts at the end.

    Args:
        student, teacher: models in evaluation mode on one device.
        end_token: id of the token that ends a response, or of each that does.
        vocabulary: entries to which logits are cut.
        micro_batch: rows decoded together; None for as many as memory holds and are worth it.
            Affects responses by rounding only.
        teacher_mix: α, the teacher's share of the sampled distribution.
        finished: callback for each response when it ends, with the index of its prompt. It may
            raise an exception to stop the decoding.
        kept: the decoder of an earlier draw from the same models, to use it again.
    """
    if not prompts:
        return []
    for model in (student, *([teacher] if teacher is not None else [])):
        assert not any(module.training for module in model.modules()), "dropout is on"
    # equal prompts are adjacent, to be read once, and so are equal lengths, to avoid padding
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].tokens), prompts[i].tokens))
    # a top k that is the whole vocabulary replaces nothing
    replaces = 0 < decoding.teacher_top_k < vocabulary
    assert not (teacher_mix and replaces), "a teacher mixes or replaces"
    mixing = teacher is not None and (teacher_mix > 0 or replaces)
    models = [student, cast(PreTrainedModel, teacher)] if mixing else [student]
    steps, scored = decoding.max_new_tokens, teacher is not None
    columns = max(len(p.tokens) + min(steps, p.limit or steps) for p in prompts)

    def made() -> Decoder:
        extra = between(**asdict(decoding))
        most = micro_batch or rows_that_fit(models, columns, steps, vocabulary, scored, extra)
        rows, share = min(most, len(prompts)), teacher_mix if mixing else 0.0
        return Decoder(models, decoding, end_token, vocabulary, share, rows, columns, scored)

    kept = kept or KeptDecoder()
    key = (
        *(*map(id, models), *map(lowered_type, models), decoding, end_token, vocabulary),
        *(teacher_mix, scored, micro_batch, min(len(prompts), max(WORTH.values()))),
    )
    decoder = kept.get(key, columns, made)
    found: dict[int, Response] = {}
    # closed at once if `finished` raises an exception, so that the models get their weights back
    with contextlib.closing(decoder.run(deque((i, prompts[i]) for i in order))) as ended:
        for index, response in ended:
            found[index] = response
            if finished is not None:
                finished(index, response)
    rows = decoder.most
    del decoder
    kept.settle()
    responses = [found[i] for i in range(len(prompts))]
    if teacher is not None and not mixing:
        size = max(1, min(rows, READ_AT_ONCE["cuda"] // columns))
        _read(teacher, prompts, responses, decoding.temperature, vocabulary, size)
    return responses


def _read(
    teacher: PreTrainedModel,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    temperature: float,
    vocabulary: int,
    micro_batch: int,
) -> None:
    """Fill in log-probabilities and hidden states of a teacher that took no part in sampling."""
    texts = [(p.teacher_tokens, r.tokens.tolist()) for p, r in zip(prompts, responses, strict=True)]
    # in chunks, so that the logits of all tokens never exist at once
    size = chunk_size(vocabulary, teacher.device)
    for chosen, batch in by_length(texts, micro_batch, teacher.device):
        hidden_nh = batch.hidden(teacher)
        pieces = zip(hidden_nh.split(size), batch.targets_n.split(size), strict=True)
        logs = []
        for hidden_mh, targets_m in pieces:
            logits_mv = tempered(project(teacher, hidden_mh, vocabulary), temperature)
            logs.append(log_likelihood(logits_mv.log_softmax(-1), targets_m))
        parts = zip(chosen, batch.split(torch.cat(logs).cpu()), batch.split(hidden_nh), strict=True)
        for index, log_t, hidden_th in parts:
            responses[index].teacher, responses[index].teacher_hidden = log_t, hidden_th
