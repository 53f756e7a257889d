"""A MiniLLM round with the authors' schedule, the baseline of takd's rounds; run alone, it prints its passes.

    python benchmarks/reference_schedule.py [--quick] [--threads N]

`reference_round` does what github.com/microsoft/LMOps does in `minillm/` between two samplings on one GPU, in code of
our own on stock transformers. Per chunk of 16 prompts, padded to 256 + 256 slots (`sampler.py`, `run_sample`):

    decode     student and teacher together (teacher-mixed): all rows until the last is done, all logits kept
    score      teacher (the reward), student (log q of the drawn tokens)
    decode     student alone: a second response of every prompt, for logging
    score      teacher, student on that response, for logging
    score      teacher on the first response again, student on it again (importance weights)
    keep       with every response a (length, vocabulary) mask of suppressed tokens, on the CPU

and then, in each of 4 inner epochs and for each batch of 4 (`losses.py`, `ppo_loss` and `_reg_loss`):

    train      student forward and backward over all 512 slots, and an optimizer step
    score      teacher over the same slots

Three decodes and ten scoring passes for every response. What was left out favours the baseline: the corpus term, the
statistics that are logged at each step, and logits of all prompt positions in the prefill (its transformers computes
them, today's does not). Attention is whatever the models use today, where the original materialises its weights.

Responses get prescribed lengths, because random models never end one: a row is finished at its length, and is decoded
with the others until all are, as in the original.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from harness import aligned, command_line, start
from models import gpt2, random_prompts
from passes import counted
from torch import Tensor
from torch.nn.functional import log_softmax, pad, softmax
from torch.optim import AdamW, Optimizer
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True)
class Settings:
    """Settings of the reference for each GPU, from its scripts for GPT-2."""

    end_token: int
    chunk_size: int = 16
    batch_size: int = 4
    inner_epochs: int = 4
    prompt_slots: int = 256
    response_slots: int = 256
    teacher_mix: float = 0.2
    temperature: float = 1.0
    reward_scale: float = 0.5
    reward_clip: float = 100.0
    discount: float = 0.95
    ratio_clip: float = 0.2
    learning_rate: float = 5e-6
    gradient_clip: float = 1.0


@dataclass
class Responses:
    """Batch of b responses, with P slots for the prompt and R for the response.

    Attributes:
        prompt_bp, prompt_mask_bp: padded on the left.
        response_br, mask_br: padded on the right.
        suppressed_brv: tokens that top-k or top-p ruled out; without either, none.
        log_q_br: log q of the tokens before training.
        reward_br: (log p - log q) / scale.
        weight_br: importance weights.
    """

    prompt_bp: Tensor
    prompt_mask_bp: Tensor
    response_br: Tensor
    mask_br: Tensor
    suppressed_brv: Tensor
    log_q_br: Tensor
    reward_br: Tensor
    weight_br: Tensor

    def rows(self) -> Iterator[tuple[Tensor, ...]]:
        return zip(*(tensor.cpu() for tensor in vars(self).values()), strict=True)

    @classmethod
    def of(cls, rows: Sequence[tuple[Tensor, ...]], device: torch.device) -> "Responses":
        return cls(*(torch.stack(column).to(device) for column in zip(*rows, strict=True)))


def reference_optimizer(student: PreTrainedModel, settings: Settings) -> Optimizer:
    """Make the authors' AdamW, one for all rounds."""
    return AdamW(
        student.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=1e-6
    )


