"""MiniLLM on one page: distil a teacher into a student on the student's own responses, in plain PyTorch.

    python examples/minillm_on_one_page.py            # two minutes on one CPU core

It shows the method of Gu et al., *MiniLLM* (arXiv 2306.08543), with the settings of the authors' code, and nothing
else: no batches that are refilled, no cache, no checkpoints, no half precision, no second process. The library beside
it does the same, faster; `tests/test_one_page.py` holds the two together. Equations and sections are the paper's. Names
of tensors end in their axes: b rows, t tokens, v vocabulary, n tokens of all rows together.
"""

import copy
import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GPT2Config, GPT2LMHeadModel

# 1. Data: small tasks on lists of letters. A word is a token, and a text ends with the end token.

LETTERS = list("abcdefghijklmnop")
TASKS = {
    "first": lambda items: items[:1],
    "last": lambda items: items[-1:],
    "reverse": lambda items: items[::-1],
    "sort": sorted,
    "without the first": lambda items: items[1:],
}
WORDS = ["<end>", "=", *LETTERS, *sorted({word for task in TASKS for word in task.split()})]
END = 0


@dataclass(frozen=True)
class Row:
    """A prompt and its reference, as token ids; the key selects the row's sampling noise."""

    key: int
    prompt: list[int]
    reference: list[int]


def rows(count: int, seed: int) -> list[Row]:
    """Generate rows such as `reverse b a d =` with the reference `d a b`."""
    choice, found = random.Random(seed), []
    for key in range(count):
        task, items = choice.choice(list(TASKS)), choice.sample(LETTERS, choice.randint(2, 5))
        prompt, answer = [*task.split(), *items, "="], TASKS[task](items)
        found.append(Row(key, [*map(WORDS.index, prompt)], [*map(WORDS.index, answer), END]))
    return found


# 2. Models: GPT-2 of two sizes, from random weights.


def gpt2(layers: int, width: int, seed: int) -> GPT2LMHeadModel:
    """Make a small GPT-2 without dropout."""
    torch.manual_seed(seed)
    shape = {"n_layer": layers, "n_embd": width, "n_head": 4, "n_positions": 64}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = {"bos_token_id": END, "eos_token_id": END}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), **shape, **drop, **ends)).eval()


def log_probabilities(model: GPT2LMHeadModel, texts: list[tuple[list[int], list[int]]]) -> Tensor:
    """Compute log q(· | prompt, y_<t) for each token y_t of all responses, (n, v).

    Texts are padded on the right, which causal attention never reaches from the left.
    """
    whole = [torch.tensor([*prompt, *response]) for prompt, response in texts]
    log_btv = model(pad_sequence(whole, batch_first=True)).logits.log_softmax(-1)
    # position i predicts token i + 1
    spans = [(len(p) - 1, len(p) + len(r) - 1) for p, r in texts]
    return torch.cat([log_btv[b, start:end] for b, (start, end) in enumerate(spans)])


def of_tokens(log_nv: Tensor, responses: list[list[int]]) -> Tensor:
    """Pick the log-probabilities of the tokens themselves, (n,)."""
    targets_n = torch.tensor([token for response in responses for token in response])
    return log_nv.gather(-1, targets_n[:, None])[:, 0]


# 3. Supervised fine-tuning: L = -(1/N) Σ log q(y_t), over the tokens of the references.


