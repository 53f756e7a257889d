"""Contender of trl_step.py in its own process: takes one training step for each line on standard input.

    python benchmarks/trl_worker.py --who TRL --loss reverse-kl --student 2 128 --teacher 4 128

It says `{…}` when it is ready and `{"seconds": …}` after each step. TRL's training loop is its own: a callback holds it
between steps, so that a step's time is all that the loop does from the end of one step to the end of the next.
"""

import argparse
import importlib.metadata
import itertools
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from harness import Supervisor
from models import gpt2, random_prompts
from steps import MINILLM, optimizer_step
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
)

LEARNING_RATE = 5e-6
BETA = {"reverse-kl": 1.0, "jsd": 0.5}
ON_POLICY: dict[str, Any] = {
    "on_policy": "mixed",
    "on_policy_share": 1.0,
    "initial_share": 0.0,
    "capacity": 1,
    "ratio": 1.0,
    "temperature": 1.0,
    "responses": "labels",
    "gradient_clip": 1.0,
    "steps": 1_000_000,
    "epochs": None,
}
OURS: dict[str, dict[str, Any]] = {
    "reverse-kl": {**ON_POLICY, "beta": 1.0},
    "jsd": {**ON_POLICY, "beta": 0.5},
    # one update, no mixing, and the paper's equations, as in TRL
    "minillm": {
        **MINILLM,
        "rollouts_per_round": 16,
        "inner_epochs": 1,
        "teacher_mix": 0.0,
        "discount": 1.0,
        "return_includes_current": False,
        "reward_scale": 1.0,
        "reward_clip": 1e9,
        "whitening": "none",
        "steps": 1_000_000,
        "epochs": None,
    },
}


def main() -> None:
    supervisor = Supervisor()
    arguments = command_line()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes: dict[str, Any] = {
        "vocabulary": arguments.vocabulary,
        "device": device,
        "fused": arguments.who == "takd",  # as takd loads its models
    }
    student = gpt2(*arguments.student, seed=1, **shapes)
    teacher = gpt2(*arguments.teacher, seed=2, **shapes).requires_grad_(False)
    if arguments.who == "takd":
        supervisor.serve(ours_step(student, teacher, arguments, supervisor))
    else:
        theirs(student, teacher, arguments, supervisor)


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--who", choices=("takd", "TRL"), required=True)
    parser.add_argument("--loss", choices=("reverse-kl", "jsd", "minillm"), required=True)
    parser.add_argument("--student", type=int, nargs=2, required=True, metavar=("LAYERS", "WIDTH"))
    parser.add_argument("--teacher", type=int, nargs=2, required=True, metavar=("LAYERS", "WIDTH"))
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=18, help="tokens")
    parser.add_argument("--response", type=int, default=32, help="tokens")
    parser.add_argument("--vocabulary", type=int, default=50257)
    return parser.parse_args()


# takd's own step. Losses are TRL's: "reverse-kl" and "jsd" are the mean of the divergence over the tokens that the
# student drew; "minillm" is its policy gradient (gamma 1, length normalisation) plus the single-step KL.
def ours_step(
    student: GPT2LMHeadModel,
    teacher: GPT2LMHeadModel,
    arguments: argparse.Namespace,
    supervisor: Supervisor,
) -> Callable[[], None]:
    """Run steps of takd."""
    from takd.decoding.sampling import Decoding, Prompt, Response, draw
    from takd.methods.base import Context
    from takd.methods.gkd import Gkd
    from takd.methods.minillm import MiniLLM

    count, length = 64 * arguments.rows, arguments.prompt
    rows = random_prompts(count, length, length, vocabulary=arguments.vocabulary)
    context = Context(
        settings={**OURS[arguments.loss], "batch_size": arguments.rows},
        seed=1,
        train=Dataset.from_dict(
            {"id": range(count), "prompt_ids": rows, "response_ids": [[0]] * count}
        ),
        vocabulary=arguments.vocabulary,
        max_new_tokens=arguments.response,
        teacher=teacher,
    )
    method = (MiniLLM if arguments.loss == "minillm" else Gkd)(context)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, fused=True)
    steps = itertools.count()

    def sample(
        prompts: Sequence[Prompt], temperature: float, teacher_mix: float | None
    ) -> list[Response]:
        student.eval()
        return draw(
            student,
            prompts,
            Decoding(arguments.response, temperature=temperature),
            end_token=arguments.vocabulary,  # none: every response has its full length
            vocabulary=arguments.vocabulary,
            micro_batch=arguments.rows,
            teacher=None if teacher_mix is None else teacher,
            teacher_mix=teacher_mix or 0.0,
        )

    def step() -> None:
        number = next(steps)
        method.prepare(number, sample)
        student.train()
        optimizer_step(method, student, optimizer, number, arguments.rows)

    supervisor.ready(takd="here", optimizer="adamw_torch_fused")
    return step