def reference_round(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    response_lengths: Sequence[int],
    *,
    settings: Settings,
    optimizer: Optimizer | None = None,
) -> None:
    """Draw a response to every prompt and train on them for the inner epochs.

    Args:
        student, teacher: on one device, in evaluation mode (the original trains without dropout).
        response_lengths: tokens of each response, at most `settings.response_slots`.
        optimizer: that of `reference_optimizer`, to go on with; a new one unless given.
    """
    optimizer = optimizer or reference_optimizer(student, settings)
    store: list[tuple[Tensor, ...]] = []
    for first in range(0, len(prompts), settings.chunk_size):
        chunk = slice(first, first + settings.chunk_size)
        store += sample(student, teacher, prompts[chunk], response_lengths[chunk], settings).rows()
    for _ in range(settings.inner_epochs):
        order = torch.randperm(len(store)).tolist()
        for first in range(0, len(order) - settings.batch_size + 1, settings.batch_size):
            rows = [store[i] for i in order[first : first + settings.batch_size]]
            batch = Responses.of(rows, student.device)
            loss(student, teacher, batch, settings).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), settings.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()


# Sampling ----------------------------------------------------------------------------------------


@torch.no_grad()
def sample(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    settings: Settings,
) -> Responses:
    """Draw responses to a chunk of prompts, with the reference's repeated scoring."""
    prompt_bp, prompt_mask_bp = _padded_prompts(prompts, student.device, settings)
    slots = torch.arange(settings.response_slots, device=student.device)
    mask_br = (slots < torch.tensor(lengths, device=student.device)[:, None]).long()

    def score(model: PreTrainedModel, response_br: Tensor, suppressed_brv: Tensor) -> Tensor:
        batch = (prompt_bp, prompt_mask_bp, response_br, mask_br)
        return log_probabilities(logits(model, *batch, suppressed_brv, settings), *batch[2:])

    response_br, logits_brv = decode(student, teacher, prompt_bp, prompt_mask_bp, lengths, settings)
    suppressed_brv = logits_brv.isinf()
    teacher_br = reward(teacher, prompt_bp, prompt_mask_bp, response_br, mask_br)
    drawn_br = score(student, response_br, suppressed_brv)

    # the same again, from the student alone and for a logged KL alone
    logged_br, logged_logits_brv = decode(
        student, None, prompt_bp, prompt_mask_bp, lengths, settings
    )
    logged_suppressed_brv = logged_logits_brv.isinf()
    logged_teacher_br = reward(teacher, prompt_bp, prompt_mask_bp, logged_br, mask_br)
    logged_student_br = score(student, logged_br, logged_suppressed_brv)
    log_ratio_br = (logged_teacher_br - logged_student_br) * mask_br
    _ = log_ratio_br.exp() - 1 - log_ratio_br

    teacher_again_br = score(teacher, response_br, suppressed_brv)
    student_again_br = score(student, response_br, suppressed_brv)
    mix = settings.teacher_mix
    mixed_br = ((1 - mix) * drawn_br.exp() + mix * teacher_again_br.exp()).log()
    reward_br = (teacher_br - student_again_br) / settings.reward_scale
    return Responses(
        prompt_bp=prompt_bp,
        prompt_mask_bp=prompt_mask_bp,
        response_br=response_br,
        mask_br=mask_br,
        suppressed_brv=suppressed_brv,
        log_q_br=student_again_br,
        reward_br=reward_br.clamp(-settings.reward_clip, settings.reward_clip),
        weight_br=(student_again_br - mixed_br).exp(),
    )


