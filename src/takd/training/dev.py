"""Dev evaluation of a student: loss on the references, and scores of sampled responses."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from takd.data.arrow import PreparedRows
from takd.decoding.sampling import Prompt, Response
from takd.losses.batch import spans
from takd.methods.base import Context, examples, response_tokens
from takd.methods.token_losses import label_loss
from takd.metrics.rouge import exact_match, rouge_l
from takd.models.tokenizer_check import texts_of
from takd.training.diagnostics import diagnostics
from takd.training.student import Student


def dev_values(
    student: Student,
    context: Context,
    dev: PreparedRows,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    tokenizer: PreTrainedTokenizerBase,
    rouge_tokenizer: str,
    micro_batch: int,
    max_tokens: int = 0,
) -> dict[str, float]:
    """Return all values of a dev evaluation, with the responses of all processes to `prompts`."""
    sizes = context.vocabulary, micro_batch, max_tokens
    values = {
        **dev_scores(responses, dev, tokenizer, rouge_tokenizer),
        "loss": dev_loss(student, dev, *sizes),
    }
    if context.teacher is not None:
        values |= diagnostics(student, context.teacher, prompts, responses, *sizes)
    return values


def dev_loss(
    student: Student, dev: PreparedRows, vocabulary: int, micro_batch: int, max_tokens: int = 0
) -> float:
    """Return the mean of -log q over all response tokens of the dev rows, on all processes."""
    accelerator = student.accelerator
    rows = examples(dev, range(len(dev)))
    loss = label_loss(vocabulary, response_tokens(rows))
    mine = sorted(rows[accelerator.process_index :: accelerator.num_processes], key=len)
    total = torch.zeros((), device=accelerator.device)
    with student.whole() as model:
        for span in spans([len(row) for row in mine], micro_batch, max_tokens):
            total += loss(model, mine[span])[0]
    return round(accelerator.reduce(total, "sum").item(), 6)


def dev_prompts(dev: PreparedRows, seed: int) -> list[Prompt]:
    """Return the prompts of the dev rows, with the same noise at each dev evaluation."""
    return [Prompt(row.prompt, row.id, seed) for row in examples(dev, range(len(dev)))]


def dev_scores(
    responses: Sequence[Response],
    dev: PreparedRows,
    tokenizer: PreTrainedTokenizerBase,
    rouge_tokenizer: str,
) -> dict[str, float]:
    """Return the means of all measures over the dev rows, with one response per row."""
    texts = texts_of(tokenizer, (response.tokens.tolist() for response in responses))
    pairs = list(zip(texts, dev["references"], strict=True))
    count = len(pairs)
    length, references = (
        sum(map(len, texts)) for texts in ([r.tokens for r in responses], dev["response_ids"])
    )
    return {
        "rougeL": round(sum(rouge_l(*pair, rouge_tokenizer) for pair in pairs) / count, 4),
        "exact_match": round(sum(exact_match(*pair) for pair in pairs) / count, 4),
        "response_length": round(length / count, 4),
        "length_ratio": round(length / references, 4),
    }
