"""The training loop: steps, dev evaluations, checkpoints and logging, for all methods.

Each step's global batch is divided among processes and micro-batches. Losses are shares of a mean
over the global batch, so their number changes results by rounding only. A run that was killed
resumes from its last checkpoint and ends with the same weights (docs/workflow.md, Reproducibility).
"""

import functools
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from takd.data.arrow import PreparedRows
from takd.decoding.memory import KeptDecoder
from takd.decoding.prompts import Decoding, Prompt, Response
from takd.decoding.sampling import draw
from takd.losses.batch import spans
from takd.losses.teacher_logits import kept
from takd.methods.base import LossFunction, Method
from takd.methods.schedule import learning_rate
from takd.models.precision import PRETRAINED, describe, device_name, torch_dtype
from takd.models.tokenizer_check import end_tokens
from takd.runtime.checkpoints import LOG, Checkpoints, Pace
from takd.runtime.errors import InputError
from takd.runtime.metrics_log import Journal, Progress
from takd.runtime.stage import Interrupted, Stage
from takd.training.best_weights import Best, Keeper
from takd.training.dev import dev_prompts, dev_values
from takd.training.devices import agree, seed_generators
from takd.training.exporting import Exported
from takd.training.rollouts import exchanged, share, states_size
from takd.training.spending import Spending
from takd.training.student import Student

SKIPPED_IN_A_ROW = 50


