"""Speed of takd's decoding, whose rows leave the batch when they end, against `transformers`.

    python benchmarks/decoding.py [--quick] [--json FILE] [--threads N] [--only NAME …]

A model alone answers prompts by plain sampling at temperature 1: 64 prompts, as a round of training does, or 100
prompts with 5 seeds each, as an evaluation does. Prompts and responses are as long as in Dolly (`lengths.py`); the
lengths are prescribed, since random models never end a text, and everybody gets the same ones. `generate` has what it
needs to compete: its default cache, rows sorted by the length of their prompts before they are cut into batches, and a
stop of its own for every row, so that a batch ends with its longest response. Its continuous batching (paged keys and
values, `generate_batch`) replaces finished rows at once, as takd does; it draws by the generator of the device, so a
response there depends on its batch. Everybody uses the same model, as takd loads it, in float32.

Cases: `demo` and `gpt2` are models of the demo's and of GPT-2's shape, the latter with one turn only, which takes
minutes on a CPU; `*-evaluation` has 100 × 5 rows, with GPT-2's vocabulary at half the lengths.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from harness import Report, command_line, compare, start
from lengths import LONGEST, dolly_lengths
from models import VOCABULARY, gpt2, random_texts
from torch import Tensor
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    GPT2LMHeadModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from takd.decoding.sampling import Decoding, Prompt, draw

PADDING = 0
PAGE = 16  # tokens in a page of continuous batching: responses are short


@dataclass(frozen=True)
class Case:
    """One comparison: size of the model, rows, and rows decoded together."""

    layers: int
    width: int
    vocabulary: int
    micro_batches: tuple[int, ...]
    repeats: int
    prompts: int = 64
    seeds: int = 1
    longest: int = LONGEST

    def __str__(self) -> str:
        rows = f"{self.prompts} prompts" + (f" × {self.seeds} seeds" if self.seeds > 1 else "")
        return f"{self.layers}×{self.width}, vocabulary {self.vocabulary}, {rows}"


CASES = {
    "demo": Case(2, 64, 700, (64, 16), repeats=5),
    "demo-evaluation": Case(2, 64, 700, (32,), repeats=3, prompts=100, seeds=5),
    "gpt2-evaluation": Case(
        2, 256, VOCABULARY, (32,), repeats=1, prompts=100, seeds=5, longest=128
    ),
    "gpt2": Case(12, 768, VOCABULARY, (64, 16), repeats=1),
}
QUICK = {
    "demo": Case(2, 64, 700, (64, 16), repeats=2, longest=64),
    "demo-evaluation": Case(2, 64, 700, (32,), repeats=2, prompts=20, seeds=5, longest=64),
    "gpt2-evaluation": Case(2, 64, VOCABULARY, (16,), repeats=2, prompts=8, seeds=5, longest=32),
    "gpt2": Case(2, 768, VOCABULARY, (16, 4), repeats=2, prompts=16, longest=32),
}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    device = start(arguments)
    report = Report(__doc__, arguments, device)
    cases = QUICK if arguments.quick else CASES
    for name in arguments.only:
        measure(report, cases[name], device)
    report.finish()


def measure(report: Report, case: Case, device: torch.device) -> None:
    """Compare `generate` and takd on a case."""
    shape: dict[str, Any] = {"vocabulary": case.vocabulary, "positions": 2 * case.longest}
    model = gpt2(case.layers, case.width, fused=True, device=device, **shape)
    rows = asked(case)
    limits = [row.limit or 0 for row in rows]
    drawn: dict[str, list[int]] = {}

    def contender(name: str, decode: Callable[..., list[int]], size: int) -> Callable[[], None]:
        def run() -> None:
            drawn[name] = decode(model, rows, case, size)

        return run

    contenders = {
        name: contender(name, decode, size)
        for who, decode in (
            ("generate", theirs),
            ("continuous batching", continuous),
            ("takd", ours),
        )
        for size in case.micro_batches
        for name in [f"{who}, {size} at a time"]
    }
    # what takes minutes is warm after its first second
    warm_up, tokens = case.repeats > 1, sum(limits)
    report.add(str(case), compare(contenders, case.repeats, warm_up=warm_up, tokens=tokens))
    for name, found in drawn.items():
        if found != limits:
            raise SystemExit(f"{name} drew responses of other lengths than it was told to")


def asked(case: Case) -> list[Prompt]:
    """List each prompt with every seed; each row has its own response length."""
    prompt_lengths = [prompt for prompt, _ in dolly_lengths(case.prompts, case.longest)]
    texts = random_texts(prompt_lengths, vocabulary=case.vocabulary)
    responses = [length for _, length in dolly_lengths(case.prompts * case.seeds, case.longest)]
    places = [(key, seed) for key in range(case.prompts) for seed in range(case.seeds)]
    return [
        Prompt(texts[key], key, seed, limit)
        for (key, seed), limit in zip(places, responses, strict=True)
    ]


def ours(model: GPT2LMHeadModel, rows: Sequence[Prompt], case: Case, size: int) -> list[int]:
    """Decode with takd; return the number of tokens of each row."""
    responses = draw(
        model,
        rows,
        Decoding(case.longest),
        end_token=case.vocabulary,  # is never drawn
        vocabulary=case.vocabulary,
        micro_batch=size,
    )
    return [len(response.tokens) for response in responses]


def theirs(model: GPT2LMHeadModel, rows: Sequence[Prompt], case: Case, size: int) -> list[int]:
    """Decode with `generate`, in batches of prompts of similar length; return what `ours` does."""
    torch.manual_seed(0)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
    found: dict[int, int] = {}
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        batch = [rows[i] for i in chosen]
        width = max(len(row.tokens) for row in batch)
        gaps = [width - len(row.tokens) for row in batch]
        ids = [[PADDING] * gap + list(row.tokens) for gap, row in zip(gaps, batch, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
        limits_b = torch.tensor([row.limit or 0 for row in batch], device=model.device)
        new_bt = model.generate(
            torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            do_sample=True,
            top_k=0,
            max_new_tokens=case.longest,
            stopping_criteria=StoppingCriteriaList([AtItsLength(width + limits_b)]),
            eos_token_id=case.vocabulary,  # is never drawn; without one, finished rows are no padding
            pad_token_id=PADDING,
        )[:, width:]
        found.update(zip(chosen, lengths(new_bt, limits_b), strict=True))
    return [found[i] for i in range(len(rows))]


def continuous(model: GPT2LMHeadModel, rows: Sequence[Prompt], case: Case, size: int) -> list[int]:
    """Decode with `transformers`' continuous batching; return the number of tokens of each row."""
    drawing = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=case.longest,
        eos_token_id=-1,  # is never drawn
        pad_token_id=PADDING,
    )
    pages = sum(-(-(len(row.tokens) + case.longest) // PAGE) for row in rows)
    batching = ContinuousBatchingConfig(
        page_size=PAGE,
        # room for all rows that are decoded together, and one page to spare for each
        num_blocks=size * (2 + pages // len(rows)),
        max_batch_tokens=max(512, size),
        max_requests_per_batch=size,
    )
    how: dict[str, Any] = {"generation_config": drawing, "continuous_batching_config": batching}
    found: dict[int, int] = {}
    with model.continuous_batching_context_manager(**how) as manager:
        asked_of = {
            manager.add_request(list(row.tokens), max_new_tokens=row.limit): index
            for index, row in enumerate(rows)
        }
        while len(found) < len(rows):
            result = manager.get_result(timeout=600)
            if result is None:
                raise SystemExit("continuous batching ended before its responses did")
            if result.is_finished():
                found[asked_of[result.request_id]] = len(result.generated_tokens)
    return [found[i] for i in range(len(rows))]


class AtItsLength(StoppingCriteria):
    """Stopping criterion: each row ends at its own length, (batch,), the batch with its longest row."""

    def __init__(self, lengths_b: Tensor) -> None:
        self.lengths_b = lengths_b

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return input_ids.shape[1] >= self.lengths_b


def lengths(new_bt: Tensor, limits_b: Tensor) -> list[int]:
    """Return where the padding of each row begins, assuming that few rows end with a sampled padding token."""
    columns = torch.arange(1, new_bt.shape[1] + 1, device=new_bt.device)
    last_b = ((new_bt != PADDING) * columns).amax(1)
    drawn_b = torch.where(limits_b - last_b == 1, limits_b, last_b)
    return drawn_b.tolist()


if __name__ == "__main__":
    main()
