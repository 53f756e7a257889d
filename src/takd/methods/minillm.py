"""MiniLLM: reverse KL on the student's own responses (Gu et al., arXiv 2306.08543).

The gradient of KL(q ‖ p) over whole responses splits (section 2.2) into a single-step term, exact over the
vocabulary at the visited states, and a long term, a policy gradient whose reward is
r_t = log p(y_t) - log q(y_t). Responses come from p̃ = α p + (1 - α) q (teacher-mixed sampling) and are weighted by
w_t = q / p̃; the reward to go is divided by the tokens left (length normalisation). As in the authors' code a round
of responses is drawn, passed over `inner_epochs` times with a clipped ratio ρ_t = q / q_drawn, and drawn anew:

    L = (1/N) Σ_t [ max(-A_t ρ_t w_t, -A_t clip(ρ_t w_t, 1 - ε, 1 + ε)) + KL(q(·|y_<t) ‖ p(·|y_<t)) ] + L_LM

Where the authors' code departs from the paper (discount, r_t inside its own return, scale, whitening, clipping),
the settings' defaults follow the code; docs/methods.md says which value gives the paper's equations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from takd.divergences import cross_entropy, in_chunks, reverse_kl
from takd.methods.base import (
    Example,
    LossFunction,
    Method,
    Part,
    ResponseBatch,
    Sampler,
    Statistics,
    batch_indices,
    examples,
    logits_of,
    permutation,
    response_tokens,
    teacher_logits_of,
)
from takd.methods.losses import label_and_teacher_loss
from takd.sampling import Prompt


@dataclass(frozen=True)
class Rollout(Example):
    """A drawn response with log q, log p and log p̃ of its tokens when it was drawn, (length,) each."""

    student: Tensor
    teacher: Tensor
    mixed: Tensor
    advantage: Tensor = field(default_factory=lambda: torch.zeros(0))


def rewards(student_t: Tensor, teacher_t: Tensor, scale: float, limit: float) -> Tensor:
    """r_t = (log p - log q) / scale, cut to ±limit, (length,)."""
    return ((teacher_t - student_t) / scale).clamp(-limit, limit)


def returns(
    rewards_t: Tensor, discount: float, include_current: bool, length_normalisation: bool
) -> Tensor:
    """R_t = Σ_k γ^(k-t) r_k for one response, (length,).

    Args:
        include_current: sum from k = t (the authors' code); else from k = t + 1 with discounts starting at 1,
            which is the paper's R_{t+1}, since the single-step term covers t.
        length_normalisation: divide by the number of tokens summed (at least 1).
    """
    length = rewards_t.shape[0]
    result_t = torch.zeros_like(rewards_t)
    total = rewards_t.new_zeros(())
    for t in reversed(range(length)):
        if include_current:
            total = rewards_t[t] + discount * total
            result_t[t] = total
        else:
            result_t[t] = total
            total = rewards_t[t] + discount * total
    if length_normalisation:
        first = 0 if include_current else 1
        left_t = torch.arange(length, 0, -1, dtype=result_t.dtype) - first
        result_t = result_t / left_t.clamp(min=1)
    return result_t


def whiten(values_n: Tensor, slots: int) -> Tensor:
    """Subtract the mean and divide by the standard deviation over `slots` values, (n,).

    Args:
        slots: number of values that the statistics count; those beyond n are zeros. The authors' code whitens
            over padded responses, which shifts and shrinks every advantage; n itself whitens over tokens.
    """
    mean = values_n.sum() / slots
    squares = ((values_n - mean) ** 2).sum() + (slots - values_n.numel()) * mean**2
    return (values_n - mean) * torch.rsqrt(squares / slots + 1e-8)


def importance_weights(student_t: Tensor, mixed_t: Tensor, kind: str) -> Tensor:
    """w_t of one response, (length,): q / p̃ at the token, its product up to the token, or 1."""
    if kind == "none":
        return torch.ones_like(student_t)
    log_t = student_t - mixed_t
    return (log_t if kind == "token" else log_t.cumsum(0)).exp()


def policy_loss(
    log_ratio_n: Tensor,
    weight_n: Tensor,
    advantage_n: Tensor,
    clip: float | None,
    clip_weighted_ratio: bool,
) -> Tensor:
    """Clipped policy-gradient loss of each token, (n,).

    Args:
        log_ratio_n: log q - log q_drawn; the gradient flows through it alone.
        clip: ε; None for no clipping.
        clip_weighted_ratio: clip ρ w, as the authors' code does; else clip ρ and multiply by w then.
    """
    ratio_n = log_ratio_n.exp()
    plain_n = -advantage_n * ratio_n * weight_n
    if clip is None:
        return plain_n
    if clip_weighted_ratio:
        clipped_n = (ratio_n * weight_n).clamp(1 - clip, 1 + clip)
    else:
        clipped_n = ratio_n.clamp(1 - clip, 1 + clip) * weight_n
    return torch.maximum(plain_n, -advantage_n * clipped_n)


class MiniLLM(Method):
    """Rounds of rollouts; each step takes a part of the round."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        s = self.settings
        self.steps_per_epoch_of_round = s["rollouts_per_round"] // s["batch_size"]
        self.steps_per_round = self.steps_per_epoch_of_round * s["inner_epochs"]
        self.round = -1
        self.rollouts: list[Rollout] = []

    @property
    def reads_corpus(self) -> bool:
        """Whether plain text is part of each step."""
        return self.context.corpus is not None and self.settings["lm_weight"] > 0

    def steps_per_epoch(self) -> float:
        rounds = len(self.context.train) / self.settings["rollouts_per_round"]
        return rounds * (self.steps_per_round or 1)

    def part_sizes(self) -> list[int]:
        size = self.settings["batch_size"]
        return [size, *([self.settings["lm_batch_size"] or size] if self.reads_corpus else [])]

    def begin_round(self, index: int, sample: Sampler) -> None:
        train, seed, s = self.context.train, self.context.seed, self.settings
        rows = examples(train, batch_indices(len(train), s["rollouts_per_round"], index, seed))
        # a prompt that comes again in a later round, or twice in this one, gets other noise
        prompts = [
            Prompt(row.prompt, row.id, (seed * 1_000_003 + index) * 8191 + line)
            for line, row in enumerate(rows)
        ]
        drawn = sample(prompts, s["teacher_mix"], s["temperature"])
        self.round = index
        self.rollouts = [
            Rollout(row.id, row.prompt, response.tokens.tolist(), response.student, response.teacher, response.mixed)
            for row, response in zip(rows, drawn, strict=True)
        ]  # fmt: skip

    def parts(self, step: int) -> list[Part]:
        assert self.steps_per_round and step // self.steps_per_round == self.round
        size = self.settings["batch_size"]
        inner, offset = divmod(step % self.steps_per_round, self.steps_per_epoch_of_round)
        order = permutation(len(self.rollouts), self.context.seed, self.round, inner).tolist()
        chosen = [self.rollouts[i] for i in order[offset * size : (offset + 1) * size]]
        rows = self.with_advantages(chosen)
        parts = [Part(rows, self.loss(response_tokens(rows)))]
        if self.reads_corpus:
            parts.append(self.language_modelling(step))
        return parts

    def with_advantages(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Returns of a global batch, whitened over it."""
        s = self.settings
        returns_ = [
            returns(
                rewards(row.student, row.teacher, s["reward_scale"], s["reward_clip"]),
                s["discount"],
                s["return_includes_current"],
                s["length_normalisation"],
            )
            for row in rollouts
        ]
        flat_n = torch.cat(returns_)
        if s["whitening"] != "none":
            padded = len(rollouts) * self.context.max_new_tokens
            flat_n = whiten(flat_n, padded if s["whitening"] == "slots" else flat_n.numel())
        pieces = flat_n.split([len(r) for r in returns_])
        return [
            Rollout(r.id, r.prompt, r.response, r.student, r.teacher, r.mixed, advantage)
            for r, advantage in zip(rollouts, pieces, strict=True)
        ]

    def loss(self, tokens: int) -> LossFunction:
        """Policy and single-step loss of a micro-batch as its share of the mean over `tokens`."""
        s, vocabulary = self.settings, self.context.vocabulary

        def loss(student: PreTrainedModel, rows: Sequence[Rollout]) -> tuple[Tensor, Statistics]:
            batch = ResponseBatch.of(rows, student.device)
            student_logits = logits_of(student, vocabulary)
            teacher_logits = teacher_logits_of(self.teacher, vocabulary)

            def tokenwise(
                student_h: Tensor, teacher_h: Tensor, target: Tensor
            ) -> tuple[Tensor, ...]:
                q_nv = student_logits(student_h) / s["temperature"]
                p_nv = teacher_logits(teacher_h) / s["temperature"]
                return -cross_entropy(q_nv, target), reverse_kl(q_nv, p_nv)

            log_q_n, divergence_n = in_chunks(
                tokenwise,
                batch.hidden(student),
                batch.teacher_hidden(self.teacher),
                batch.targets_n,
            )

            def column(values: list[Tensor]) -> Tensor:
                return torch.cat(values).to(student.device)

            drawn_n = column([row.student for row in rows])
            weight_n = column(
                [importance_weights(row.student, row.mixed, s["importance"]) for row in rows]
            )
            policy_n = policy_loss(
                log_q_n - drawn_n,
                weight_n,
                column([row.advantage for row in rows]),
                s["ratio_clip"],
                s["clip_weighted_ratio"],
            )
            single_n = divergence_n * weight_n if s["single_step_importance"] else divergence_n
            policy, single = policy_n.sum() / tokens, single_n.sum() / tokens
            reward_n = column([row.teacher for row in rows]) - drawn_n
            return policy + s["single_step_weight"] * single, {
                "policy_loss": policy.detach(),
                "single_step_kl": divergence_n.detach().sum() / tokens,
                "reward": reward_n.sum() / tokens,
                "importance_weight": weight_n.sum() / tokens,
                "ratio": (log_q_n - drawn_n).detach().exp().sum() / tokens,
            }

        return loss

    def language_modelling(self, step: int) -> Part:
        """Plain text as a further part of the batch: keeps what the student knows (section 2.3)."""
        s, corpus = self.settings, self.context.corpus
        assert corpus is not None
        size = s["lm_batch_size"] or s["batch_size"]
        chosen = corpus[batch_indices(len(corpus), size, step, self.context.seed, 1)]["input_ids"]
        rows = [Example(-1, [], block) for block in chosen]
        tokens = sum(len(block) - 1 for block in chosen)
        share = s["lm_teacher_share"]
        plain = label_and_teacher_loss(self.teacher, share, self.context.vocabulary, tokens)

        def loss(student: PreTrainedModel, rows: Sequence[Example]) -> tuple[Tensor, Statistics]:
            value, _ = plain(student, rows)
            return s["lm_weight"] * value, {"lm_loss": value.detach()}

        return Part(rows, loss)

    def state(self) -> dict[str, Tensor]:
        """The round's rollouts: the weights that drew them are gone in the middle of a round."""
        state = {"round": torch.tensor([self.round])}
        for line, row in enumerate(self.rollouts):
            state[f"{line}.id"] = torch.tensor([row.id])
            state[f"{line}.prompt"] = torch.tensor(row.prompt)
            state[f"{line}.response"] = torch.tensor(row.response)
            state[f"{line}.log"] = torch.stack([row.student, row.teacher, row.mixed])
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        self.round = int(state["round"])
        count = sum(name.endswith(".id") for name in state)
        self.rollouts = [
            Rollout(
                int(state[f"{line}.id"]),
                state[f"{line}.prompt"].tolist(),
                state[f"{line}.response"].tolist(),
                *(row.clone() for row in state[f"{line}.log"]),
            )
            for line in range(count)
        ]


METHOD = MiniLLM