@dataclass
class Run:
    """One training run.

    Attributes:
        model: the model to train, not yet on its device.
        exported: files that are written beside the weights.
        dev: prepared data set for dev evaluations.
        decoding: decoding settings of dev evaluations.
        keep: outputs ("model", "init"), with the dev measure that selects their weights.
        rouge_tokenizer: tokenizer of ROUGE-L on the dev rows, chosen by the data stage.
        share: FLOPs that a budget leaves to this training; None without a budget.
    """

    stage: Stage
    accelerator: Accelerator
    method: Method
    model: PreTrainedModel
    exported: Exported
    dev: PreparedRows
    decoding: Decoding
    precision: str
    keep: dict[str, str]
    checkpoints: Checkpoints
    rouge_tokenizer: str
    share: int | None = None

    def __post_init__(self) -> None:
        s = self.settings = self.method.settings
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        dtype = torch_dtype(self.precision)
        self.student = Student(
            *(self.accelerator, self.model, s, self.stage.compile, dtype, self.method.decays_all)
        )
        self.journal = Journal(self.checkpoints.folder / LOG, self.main)
        self.spending = Spending(self.method, self.model, self.journal, self.share)
        self.keeper = Keeper(
            *(self.student, self.method, self.exported, self.journal, self.checkpoints),
            {name: Best(measure) for name, measure in self.keep.items()},
            self.stage.say,
        )
        self.seed = self.method.context.seed
        self.title = f"{self.stage.spec['lineage']} seed {self.seed}"
        self.tokenizer = self.exported.tokenizer
        self.ends = end_tokens(self.tokenizer)
        self.decoder = KeptDecoder()

    @property
    def total(self) -> int:
        """Number of steps; under a budget, the number that is expected now."""
        return self.method.total_steps()

    def train(self) -> None:
        """Run all remaining steps.

        Raises:
            Interrupted: SIGTERM or time limit; a checkpoint has been written.
            InputError: many steps in a row had no finite gradient (a checkpoint has been written),
                or a checkpoint could not be written.
        """
        step = self.keeper.resume(self.spending.over)
        last = self.spending.over(step)
        self.introduce(step)
        progress = Progress(self.title, self.total, step, self.main)
        pace, in_a_row = Pace(self.stage.checkpoint_seconds), 0
        if step == 0:
            self.evaluate(0)
        while not last:
            self.spending.begin(step)
            # sampling comes before the optimizer step, with the weights that this step starts from
            self.method.prepare(step, self.sample)
            values = self.optimize(step)
            self.method.learned(step, values)
            step += 1
            last = self.spending.over(step)
            in_a_row = 0 if math.isfinite(values["gradient_norm"]) else in_a_row + 1
            if in_a_row:
                self.skipped(step)
            shown = {"loss": values["loss"], "lr": values["learning_rate"]}
            skipped = {"skipped": self.journal.skipped} if self.journal.skipped else {}
            progress.step(step, {**shown, **skipped}, self.total)
            if step % self.settings["log_every"] == 0 or last:
                self.journal.write("train", step, steps=self.total, **values, **skipped)
            if step % self.settings["evaluate_every"] == 0 or last:
                self.evaluate(step)
            diverged = in_a_row == SKIPPED_IN_A_ROW
            due = pace.due(self.journal.seconds, step, self.total)
            stop, due = agree(self.accelerator, self.stage.should_stop(), due)
            if due or stop or diverged or last:
                # the last step is saved too: publishing compares the kept weights with its digests
                pace.saved(self.keeper.save(step))
            if (stop or diverged) and not last:
                progress.close()
                self.keeper.finish()
                self.leave(step, values["learning_rate"], diverged)
        progress.close()
        self.keeper.finish()

    def introduce(self, step: int) -> None:
        """Print what starts or resumes, and on which devices."""
        count = f"{self.world} process{'es' if self.world > 1 else ''}"
        how = describe(self.precision, getattr(self.model.config, PRETRAINED))
        steps = f"{self.total} steps" if self.share is None else f"{self.share:.3g} FLOPs"
        what = f"resumes from step {step} of {self.total}" if step else steps
        self.stage.say(f"{self.title}: {what}, {how}, {count}")

    def skipped(self, step: int) -> None:
        """Count a step that was skipped because its gradient was not finite."""
        self.journal.skipped += 1
        if self.main and self.journal.skipped in (1, 10, 100, 1000):
            self.stage.say(
                f"{self.title}: step {step} skipped, its gradient is not finite ({self.journal.skipped} so far)"
            )

    def leave(self, step: int, rate: float, diverged: bool) -> None:
        """Raise the error that explains why a run ends before its last step."""
        if diverged:
            raise InputError(
                f"{self.title}: no finite gradient in {SKIPPED_IN_A_ROW} steps in a row, up to step {step} of"
                f" {self.total}; lower the learning rate (now {rate:g}), or use precision 'fp32' or 'bf16' in place of"
                f" '{self.precision}'. The checkpoint holds the weights of before; the same settings resume from it."
            )
        raise Interrupted(
            f"{self.title} at step {step} of {self.total}, as asked or because its time is up; the next run resumes"
            " from there."
        )

    def optimize(self, step: int) -> dict[str, float]:
        """Run one optimizer step on the global batch; return means over the batch."""
        s = self.settings
        micro_batches = self.micro_batches(step)
        rate = learning_rate(s, step, self.total)
        for group in self.student.optimizer.param_groups:
            group["lr"] = rate
        self.student.train()
        # only dropout uses the global generator; reseeded at each step, it needs no saved state
        seed_generators((self.seed * 1_000_003 + step) * 1_009 + self.rank)
        sums: dict[str, Tensor] = {}
        # a step's loss is a mean over the global batch: each micro-batch adds its share of it
        for loss, statistics in self.student.passes(micro_batches):
            for key, value in {"loss": loss, **statistics}.items():
                sums[key] = sums[key] + value if key in sums else value
        norm = self.student.update(s["gradient_clip"])
        means = self.accelerator.reduce(torch.stack(list(sums.values())), "sum")
        # the only wait for the device in a step
        *shares, norm = torch.cat([means, norm.to(means)[None]]).tolist()
        values = {key: round(mean, 6) for key, mean in zip(sums, shares, strict=True)}
        return {**values, "learning_rate": rate, "gradient_norm": round(norm, 6)}

    def micro_batches(self, step: int) -> list[tuple[LossFunction, list[Any]]]:
        """Return this process's share of a step's global batch, in micro-batches, with their losses."""
        found = []
        for part in self.spending.learned(step, self.method.parts(step)):
            lengths = [len(row) for row in part.rows]
            self.journal.tokens += sum(lengths)
            # sorted by length, so that micro-batches have little padding
            mine = share(lengths, self.rank, self.world)
            # all processes divide their shares where the longest rows of any of them need it:
            # equally many passes, as collective operations demand
            longest = sorted(lengths)[self.world - 1 :: self.world]
            for span in spans(longest, self.stage.micro_batch, self.stage.max_tokens):
                found.append((part.loss, [part.rows[i] for i in mine[span]]))
        return found

    def sample(
        self,
        prompts: Sequence[Prompt],
        temperature: float,
        teacher_mix: float | None,
        teacher_top_k: int = 0,
    ) -> list[Response]:
        """Sample responses from the student, alone or with its teacher, for a method."""
        longest = self.decoding.max_new_tokens
        decoding = Decoding(longest, temperature=temperature, teacher_top_k=teacher_top_k)
        teacher = None if teacher_mix is None else self.method.teacher
        responses = self.draw(prompts, decoding, teacher_mix or 0.0, teacher)
        self.journal.tokens += sum(len(r.tokens) for r in responses)
        draws = bool(teacher_mix or teacher_top_k)
        self.spending.drawn(prompts, responses, None if teacher is None else draws)
        return responses

    def draw(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        teacher_mix: float = 0.0,
        teacher: PreTrainedModel | None = None,
    ) -> list[Response]:
        """Sample one response per prompt, divided among processes; all return the same list."""
        mine = share([len(prompt.tokens) for prompt in prompts], self.rank, self.world)
        uses = self.method.uses()
        keeps = teacher if uses else None
        size = states_size(keeps, len(prompts), decoding.max_new_tokens)
        place = functools.partial(kept, device=self.accelerator.device, size=size)

        def finished(index: int, response: Response) -> None:
            response.teacher_hidden = place(response.teacher_hidden[: None if uses else 0])

        with self.student.whole() as student:
            drawn = draw(
                *(student, [prompts[i] for i in mine], decoding),
                end_token=self.ends,
                vocabulary=self.method.context.vocabulary,
                teacher=teacher,
                teacher_mix=teacher_mix,
                kept=self.decoder,
                finished=finished,
            )
        for response in drawn:  # those of a teacher that read whole texts
            finished(-1, response)
        own = dict(zip(mine, drawn, strict=True))
        if self.world == 1:
            return [own[i] for i in range(len(prompts))]
        return exchanged(self.accelerator, prompts, own, uses, keeps, place)

    def evaluate(self, step: int) -> None:
        """Run a dev evaluation, and keep the weights if they are the best by some measure."""
        began = time.monotonic()
        prompts = dev_prompts(self.dev, self.seed)
        responses = self.draw(prompts, self.decoding)
        values = dev_values(
            *(self.student, self.method.context, self.dev, prompts, responses, self.tokenizer),
            *(self.rouge_tokenizer, self.stage.micro_batch, self.stage.max_tokens),
        )
        # under a budget, the number of steps is not known before the first one
        known = {"steps": self.total} if step or self.share is None else {}
        self.journal.write("dev", step, **known, n=len(self.dev), **values)
        if self.main:
            of = f"/{self.total}" if known else ""
            self.stage.say(
                f"{self.title}: step {step}{of}"
                f"  dev ROUGE-L {values['rougeL']:.1f}  dev loss {values['loss']:.3f}"
                f"  ({self.journal.seconds:.0f} s, of which {time.monotonic() - began:.0f} s dev)"
            )
        self.method.observe(step, values["loss"])
        if step:  # the initial weights are on the curve, but no result of this training
            self.keeper.observe(step, values)

    def end(self) -> None:
        """Write the last line of the log, with devices, counts and times."""
        self.journal.close(
            self.total,
            device=device_name(),
            processes=self.world,
            precision=self.precision,
            host_cpus=os.cpu_count(),
            skipped=self.journal.skipped,
            checkpoints=self.journal.checkpoints,
            checkpoint_seconds=round(self.journal.checkpoint_seconds, 3),
            **self.stage.origin(),
        )
