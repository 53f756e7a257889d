"""The one training loop: batches and losses come from a method, everything else is here.

Each step's global batch is split over processes and micro-batches; losses are shares of a mean over the global
batch, so that neither changes the result. A run that was killed goes on from its last checkpoint and ends with the
weights of one that was not.
"""

import contextlib
import copy
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from takd.evaluation.measures import exact_match, rouge_l
from takd.methods.base import LossFunction, Method, Part, examples, response_tokens
from takd.methods.losses import label_loss
from takd.sampling import Decoding, Prompt, Response, draw
from takd.stage import Interrupted, Stage, read_json, write_json
from takd.training.checkpoints import Checkpoints
from takd.training.devices import device_name, uses_zero3
from takd.training.progress import Journal, Progress

SKIPPED_IN_A_ROW = 50


class LossModule(nn.Module):
    """The student with a loss on top: DDP and DeepSpeed must see every pass through their own forward."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.config = model.config  # DeepSpeed's "auto" values are read off it

    def forward(self, loss: LossFunction, rows: Sequence[Any]) -> Any:
        return loss(self.model, rows)


@dataclass
class Best:
    """The best dev value of a measure so far, and the step that had it."""

    measure: str
    step: int | None = None
    value: float | None = None

    def improves(self, value: float) -> bool:
        if self.value is None:
            return True
        return value < self.value if self.measure == "loss" else value > self.value


@dataclass
class Run:
    """One training run.

    Attributes:
        student: the model to train, not yet on its device.
        dev: prepared data set for dev loss and dev ROUGE-L.
        keep: names of outputs ("model", "init") and the dev measure that picks their weights.
    """

    stage: Stage
    accelerator: Accelerator
    method: Method
    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dev: Dataset
    decoding: Decoding
    precision: str
    keep: dict[str, str]
    checkpoints: Checkpoints
    best: dict[str, Best] = field(default_factory=dict)

    def __post_init__(self) -> None:
        s = self.settings = self.method.settings
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        bounds = [math.ceil(s["epochs"] * self.method.steps_per_epoch())] if s["epochs"] else []
        self.total = max(1, min([*bounds, *([s["steps"]] if s["steps"] else [])]))
        self.best = {name: Best(measure) for name, measure in self.keep.items()}
        # ZeRO-3 leaves each process a part of each parameter: what samples is a whole copy beside it
        self.copy = copy.deepcopy(self.student) if uses_zero3(self.accelerator) else None
        module = LossModule(self.student)
        optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=s["learning_rate"],
            betas=tuple(s["betas"]),
            weight_decay=s["weight_decay"],
            fused=s["deepspeed"] is None,
        )
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        if self.method.context.teacher is not None:
            self.method.context.teacher.to(self.accelerator.device).eval().requires_grad_(False)
        self.journal = Journal(self.checkpoints.folder / "metrics.jsonl", self.main)
        self.seed = self.method.context.seed
        self.end_token: int = self.tokenizer.eos_token_id

    # -- the loop ----------------------------------------------------------------------------------

    def train(self) -> None:
        """Run all steps that are left.

        Raises:
            Interrupted: asked to stop or out of time; a checkpoint has been written.
        """
        step = self.resume()
        name = self.stage.spec["lineage"]
        progress = Progress(f"{name} seed {self.seed}", self.total, step, self.main)
        saved, skipped = time.monotonic(), 0
        if step == 0:
            self.evaluate(0)
        while step < self.total:
            rounds = self.method.steps_per_round
            if rounds and step % rounds == 0:
                self.method.begin_round(step // rounds, self.sample)
            values = self.optimize(step)
            step += 1
            progress.step(step, {"loss": values["loss"], "lr": values["learning_rate"]})
            skipped = 0 if math.isfinite(values["gradient_norm"]) else skipped + 1
            if skipped > SKIPPED_IN_A_ROW:
                raise FloatingPointError(
                    f"{name}: no finite gradient for {skipped} steps up to step {step};"
                    " lower the learning rate, or use precision 'fp32' or 'bf16'."
                )
            if step % self.settings["log_every"] == 0 or step == self.total:
                self.journal.write("train", step, steps=self.total, **values)
            due = step % self.settings["evaluate_every"] == 0 or step == self.total
            if due:
                self.evaluate(step)
            stop = self.agree(self.stage.should_stop())
            late = self.agree(time.monotonic() - saved > self.stage.checkpoint_seconds)
            if due or stop or late:
                self.save(step)
                saved = time.monotonic()
            if stop and step < self.total:
                progress.close()
                raise Interrupted(
                    f"{name} seed {self.seed} at step {step} of {self.total}, as asked or because"
                    " its time is up; the next run goes on from there."
                )
        progress.close()

    def optimize(self, step: int) -> dict[str, float]:
        """One optimizer step on the global batch; returns means over it."""
        s = self.settings
        rate = learning_rate(s, step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.module.train()
        # dropout is the only use of the global generator: no state of it has to be saved
        torch.manual_seed((self.seed * 1_000_003 + step) * 1_009 + self.rank)
        device = self.accelerator.device
        sums: dict[str, Tensor] = {"loss": torch.zeros((), device=device)}
        norm = math.nan
        for part, rows in self.micro_batches(self.method.parts(step)):
            with self.accelerator.accumulate(self.module):
                loss, statistics = self.module(part.loss, rows)
                # processes are averaged and micro-batches divided by their number; ours are shares of a sum
                scale = self.world * self.accelerator.gradient_accumulation_steps
                self.accelerator.backward(loss * scale)
                for key, value in {"loss": loss.detach(), **statistics}.items():
                    sums[key] = sums.get(key, torch.zeros((), device=device)) + value
                if self.accelerator.sync_gradients:
                    clip = s["gradient_clip"]
                    norm = self.accelerator.clip_grad_norm_(self.module.parameters(), clip)
                    norm = math.nan if norm is None else float(norm)
                    if math.isfinite(norm) or self.accelerator.scaler is not None:
                        self.optimizer.step()
                    self.optimizer.zero_grad()
        means = self.accelerator.reduce(torch.stack(list(sums.values())), "sum").tolist()
        values = {key: round(mean, 6) for key, mean in zip(sums, means, strict=True)}
        return {**values, "learning_rate": rate, "gradient_norm": round(norm, 6)}

    def micro_batches(self, parts: Sequence[Part]) -> Iterator[tuple[Part, Sequence[Any]]]:
        """This process's share of the global batch, in pieces that fit the device."""
        for part in parts:
            self.journal.tokens += sum(len(row) for row in part.rows)
            mine = part.rows[self.rank :: self.world]
            for start in range(0, len(mine), self.stage.micro_batch):
                yield part, mine[start : start + self.stage.micro_batch]

    def agree(self, flag: bool) -> bool:
        """Whether any process says so: all must leave the loop at the same step."""
        if self.world == 1:
            return flag
        flags = torch.tensor([int(flag)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flags, "sum").item())

    # -- sampling and dev ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def whole_student(self) -> Iterator[PreTrainedModel]:
        """The student in evaluation mode, with all its parameters at hand."""
        self.module.eval()
        student = self.student if self.copy is None else self.refreshed(self.copy)
        with self.accelerator.autocast(), torch.no_grad():
            yield student.eval()

    @torch.no_grad()
    def refreshed(self, whole: PreTrainedModel) -> PreTrainedModel:
        """The copy with the student's parameters of now.

        Processes draw responses of different lengths, so they must not have to gather a layer together.
        """
        import deepspeed

        whole.to(self.accelerator.device)
        for mine, parameter in zip(whole.parameters(), self.student.parameters(), strict=True):
            with deepspeed.zero.GatheredParameters([parameter]):
                mine.copy_(parameter)
        return whole

    def sample(
        self, prompts: Sequence[Prompt], teacher_mix: float, temperature: float
    ) -> list[Response]:
        """Responses of the student mixed with its teacher; every process draws its share."""
        decoding = Decoding(self.decoding.max_new_tokens, temperature=temperature)
        responses = self.draw(prompts, decoding, teacher_mix, self.method.teacher)
        self.journal.tokens += sum(len(r.tokens) for r in responses)
        return responses

    def draw(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        teacher_mix: float = 0.0,
        teacher: PreTrainedModel | None = None,
    ) -> list[Response]:
        """One response per prompt, the same list on every process."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens))
        mine = order[self.rank :: self.world]
        with self.whole_student() as student:
            drawn = draw(
                student,
                [prompts[i] for i in mine],
                decoding,
                end_token=self.end_token,
                vocabulary=self.method.context.vocabulary,
                micro_batch=max(self.stage.micro_batch, 1) * 4,
                teacher=teacher,
                teacher_mix=teacher_mix,
            )
        pairs = list(zip(mine, drawn, strict=True))
        everywhere = dict(gather_object(pairs) if self.world > 1 else pairs)
        return [everywhere[i] for i in range(len(prompts))]

    def evaluate(self, step: int) -> None:
        """Dev loss and dev ROUGE-L; keeps the weights where a measure that picks a model is best."""
        began = time.monotonic()
        values = {**self.dev_scores(), "loss": self.dev_loss()}
        self.journal.write("dev", step, steps=self.total, n=len(self.dev), **values)
        if self.main:
            self.stage.say(
                f"{self.stage.spec['lineage']} seed {self.seed}: step {step}/{self.total}"
                f"  dev ROUGE-L {values['rougeL']:.1f}  dev loss {values['loss']:.3f}"
                f"  ({self.journal.seconds:.0f} s, of which {time.monotonic() - began:.0f} s dev)"
            )
        if step == 0:  # the start is on the curve, but no result of this training
            return
        for best in self.best.values():
            if best.improves(values[best.measure]):
                best.step, best.value = step, values[best.measure]
        if any(best.step == step for best in self.best.values()):
            self.export(self.kept(step))

    def dev_loss(self) -> float:
        """Mean of -log q over all response tokens of the dev rows."""
        rows = examples(self.dev, range(len(self.dev)))
        loss = label_loss(self.method.context.vocabulary, response_tokens(rows))
        mine = sorted(rows[self.rank :: self.world], key=len)
        total = torch.zeros((), device=self.accelerator.device)
        with self.whole_student() as student:
            for start in range(0, len(mine), self.stage.micro_batch):
                total += loss(student, mine[start : start + self.stage.micro_batch])[0]
        return round(self.accelerator.reduce(total, "sum").item(), 6)

    def dev_scores(self) -> dict[str, float]:
        """Means over the dev rows of the measures on one drawn response each."""
        rows = examples(self.dev, range(len(self.dev)))
        prompts = [Prompt(row.prompt, row.id, self.seed) for row in rows]
        responses = self.draw(prompts, self.decoding)
        texts = self.tokenizer.batch_decode(
            [r.tokens.tolist() for r in responses], skip_special_tokens=True
        )
        pairs = list(zip(texts, self.dev["references"], strict=True))
        count = len(rows)
        return {
            "rougeL": round(sum(rouge_l(*pair) for pair in pairs) / count, 4),
            "exact_match": round(sum(exact_match(*pair) for pair in pairs) / count, 4),
            "response_length": round(sum(len(r.tokens) for r in responses) / count, 4),
        }

    # -- what is kept --------------------------------------------------------------------------------

    def kept(self, step: int) -> Path:
        """Folder of the weights that were best at a step."""
        return self.checkpoints.folder / f"kept-{step:09d}"

    def export(self, folder: Path) -> None:
        """Write the student as a Hugging Face folder with its tokenizer."""
        with self.whole_student() as student:
            if self.main:
                student.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
        self.accelerator.wait_for_everyone()

    def save(self, step: int) -> None:
        """Write a checkpoint; kept weights that no checkpoint names are dropped."""
        partial = self.checkpoints.partial(step)
        self.accelerator.wait_for_everyone()
        if self.main:
            partial.mkdir(exist_ok=True)
            state = self.method.state()
            if state:
                save_file(state, partial / "method.safetensors")
            write_json(
                partial / "progress.json",
                {
                    "step": step,
                    "seconds": self.journal.seconds,
                    "tokens": self.journal.tokens,
                    "metrics_bytes": self.journal.size(),
                    "best": {name: [b.step, b.value] for name, b in self.best.items()},
                },
            )
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.main:
            self.checkpoints.commit(step)
            self.drop_unnamed()

    def drop_unnamed(self) -> None:
        """Remove kept weights that no checkpoint refers to."""
        named = {
            self.kept(best[0]).name
            for checkpoint in self.checkpoints.all()
            for best in read_json(checkpoint / "progress.json")["best"].values()
            if best[0] is not None
        }
        for folder in self.checkpoints.folder.glob("kept-*"):
            if folder.name not in named:
                shutil.rmtree(folder)

    def resume(self) -> int:
        """Go on from the newest checkpoint; returns the number of steps that are done."""
        if not (found := self.checkpoints.all()):
            self.journal.restart()
            return 0
        progress = read_json(found[-1] / "progress.json")
        self.accelerator.load_state(str(found[-1]))
        method = found[-1] / "method.safetensors"
        if method.exists():
            self.method.restore(load_file(method))
        for name, (step, value) in progress["best"].items():
            self.best[name].step, self.best[name].value = step, value
        self.journal.resume(progress["metrics_bytes"], progress["seconds"], progress["tokens"])
        self.stage.say(
            f"{self.stage.spec['lineage']} seed {self.seed}: goes on from step {progress['step']}"
        )
        return progress["step"]

    def end(self) -> None:
        """Close the journal with what the run took."""
        self.journal.write(
            "end",
            self.total,
            device=device_name(self.accelerator),
            processes=self.world,
            precision=self.precision,
            host_cpus=os.cpu_count(),
        )


def learning_rate(settings: dict[str, Any], step: int, total: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then constant, linear or cosine decay to 0."""
    peak, warmup = settings["learning_rate"], settings["warmup_steps"]
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(total - warmup, 1)
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda _: 1.0,
        "linear": lambda x: 1.0 - x,
        "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
    }
    return peak * shapes[settings["schedule"]](done)