def theirs(
    student: GPT2LMHeadModel,
    teacher: GPT2LMHeadModel,
    arguments: argparse.Namespace,
    supervisor: Supervisor,
) -> None:
    """Run TRL's trainer, one step for each request."""
    with tempfile.TemporaryDirectory() as folder:
        build = minillm_trainer if arguments.loss == "minillm" else distillation_trainer
        trainer = build(student, teacher, arguments, folder)
        trainer.add_callback(StepByStep(supervisor))
        supervisor.ready(trl=importlib.metadata.version("trl"), optimizer=trainer.args.optim)
        trainer.train()


def distillation_trainer(
    student: GPT2LMHeadModel, teacher: GPT2LMHeadModel, arguments: argparse.Namespace, folder: str
) -> Trainer:
    """Make the trainer of on-policy distillation; every batch is drawn from the student."""
    from trl import DistillationConfig, DistillationTrainer

    settings = common_settings(arguments, folder)
    return DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(beta=BETA[arguments.loss], disable_dropout=True, **settings),
        train_dataset=prompts(arguments),
        processing_class=tokenizer(arguments.vocabulary),
    )


def minillm_trainer(
    student: GPT2LMHeadModel, teacher: GPT2LMHeadModel, arguments: argparse.Namespace, folder: str
) -> Trainer:
    """Make the trainer of MiniLLM with the paper's long-range term, which the default, gamma 0, leaves out."""
    from trl.experimental.minillm import MiniLLMConfig, MiniLLMTrainer

    settings = common_settings(arguments, folder)
    return MiniLLMTrainer(
        model=student,
        teacher_model=teacher,
        args=MiniLLMConfig(num_generations=1, gamma=1.0, **settings),
        train_dataset=prompts(arguments),
        processing_class=tokenizer(arguments.vocabulary),
    )


def common_settings(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Return settings for float32 and steps alone; TRL's default of recomputing activations is slower here."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": arguments.rows,
        "gradient_accumulation_steps": 1,
        "max_completion_length": arguments.response,
        "max_steps": 1_000_000,  # until the benchmark has enough
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "logging_strategy": "no",
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def prompts(arguments: argparse.Namespace) -> Dataset:
    """Make prompts for many steps, as text of the placeholder tokenizer."""
    count, length = 64 * arguments.rows, arguments.prompt
    rows = random_prompts(count, length, length, vocabulary=arguments.vocabulary)
    texts = [" ".join(str(max(token, 1)) for token in row) for row in rows]
    tokenised = tokenizer(arguments.vocabulary)(texts)["input_ids"]
    assert all(len(row) == length for row in tokenised)
    return Dataset.from_dict({"prompt": texts})


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Make a placeholder tokenizer: the text of a token is its number, and 0 is the padding.

    The end token lies just outside the models' vocabulary: trainers stop at it as ever, but no model can draw it, so
    that every response has its full length.
    """
    words = {"<pad>": 0} | {str(token): token for token in range(1, vocabulary)}
    stand_in = Tokenizer(WordLevel(words | {"<end>": vocabulary}, unk_token="<pad>"))
    stand_in.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=stand_in, eos_token="<end>", pad_token="<pad>", padding_side="left"
    )


class StepByStep(TrainerCallback):
    """Callback that holds the trainer until the next step is requested."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = not self.supervisor.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = not self.supervisor.wait()


if __name__ == "__main__":
    main()
