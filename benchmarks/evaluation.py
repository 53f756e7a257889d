"""Time of answering 500 prompts with 5 seeds each: takd's evaluation stage against `transformers.generate`.

    python benchmarks/evaluation.py [--quick] [--json FILE] [--threads N] [--only NAME …] [--no-repeat-ngram N]

Prompts and responses are as long as in DollyEval (`lengths.py`). Random models never end a text, so each response's
length is prescribed, the same to both.

- takd takes the whole way of the stage `evaluate`: `takd.decoding.resumable` loads the model from its folder, decodes
  all seeds of all prompts together and writes every answer down.
- `generate` goes as in the authors' evaluation: one seed after the other, batches of prompts in the order of the data,
  padded on the left, `do_sample` without top-k. It gets more than they give it: batches as wide as their longest prompt
  rather than 256, a model that is there already, and no words to decode or write. A batch ends with its longest answer.

Both have the same model, loaded as the stage loads it: in float32 on a CPU, else in what the card multiplies fast. That
both draw from the same distribution is tested by `tests/test_decoding_distribution.py`.

Cases: `small` and `medium` are of the shapes of the demo's student and teacher, which two cores decode in minutes;
`gpt2` is GPT-2 124M, for a GPU or with few prompts, and runs only where it is named.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from decoding import PADDING, AtItsLength
from harness import Report, command_line, compare, start
from lengths import LONGEST, dolly_lengths
from models import VOCABULARY, gpt2, random_texts
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast, StoppingCriteriaList

from takd.data.row import batches
from takd.decoding import loading
from takd.decoding.resumable import RowSeed, respond
from takd.decoding.sampling import Decoding, Prompt
from takd.runtime.stage import Stage

SEEDS = (10, 20, 30, 40, 50)


@dataclass(frozen=True)
class Case:
    """One comparison: size of the model, prompts, and rows decoded together."""

    layers: int
    width: int
    vocabulary: int
    repeats: int
    prompts: int = 500
    micro_batch: int = 64  # the default of evaluation.batch_size
    longest: int = LONGEST

    def __str__(self) -> str:
        shape = f"{self.layers}×{self.width}, vocabulary {self.vocabulary}"
        return f"{shape}, {self.prompts} prompts × {len(SEEDS)} seeds, {self.micro_batch} at a time"


CASES = {
    "small": Case(2, 64, 700, repeats=2),
    "medium": Case(3, 192, 700, repeats=1),
    "gpt2": Case(12, 768, VOCABULARY, repeats=2),
}
QUICK = {
    "small": Case(2, 64, 700, repeats=2, prompts=24, micro_batch=8, longest=48),
    "medium": Case(3, 192, 700, repeats=2, prompts=24, micro_batch=8, longest=48),
    "gpt2": Case(2, 64, VOCABULARY, repeats=1, prompts=8, micro_batch=8, longest=24),
}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=["small", "medium"])
    parser.add_argument(
        "--no-repeat-ngram", type=int, default=0, metavar="N", help="as in decoding"
    )
    parser.add_argument("--prompts", type=int, metavar="N", help="fewer prompts than the 500")
    arguments = parser.parse_args()
    device = start(arguments)
    report = Report(__doc__, arguments, device)
    for name in arguments.only:
        case = (QUICK if arguments.quick else CASES)[name]
        case = replace(case, prompts=arguments.prompts or case.prompts)
        measure(report, case, arguments.no_repeat_ngram)
    report.finish()


def measure(report: Report, case: Case, ngram: int) -> None:
    """Compare both ways on a case."""
    prompts = asked(case)
    limits = {key: prompt.limit for key, prompt in prompts.items()}
    tokenizer = made_tokenizer(case.vocabulary)
    decoding = Decoding(case.longest, no_repeat_ngram=ngram)
    found: dict[str, dict[RowSeed, int]] = {}
    with TemporaryDirectory() as place:
        folder = Path(place)
        endless(case, tokenizer).save_pretrained(folder / "model")
        asking = Stage(spec={}, code="")
        model, _ = loading.load(asking, folder / "model", tokenizer, "generate's")
        stores = count()

        def ours() -> None:
            store = folder / f"answers{next(stores)}"  # answers that are there are not drawn again
            store.mkdir()
            stage = Stage(spec={"lineage": "takd's"}, code="", micro_batch=case.micro_batch)
            answers = respond(stage, "takd", folder / "model", tokenizer, prompts, decoding, store)
            found["takd"] = {key: len(each["tokens"]) for key, each in answers.items()}

        def theirs() -> None:
            found["generate"] = generated(model, case, prompts, decoding)

        contenders: dict[str, Callable[[], None]] = {"generate": theirs, "takd": ours}
        tokens = sum(limit or 0 for limit in limits.values())
        # what takes minutes is warm after its first second
        comparison = compare(
            contenders, case.repeats, warm_up=report.arguments.quick, tokens=tokens
        )
    report.add(f"{case}{f', no {ngram}-gram twice' if ngram else ''}", comparison)
    for name, lengths in found.items():
        if lengths != limits:
            raise SystemExit(f"{name} drew responses of other lengths than it was told to")
    rates = {name: tokens / comparison.median(name) for name in contenders}
    report.note(
        f"{case}: takd draws {rates['takd']:,.0f} tokens/s, generate {rates['generate']:,.0f}:"
        f" {comparison.gain('takd'):.2f} times as many."
    )


def asked(case: Case) -> dict[RowSeed, Prompt]:
    """Return the prompts by row and seed, in the order of the data; each answer has its own length."""
    both = dolly_lengths(case.prompts, case.longest, evaluated=True)
    texts = random_texts([length for length, _ in both], vocabulary=case.vocabulary)
    # an answer to the same prompt has another length with another seed
    answers = dolly_lengths(case.prompts * len(SEEDS), case.longest, evaluated=True)
    limits = iter([length for _, length in answers])
    return {
        (row, seed): Prompt(text, row, seed, next(limits))
        for row, text in enumerate(texts)
        for seed in SEEDS
    }


def generated(
    model: PreTrainedModel, case: Case, prompts: dict[RowSeed, Prompt], decoding: Decoding
) -> dict[RowSeed, int]:
    """Draw all answers with `generate`; return the number of tokens of each."""
    found: dict[RowSeed, int] = {}
    for seed in SEEDS:
        torch.manual_seed(seed)
        keys = [key for key in prompts if key[1] == seed]
        for chosen in batches(keys, case.micro_batch):
            batch = [prompts[key] for key in chosen]
            width = max(len(prompt.tokens) for prompt in batch)
            gaps = [width - len(prompt.tokens) for prompt in batch]
            lines = list(zip(gaps, batch, strict=True))
            ids = [[PADDING] * gap + list(prompt.tokens) for gap, prompt in lines]
            mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
            limits_b = torch.tensor([prompt.limit or 0 for prompt in batch], device=model.device)
            options: dict[str, Any] = {
                "do_sample": True,
                "top_k": 0,
                "max_new_tokens": decoding.max_new_tokens,
                "no_repeat_ngram_size": decoding.no_repeat_ngram,
                "stopping_criteria": StoppingCriteriaList([AtItsLength(width + limits_b)]),
                "eos_token_id": case.vocabulary - 1,
                "pad_token_id": case.vocabulary - 1,  # as in the reference: the end token pads
            }
            new_bt = model.generate(
                torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                **options,
            )[:, width:]
            # the end token is never drawn, so all that is not padding was
            drawn_b = (new_bt != case.vocabulary - 1).sum(1)
            found.update(zip(chosen, drawn_b.tolist(), strict=True))
    return {key: found[key] for key in prompts}


def endless(case: Case, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Make a random model that never draws the end token, the last of the vocabulary."""
    model = gpt2(case.layers, case.width, vocabulary=case.vocabulary, positions=2 * case.longest)
    with torch.no_grad():
        # hidden states are normalised: their first entry stays around this bias, and weighs for this token alone
        model.transformer.ln_f.bias[0] = 20.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[tokenizer.eos_token_id] = 0.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = -50.0
    return model


def made_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer with a vocabulary of made-up words, the last of which ends a text."""
    words = {f"w{number}": number for number in range(vocabulary - 1)} | {"<end>": vocabulary - 1}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")),
        eos_token="<end>",
        pad_token="<end>",
    )


if __name__ == "__main__":
    sys.exit(main())
