"""Cost of verifying the digests of a stage's inputs, for an evaluation and a training of SmolLM2-135M.

    python benchmarks/verifying.py [--quick] [--json FILE] [--threads N]

A Llama of SmolLM2-135M's shape with random weights in float32 (0.5 GB). Measured are the seconds until all its files
are compared, as each stage does before it starts, of one step of supervised fine-tuning on 8 rows of Dolly's lengths,
and of 32 answers of 64 tokens. An evaluation is taken for 500 prompts with 5 seeds at the rate of these answers, a
training for 1000 such steps; at its end, the weights that it publishes are read once more.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import Report, command_line, compare, start
from models import random_prompts
from steps import adamw, dolly_rows, optimizer_step, settings
from transformers import LlamaConfig, LlamaForCausalLM

from takd.decoding.sampling import Decoding, Prompt, draw
from takd.methods.base import Context
from takd.methods.sft import Sft
from takd.runtime import input_check
from takd.runtime.files import write_json
from takd.runtime.records import digests, sealed

ANSWERS, STEPS = 500 * 5, 1000
COMPARING, STEP, DRAWING = "compare the model's files", "one step", "answers"


@dataclass(frozen=True)
class Case:
    """Size of the model, and the work of the stage."""

    hidden: int = 576
    middle: int = 1536
    layers: int = 30
    heads: int = 9
    vocabulary: int = 49152
    answers: int = 32
    tokens: int = 64
    repeats: int = 3

    def __str__(self) -> str:
        return f"Llama {self.layers}×{self.hidden}, vocabulary {self.vocabulary}"


FULL = Case()
QUICK = Case(48, 96, 2, 3, vocabulary=500, answers=4, tokens=8, repeats=2)


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    report = Report(__doc__, arguments, start(arguments))
    case = QUICK if arguments.quick else FULL
    model = llama(case).to(report.device)
    rows = dolly_rows(8 * 4, 256, vocabulary=case.vocabulary)
    sft = Sft(Context(settings(8), 0, rows, case.vocabulary, 256))
    optimizer = adamw(model)
    tokens = random_prompts(case.answers, 20, 60, vocabulary=case.vocabulary)
    prompts = [Prompt(ids, number, 10) for number, ids in enumerate(tokens)]

    def step() -> None:
        optimizer_step(sft, model, optimizer, 0, 8)

    @torch.no_grad()
    def answers() -> None:
        # no token ends an answer: all have the greatest length
        options = {"end_token": -1, "vocabulary": case.vocabulary, "micro_batch": case.answers}
        draw(model.eval(), prompts, Decoding(case.tokens), **options)

    with tempfile.TemporaryDirectory() as place:
        manifest = written(model, Path(place))

        def comparing() -> None:
            input_check.verify({"lineage": "model-sft", "seed": 1}, {"model": [manifest]})

        contenders = {STEP: step, DRAWING: answers, COMPARING: comparing}
        comparison = compare(contenders, case.repeats)
    report.add(str(case), comparison)
    seconds = comparison.median(COMPARING)
    stages = {
        "an evaluation of 2500 answers": (1, comparison.median(DRAWING) / case.answers * ANSWERS),
        # what it starts from, and what it publishes
        f"a training of {STEPS} steps": (2, comparison.median(STEP) * STEPS),
    }
    for name, (times, stage) in stages.items():
        report.note(
            f"{name.capitalize()} takes {stage:,.0f} s (extrapolated), reading its model {times} times"
            f" {times * seconds:.2f} s: {times * seconds / stage:.3%}."
        )
    report.finish()


def llama(case: Case) -> LlamaForCausalLM:
    """Make a random model in evaluation mode, with one key head for three query heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.hidden,
        intermediate_size=case.middle,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.heads // 3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def written(model: LlamaForCausalLM, folder: Path) -> Path:
    """Write a model as a training does; return its manifest."""
    model.save_pretrained(folder / "model")
    said = {"kind": "model", "lineage": "model-sft", "seed": 1}
    record = sealed({**said, "files": digests([folder / "model"], folder)})
    write_json(folder / "manifest.json", record)
    return folder / "manifest.json"


if __name__ == "__main__":
    main()