def _padded_prompts(
    prompts: Sequence[Sequence[int]], device: torch.device, settings: Settings
) -> tuple[Tensor, Tensor]:
    width = settings.prompt_slots
    padded = [[settings.end_token] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    real = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(padded, device=device), torch.tensor(real, device=device)


def decode(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    prompt_bp: Tensor,
    prompt_mask_bp: Tensor,
    lengths: Sequence[int],
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Draw responses from the student, or from its mixture with the teacher.

    Returns:
        The tokens, (b, R), and the student's logits, (b, R, vocabulary), with zeros after the last step.
    """
    models = [student] if teacher is None else [student, teacher]
    caches = [DynamicCache(config=model.config) for model in models]
    lengths_b = torch.tensor(lengths, device=prompt_bp.device)
    ids_bt, mask_bt, new_bt = prompt_bp, prompt_mask_bp, prompt_bp
    all_logits: list[Tensor] = []
    for step in range(max(lengths)):
        position_bt = positions(mask_bt)[:, -new_bt.shape[1] :]
        logits_kbv = [
            model(
                input_ids=new_bt,
                attention_mask=mask_bt,
                position_ids=position_bt,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            / settings.temperature
            for model, cache in zip(models, caches, strict=True)
        ]
        all_logits.append(logits_kbv[0])
        probability_bv = softmax(logits_kbv[0].float(), -1)
        if teacher is not None:
            teacher_bv = softmax(logits_kbv[1].float(), -1)
            mix = settings.teacher_mix
            probability_bv = (1 - mix) * probability_bv + mix * teacher_bv
        next_b = torch.multinomial(probability_bv, 1)[:, 0]
        # rows that are finished stay in the batch and get padding
        next_b = torch.where(step < lengths_b, next_b, settings.end_token)
        new_bt = next_b[:, None]
        ids_bt = torch.cat([ids_bt, new_bt], 1)
        mask_bt = torch.cat([mask_bt, torch.ones_like(new_bt)], 1)
    missing = settings.response_slots - len(all_logits)
    response_br = pad(ids_bt[:, prompt_bp.shape[1] :], (0, missing), value=settings.end_token)
    return response_br, pad(torch.stack(all_logits, 1), (0, 0, 0, missing))


def positions(mask_bt: Tensor) -> Tensor:
    """Count positions over real tokens."""
    return (mask_bt.cumsum(-1) - 1).masked_fill(mask_bt == 0, 0)


# Scoring -----------------------------------------------------------------------------------------


def forward(
    model: PreTrainedModel,
    prompt_bp: Tensor,
    prompt_mask_bp: Tensor,
    response_br: Tensor,
    mask_br: Tensor,
) -> Tensor:
    """Compute the logits of all slots, (b, P + R, vocabulary)."""
    mask_bt = torch.cat([prompt_mask_bp, mask_br], 1)
    return model(
        input_ids=torch.cat([prompt_bp, response_br], 1),
        attention_mask=mask_bt,
        position_ids=positions(mask_bt),
        use_cache=False,
    ).logits


def logits(
    model: PreTrainedModel,
    prompt_bp: Tensor,
    prompt_mask_bp: Tensor,
    response_br: Tensor,
    mask_br: Tensor,
    suppressed_brv: Tensor,
    settings: Settings,
) -> Tensor:
    """Compute the logits that predict the response, (b, R, vocabulary), with -inf at suppressed tokens."""
    all_btv = forward(model, prompt_bp, prompt_mask_bp, response_br, mask_br)
    predicting_brv = (all_btv / settings.temperature)[:, prompt_bp.shape[1] - 1 : -1]
    return predicting_brv.masked_fill(suppressed_brv, -torch.inf)


def log_probabilities(logits_brv: Tensor, response_br: Tensor, mask_br: Tensor) -> Tensor:
    """Compute the log-probability of each response token, (b, R), zero at padding."""
    log_brv = log_softmax(logits_brv, -1)
    return log_brv.gather(-1, response_br[..., None])[..., 0].masked_fill(mask_br == 0, 0.0)


def reward(
    teacher: PreTrainedModel,
    prompt_bp: Tensor,
    prompt_mask_bp: Tensor,
    response_br: Tensor,
    mask_br: Tensor,
) -> Tensor:
    """Compute log p of each response token, (b, R), as the reward model does: centred logits, then logsumexp."""
    all_btv = forward(teacher, prompt_bp, prompt_mask_bp, response_br, mask_br)
    all_btv = all_btv - all_btv.mean(-1, keepdim=True)
    all_btv = all_btv * torch.cat([prompt_mask_bp, mask_br], 1)[..., None]
    predicting_brv = all_btv[:, prompt_bp.shape[1] - 1 : -1]
    chosen_br = predicting_brv.gather(-1, response_br[..., None])[..., 0]
    return (chosen_br - predicting_brv.logsumexp(-1)) * mask_br


# Training ----------------------------------------------------------------------------------------


def loss(
    student: PreTrainedModel, teacher: PreTrainedModel, batch: Responses, settings: Settings
) -> Tensor:
    """Compute policy loss and single-step KL of a batch, on whole (b, R, vocabulary) tensors."""
    rows = (batch.prompt_bp, batch.prompt_mask_bp, batch.response_br, batch.mask_br)
    mask_br, count = batch.mask_br, batch.mask_br.sum()
    student_brv = logits(student, *rows, batch.suppressed_brv, settings)
    log_q_br = log_probabilities(student_brv, batch.response_br, mask_br)
    advantage_br = advantages(batch.reward_br, mask_br, settings.discount)
    ratio_br = ((log_q_br - batch.log_q_br) * mask_br).exp() * batch.weight_br
    clipped_br = ratio_br.clamp(1 - settings.ratio_clip, 1 + settings.ratio_clip)
    policy_br = torch.maximum(-advantage_br * ratio_br, -advantage_br * clipped_br)

    with torch.no_grad():
        teacher_brv = logits(teacher, *rows, batch.suppressed_brv, settings)
    cross_br = cross_entropy(student_brv, teacher_brv, batch.suppressed_brv)
    entropy_br = cross_entropy(student_brv, student_brv, batch.suppressed_brv)
    return ((policy_br + cross_br - entropy_br) * mask_br).sum() / count


def cross_entropy(student_brv: Tensor, other_brv: Tensor, suppressed_brv: Tensor) -> Tensor:
    """Compute -Σ_v q log other, (b, R)."""
    absent_brv = student_brv.isinf() | suppressed_brv
    if other_brv is not student_brv:
        absent_brv |= other_brv.isinf()
    log_brv = log_softmax(other_brv, -1, dtype=torch.float32).masked_fill(absent_brv, 0)
    return -(softmax(student_brv, -1, dtype=torch.float32) * log_brv).sum(-1)


def advantages(reward_br: Tensor, mask_br: Tensor, discount: float) -> Tensor:
    """Compute discounted returns over the remaining tokens, whitened over all slots, (b, R)."""
    total_b = torch.zeros_like(reward_br[:, 0])
    returns: list[Tensor] = []
    for reward_b in reversed(reward_br.unbind(1)):
        total_b = reward_b + discount * total_b
        returns.append(total_b)
    left_br = mask_br.flip(1).cumsum(1).flip(1).clamp(min=1)
    return_br = torch.stack(returns[::-1], 1) / left_br
    variance, mean = torch.var_mean(return_br, correction=0)
    return (return_br - mean) * torch.rsqrt(variance + 1e-8)


# On its own --------------------------------------------------------------------------------------


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    device = start(arguments)
    vocabulary = 512 if arguments.quick else 50257
    slots = 32 if arguments.quick else 256
    settings = Settings(end_token=vocabulary - 1, prompt_slots=slots, response_slots=slots)
    student = gpt2(2, 128, seed=1, vocabulary=vocabulary, device=device)
    teacher = gpt2(4, 128, seed=2, vocabulary=vocabulary, device=device).requires_grad_(False)
    count = settings.chunk_size
    prompts = random_prompts(count, slots // 4, slots, vocabulary=vocabulary)
    lengths = [1 + (slots - 1) * i // (count - 1) for i in range(count)]
    before = time.perf_counter()
    with counted({"student": student, "teacher": teacher}) as counts:
        reference_round(student, teacher, prompts, lengths, settings=settings)
    print(f"{count} responses, {sum(lengths):,} tokens, {time.perf_counter() - before:.1f} s")
    print("\n".join(aligned(counts.table())))


if __name__ == "__main__":
    main()
