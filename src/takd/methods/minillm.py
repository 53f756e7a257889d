"""MiniLLM: reverse KL on the student's own responses (Gu et al., arXiv 2306.08543).

The gradient of KL(q ‖ p) over whole responses splits (section 2.2) into two terms: a single-step
term, exact over the vocabulary at the visited states, and a long term, a policy gradient with the
reward r_t = log p(y_t) - log q(y_t). Responses are sampled from p̃ = α p + (1 - α) q (teacher-mixed
sampling) and weighted by w_t = q / p̃. The reward to go is divided by the number of remaining
tokens (length normalisation). As in the authors' code, a round of responses is sampled, used for
`inner_epochs` passes with a clipped ratio ρ_t = q / q_drawn, and then replaced:

    L = (1/N) Σ_t [ max(-A_t ρ_t w_t, -A_t clip(ρ_t w_t, 1 - ε, 1 + ε)) + KL(q(·|y_<t) ‖ p(·|y_<t)) ] + L_LM

Where the authors' code departs from the paper (discount, r_t inside its own return, scale,
whitening, clipping), the default settings follow the code. `objective: paper` selects the paper's
equations, and `objective: exact` the exact gradient of KL(q ‖ p) (docs/methods.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from takd.losses.batch import moved
from takd.losses.chunked import sum_over_tokens
from takd.losses.divergences import forward_kl, log_likelihood, reverse_kl
from takd.losses.teacher_logits import KeptTeacher, kept, teacher_view
from takd.methods.base import (
    Example,
    LossFunction,
    Method,
    Part,
    Sampler,
    Statistics,
    batch_indices,
    examples,
    laid_out,
    packed,
    permutation,
    prompts_of,
    response_tokens,
    unpacked,
)
from takd.methods.policy_gradient import (
    importance_weights,
    policy_loss,
    returns,
    rewards,
    state_weights,
    whiten,
)
from takd.methods.schedule import steps_per_round
from takd.methods.token_losses import label_and_divergence_loss
from takd.models.logits import tempered


@dataclass(frozen=True)
class Rollout(Example):
    """A sampled response, with the values of each token that were recorded while sampling.

    Attributes:
        student, teacher, mixed: log q, log p and log p̃ of the tokens, (length,) each.
        teacher_hidden: the teacher's last hidden states that predict them, (length, hidden size).
        advantage: advantage A_t of each token, (length,).
    """

    student: Tensor
    teacher: Tensor
    mixed: Tensor
    teacher_hidden: Tensor
    advantage: Tensor = field(default_factory=lambda: torch.zeros(0))


KEPT = ("student", "teacher", "mixed", "teacher_hidden")


class MiniLLM(Method):
    """MiniLLM: rounds of on-policy rollouts, of which each step uses a part."""

    decays_all = True  # as in the authors' code

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.steps_per_round = steps_per_round(self.settings)
        self.round = -1
        self.rollouts: list[Rollout] = []

    @property
    def reads_corpus(self) -> bool:
        """Whether each step includes plain text."""
        return self.context.corpus is not None and self.settings["lm_weight"] > 0

    def part_sizes(self) -> list[int]:
        size = self.settings["batch_size"]
        return [size, *([self.settings["lm_batch_size"] or size] if self.reads_corpus else [])]

    def prepare(self, step: int, sample: Sampler) -> None:
        """Sample the responses of a round before its first step."""
        index = step // self.steps_per_round
        # sampled at an earlier step of the round, or restored from a checkpoint
        if index == self.round:
            return
        train, seed, s = self.context.train, self.context.seed, self.settings
        rows = examples(train, batch_indices(len(train), s["rollouts_per_round"], index, seed))
        rows = self.asked(rows, index)
        self.round = index
        drawn = sample(prompts_of(rows, seed, index), s["temperature"], s["teacher_mix"])
        self.rollouts = [
            Rollout(
                *(row.id, row.index, row.prompt, r.tokens.tolist()),
                *(r.student, r.teacher, r.mixed, r.teacher_hidden),
            )
            for row, r in zip(rows, drawn, strict=True)
        ]

    def uses(self) -> list[list[int]]:
        s = self.settings
        size, count = s["batch_size"], s["rollouts_per_round"]
        # each pass over the round has its own order
        orders = (
            permutation(count, self.context.seed, self.round, inner).tolist()
            for inner in range(s["inner_epochs"])
        )
        whole = range(0, count - size + 1, size)
        return [order[first : first + size] for order in orders for first in whole]

    def parts(self, step: int) -> list[Part]:
        assert step // self.steps_per_round == self.round
        chosen = [self.rollouts[i] for i in self.uses()[step % self.steps_per_round]]
        # per step and for the global batch, since whitening depends on all of its rows
        rows = self.with_advantages(chosen)
        tokens = response_tokens(rows)
        outputs = "kept" if self.settings["single_step_weight"] else "none"
        parts = [Part(rows, self.loss(tokens, self.divisor(rows)), outputs)]
        if self.reads_corpus:
            parts.append(self.language_modelling(step))
        return parts

    def divisor(self, rows: Sequence[Rollout]) -> int:
        """Return the divisor of a global batch's sum: its response tokens or its responses."""
        return len(rows) if self.settings["mean_over"] == "responses" else response_tokens(rows)

    def weighted_rewards(self, rows: Sequence[Rollout]) -> Tensor:
        """Compute the rewards r_t of responses, one after the other, (n,).

        With `importance: per_decision` they are r_t Π_{k≤t} q / p̃ (Precup et al., 2000).
        """
        s = self.settings
        student_n, teacher_n = _joined(rows, "student"), _joined(rows, "teacher")
        reward_n = rewards(student_n, teacher_n, s["reward_scale"], s["reward_clip"])
        if s["importance"] == "per_decision":
            return reward_n * _weights(rows, "prefix")
        return reward_n

    def with_advantages(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Return rollouts with their advantages: returns, whitened over the global batch.

        With `advantage: constant` they are 1, whatever the teacher says.
        """
        s = self.settings
        if s["advantage"] == "constant":
            return [replace(row, advantage=torch.ones(len(row.response))) for row in rollouts]
        lengths = [len(row.response) for row in rollouts]
        lengths_b = torch.tensor(lengths)
        rewards_bt = pad_sequence(self.weighted_rewards(rollouts).split(lengths), batch_first=True)
        how = s["discount"], s["return_includes_current"], s["length_normalisation"]
        returns_bt = returns(rewards_bt, lengths_b, *how)
        flat_n = returns_bt[torch.arange(max(lengths)) < lengths_b[:, None]]
        if s["whitening"] != "none":
            # "slots": over responses padded to the maximum length, as in the authors' code
            padded = len(rollouts) * self.context.max_new_tokens
            flat_n = whiten(flat_n, padded if s["whitening"] == "slots" else flat_n.numel())
        pairs = zip(rollouts, flat_n.split(lengths), strict=True)
        return [replace(row, advantage=advantage) for row, advantage in pairs]

    def loss(self, tokens: int, divisor: int | None = None) -> LossFunction:
        """Return the policy and single-step loss of a micro-batch, as a share of the global loss.

        Args:
            tokens: response tokens of the global batch, over which statistics are averaged.
            divisor: divisor of the loss's sum over tokens; None is `tokens`.
        """
        s, vocabulary = self.settings, self.context.vocabulary
        teacher = KeptTeacher(self.teacher, vocabulary, s["temperature"])

        def of_tokens(logits_mv: Tensor, columns: dict[str, Tensor]) -> tuple[Tensor, Statistics]:
            log_q_mv = tempered(logits_mv, s["temperature"]).log_softmax(-1)
            log_q_m = log_likelihood(log_q_mv, columns["target"])
            # relative to the policy that sampled the round, some steps ago
            log_ratio_m = log_q_m - columns["drawn"]
            clip = s["ratio_clip"], s["clip_weighted_ratio"]
            policy_m = policy_loss(log_ratio_m, columns["weight"], columns["advantage"], *clip)
            loss_m, statistics = policy_m, {"policy_loss": policy_m, "ratio": log_ratio_m.exp()}
            if s["single_step_weight"]:
                divergence_m = reverse_kl(*teacher.pair(log_q_mv, columns))
                statistics["single_step_kl"] = divergence_m
                single_m = divergence_m
                if s["single_step_importance"]:
                    single_m = divergence_m * columns["state_weight"]
                loss_m = policy_m + s["single_step_weight"] * single_m
            return loss_m, statistics

        def loss(student: PreTrainedModel, rows: Sequence[Rollout]) -> tuple[Tensor, Statistics]:
            layout = laid_out(rows, student.device)
            columns = {**self.columns(rows, student.device), "target": layout.targets_n}
            if s["single_step_weight"]:
                columns |= teacher.columns(rows, layout)
            total, sums = sum_over_tokens(
                *(of_tokens, student, layout.hidden(student), columns, vocabulary),
                prepared=teacher.prepared,
            )
            sums["reward"] = columns["reward"].sum()
            sums["importance_weight"] = columns["state_weight"].sum()
            means = {name: value / tokens for name, value in sums.items()}
            return total / (divisor or tokens), means

        return loss

    def columns(self, rows: Sequence[Rollout], device: torch.device) -> dict[str, Tensor]:
        """Return what was recorded of each token, and what follows from it, (n,) each."""
        kind = self.settings["importance"]
        drawn_n = _joined(rows, "student")
        # with per_decision, the rewards already include the importance weights
        weight_n = _weights(rows, "none" if kind == "per_decision" else kind)
        columns = {
            "drawn": drawn_n,
            "weight": weight_n,
            # weight of the single-step term if `single_step_importance`: the exact weight of the
            # state with per_decision, else w_t as in the policy term
            "state_weight": weight_n if kind != "per_decision" else _weights(rows, "state"),
            "advantage": _joined(rows, "advantage"),
            "reward": _joined(rows, "teacher") - drawn_n,
        }
        return dict(zip(columns, moved(list(columns.values()), device), strict=True))

    def language_modelling(self, step: int) -> Part:
        """Return the plain-text part of a batch, which preserves known abilities (section 2.3)."""
        s, corpus = self.settings, self.context.corpus
        assert corpus is not None
        size = s["lm_batch_size"] or s["batch_size"]
        # the key 1 gives the corpus another order than the prompts
        indices = batch_indices(len(corpus), size, step, self.context.seed, 1)
        blocks = corpus[indices]["input_ids"]
        # without a prompt, the first token of a block is not predicted
        rows = [Example(-1, i, [], block) for i, block in zip(indices, blocks, strict=True)]
        tokens = sum(len(block) - 1 for block in blocks)
        vocabulary, stored = self.context.vocabulary, self.context.stored.get("corpus")
        view = teacher_view(s["lm_teacher_outputs"], self.teacher, vocabulary, stored)
        share = s["lm_teacher_share"]
        plain = label_and_divergence_loss(view, forward_kl, share, vocabulary, tokens)

        def loss(student: PreTrainedModel, rows: Sequence[Example]) -> tuple[Tensor, Statistics]:
            value, _ = plain(student, rows)
            return s["lm_weight"] * value, {"lm_loss": value.detach()}

        return Part(rows, loss, s["lm_teacher_outputs"])

    def state(self) -> dict[str, Tensor]:
        """Return the rollouts of the round, since the weights that sampled them no longer exist."""
        state = {"round": torch.tensor([self.round])}
        if self.rollouts:
            rows = self.rollouts
            state |= {**packed(rows), **{name: _joined(rows, name).cpu() for name in KEPT}}
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        self.round = int(state["round"])
        if "rows" not in state:
            return
        rows = unpacked(state)
        lengths = [len(row.response) for row in rows]
        device, size = self.teacher.device, state["teacher_hidden"].nbytes
        *scores, hidden = (state[name].split(lengths) for name in KEPT)
        places = [kept(hidden_th, device, size) for hidden_th in hidden]
        self.rollouts = [
            Rollout(row.id, row.index, row.prompt, row.response, *tensors)
            for row, *tensors in zip(rows, *scores, places, strict=True)
        ]


def _joined(rows: Sequence[Rollout], name: str) -> Tensor:
    """A value of the tokens of all responses, one after the other, (n, ...)."""
    return torch.cat([getattr(row, name) for row in rows])


def _weights(rows: Sequence[Rollout], kind: str) -> Tensor:
    """Importance weights of the tokens of all responses, or those of their states, (n,)."""
    if kind in ("token", "none"):  # which do not depend on other tokens
        return importance_weights(_joined(rows, "student"), _joined(rows, "mixed"), kind)
    if kind == "state":
        return torch.cat([state_weights(row.student, row.mixed) for row in rows])
    return torch.cat([importance_weights(row.student, row.mixed, kind) for row in rows])


METHOD = MiniLLM