def fine_tune(model: GPT2LMHeadModel, data: list[Row], steps: int, size: int, rate: float) -> None:
    """Train a model on references, in place."""
    optimizer, choice = torch.optim.AdamW(model.parameters(), lr=rate), random.Random(1)
    for _ in range(steps):
        batch = choice.sample(data, size)
        log_nv = log_probabilities(model, [(row.prompt, row.reference) for row in batch])
        loss = -of_tokens(log_nv, [row.reference for row in batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# 4. Teacher-mixed sampling (section 2.2): tokens come from p̃ = α p + (1 - α) q, with teacher p and student q. The
# argmax of log p̃ plus Gumbel noise is a sample of p̃. The noise is a function of (seed, key of the prompt, position,
# token), so a prompt gets the same response whatever else is in its batch.

WORD = 0xFFFFFFFF  # 32 bits


def mix(x: Tensor | int) -> Tensor | int:
    """Mix the bits of 32-bit words: the finaliser of MurmurHash3."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B & WORD
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & WORD
    return x ^ (x >> 16)


def gumbel_noise(seed: int, key: int, position: int, vocabulary: int) -> Tensor:
    """Compute standard Gumbel noise, (v,), as a pure function of its arguments."""
    first, second = 0x243F6A88, 0x13198A2E
    for word in (seed & WORD, key & WORD, position):
        first = mix((first ^ word) + 0x9E3779B9 & WORD)
        second = mix((second + word) * 0x27D4EB2F & WORD)
    tokens_v = mix(torch.arange(1, vocabulary + 1))
    bits_v = mix((tokens_v ^ first) + second & WORD) & 0x7FFFFFFF
    minus_v = ((bits_v.float() + 0.5) * -(2.0**-31)).clamp(min=2.0**-24 - 1)  # -u, with u in (0, 1)
    return -(-minus_v.log1p()).log()


@dataclass
class Rollout:
    """A sampled response, with log q, log p and log p̃ of its tokens at sampling, (t,) each."""

    row: Row
    response: list[int]
    log_q: Tensor
    log_p: Tensor
    log_mix: Tensor


@torch.no_grad()
def sample(
    student: GPT2LMHeadModel,
    teacher: GPT2LMHeadModel | None,
    batch: list[Row],
    seeds: list[int],
    alpha: float,
    longest: int,
) -> list[Rollout]:
    """Sample one response per prompt. Each step reads the whole texts anew, which a cache would save."""
    found = [Rollout(row, [], *(torch.zeros(0) for _ in range(3))) for row in batch]
    for position in range(longest):
        # a text whose response has not ended is continued by the prediction at its last token
        going = [i for i, r in enumerate(found) if r.response[-1:] != [END]]
        if not going:
            break
        texts = [([*found[i].row.prompt, *found[i].response], [END]) for i in going]
        log_q = log_probabilities(student, texts)
        log_p = log_probabilities(teacher, texts) if teacher else log_q
        log_mix = (
            torch.logaddexp(log_p + math.log(alpha), log_q + math.log1p(-alpha)) if alpha else log_q
        )
        for line, i in enumerate(going):
            noise_v = gumbel_noise(seeds[i], batch[i].key, position, len(WORDS))
            token = int((log_mix[line] + noise_v).argmax())
            found[i].response.append(token)
            for name, log in (("log_q", log_q), ("log_p", log_p), ("log_mix", log_mix)):
                setattr(
                    found[i], name, torch.cat([getattr(found[i], name), log[line, token, None]])
                )
    return found


# 5. The objective: reverse KL(q ‖ p) over whole responses. Its gradient splits (section 2.2) into a policy gradient
# with the reward r_t = log p(y_t) - log q(y_t), and a single-step term that is exact over the vocabulary:
#
#     R_t = Σ_{k≥t} γ^(k-t) r_k / (tokens left)            length normalisation (section 2.2)
#     A_t = R_t, whitened over the batch
#     w_t = q(y_t) / p̃(y_t) at sampling                    importance weight of teacher-mixed sampling
#     ρ_t = q_now(y_t) / q(y_t)                            the student has moved since the round was sampled
#     L   = (1/N) Σ_t [ max(-A_t ρ_t w_t, -A_t clip(ρ_t w_t, 1 ± ε)) + KL(q_now(·|y_<t) ‖ p(·|y_<t)) ]

DISCOUNT, REWARD_SCALE, REWARD_CLIP, RATIO_CLIP = 0.95, 0.5, 100.0, 0.2  # of the authors' code


def advantages(rollouts: list[Rollout], longest: int) -> Tensor:
    """Compute A_t of all tokens of a batch, (n,). Statistics count padding to `longest`, as the authors' code does."""
    found = []
    for rollout in rollouts:
        rewards_t = ((rollout.log_p - rollout.log_q) / REWARD_SCALE).clamp(
            -REWARD_CLIP, REWARD_CLIP
        )
        length, total, returns = len(rewards_t), torch.tensor(0.0), []
        for t in reversed(range(length)):
            total = rewards_t[t] + DISCOUNT * total
            returns.append(total / (length - t))
        found.append(torch.stack(returns[::-1]))
    padded_bt = torch.zeros(len(found), longest)
    for b, returns_t in enumerate(found):
        padded_bt[b, : len(returns_t)] = returns_t
    mean, variance = padded_bt.mean(), padded_bt.var(correction=0)
    return (torch.cat(found) - mean) * torch.rsqrt(variance + 1e-8)


def minillm_loss(
    student: GPT2LMHeadModel, teacher: GPT2LMHeadModel, rollouts: list[Rollout], longest: int
) -> Tensor:
    """Compute L of a batch of rollouts, a scalar."""
    responses = [rollout.response for rollout in rollouts]
    texts = [(rollout.row.prompt, rollout.response) for rollout in rollouts]
    with torch.no_grad():
        log_p_nv = log_probabilities(teacher, texts)
    log_q_nv = log_probabilities(student, texts)
    advantage_n = advantages(rollouts, longest)
    drawn_n, mixed_n = (
        torch.cat([getattr(r, name) for r in rollouts]) for name in ("log_q", "log_mix")
    )
    weighted_ratio_n = (of_tokens(log_q_nv, responses) - drawn_n).exp() * (drawn_n - mixed_n).exp()
    clipped_n = weighted_ratio_n.clamp(1 - RATIO_CLIP, 1 + RATIO_CLIP)
    policy_n = torch.maximum(-advantage_n * weighted_ratio_n, -advantage_n * clipped_n)
    single_step_n = (log_q_nv.exp() * (log_q_nv - log_p_nv)).sum(-1)
    return (policy_n + single_step_n).mean()


def distil(
    student: GPT2LMHeadModel,
    teacher: GPT2LMHeadModel,
    data: list[Row],
    *,
    rounds: int,
    per_round: int = 128,
    size: int = 32,
    inner_epochs: int = 4,
    alpha: float = 0.2,
    longest: int = 8,
    rate: float = 3e-4,
) -> None:
    """Train the student by MiniLLM, in place: sample a round of responses, pass over it, sample the next."""
    optimizer, choice = torch.optim.AdamW(student.parameters(), lr=rate), random.Random(1)
    for number in range(rounds):
        batch = choice.sample(data, per_round)
        seeds = [number * per_round + line for line in range(per_round)]
        rollouts = sample(student, teacher, batch, seeds, alpha, longest)
        for _ in range(inner_epochs):
            choice.shuffle(rollouts)
            for start in range(0, per_round, size):
                loss = minillm_loss(student, teacher, rollouts[start : start + size], longest)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()


# 6. Evaluation: ROUGE-L (Lin, 2004), the F1 score of the longest common subsequence of two texts, × 100.


def rouge_l(found: list[int], reference: list[int]) -> float:
    """Compute ROUGE-L of a response, with tokens as words."""
    lengths = [0] * (len(reference) + 1)
    for word in found:
        above = lengths
        lengths = [0]
        for j, other in enumerate(reference):
            lengths.append(above[j] + 1 if word == other else max(above[j + 1], lengths[j]))
    common = lengths[-1]
    return 100 * 2 * common / (len(found) + len(reference)) if common else 0.0


def score(model: GPT2LMHeadModel, data: list[Row], longest: int = 8) -> float:
    """Return the mean ROUGE-L of sampled responses."""
    drawn = sample(model, None, data, [7] * len(data), 0.0, longest)

    def words(tokens: list[int]) -> list[int]:
        return [token for token in tokens if token != END]

    return sum(rouge_l(words(r.response), words(r.row.reference)) for r in drawn) / len(drawn)


def main() -> None:
    """Train a teacher on many labels, a student on few, and distil the one into the other."""
    train, test = rows(20_000, seed=1), rows(500, seed=2)
    teacher, student = gpt2(3, 128, seed=1), gpt2(2, 48, seed=2)
    fine_tune(teacher, train, steps=600, size=64, rate=1e-3)
    print(f"teacher, SFT on {len(train):,} labels: ROUGE-L {score(teacher, test):.1f}")
    fine_tune(student, train[:500], steps=400, size=32, rate=2e-3)
    print(f"student, SFT on 500 labels: ROUGE-L {score(student, test):.1f}")
    again = copy.deepcopy(student)
    fine_tune(again, train[:500], steps=320, size=32, rate=3e-4)
    print(f"student, SFT on 500 labels for as many steps more: ROUGE-L {score(again, test):.1f}")
    distil(student, teacher, train, rounds=20)
    print(f"student, MiniLLM on {len(train):,} prompts: ROUGE-L {score(student, test):.1f}")


if __name__ == "__main__":
    main()
