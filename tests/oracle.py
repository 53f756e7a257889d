"""Losses of papers and public implementations as plain float64 formulas: numpy alone, nothing of takd.

Written down from papers and documentation (docs/oracle.md). `s` and `t` are the logits of student and teacher,
(tokens, vocabulary); a loss has one value per token, (tokens,). Names of methods are those of their papers.
"""

import numpy as np

LEAST = 1e-37  # what this project takes instead of a probability of 0 within a mixture


def log_softmax(z):
    z = np.asarray(z, dtype=np.float64)
    z = z - z.max(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return z - np.log(np.exp(z).sum(-1, keepdims=True))


def total(weights, values):
    """Σ w v, in which nothing times infinity is nothing."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(weights > 0, weights * values, 0.0).sum(-1)


def log(x):
    with np.errstate(divide="ignore"):
        return np.log(x)


def entropy(z):
    logs = log_softmax(z)
    return -total(np.exp(logs), logs)


# -- divergences, as their papers state them -------------------------------------------------------


def kl(a, b):
    """KL of two distributions, given as logarithms."""
    with np.errstate(invalid="ignore"):
        return total(np.exp(a), a - b)


def forward_kl(s, t):
    return kl(log_softmax(t), log_softmax(s))


def reverse_kl(s, t):
    return kl(log_softmax(s), log_softmax(t))


def shares(s, t, share):
    """Log of share · teacher + (1 - share) · student."""
    return np.logaddexp(log(share) + log_softmax(t), log(1 - share) + log_softmax(s))


def jensen_shannon(s, t, beta=0.5):
    """GKD, equation 1; its limits where a weight is 0."""
    if beta in (0, 1):
        return (forward_kl, reverse_kl)[int(beta)](s, t)
    m = shares(s, t, beta)
    return beta * kl(log_softmax(t), m) + (1 - beta) * kl(log_softmax(s), m)


def total_variation(s, t):
    return np.abs(np.exp(log_softmax(t)) - np.exp(log_softmax(s))).sum(-1) / 2


def skewed_forward_kl(s, t, skew):
    return kl(log_softmax(t), shares(s, t, skew))


def skewed_reverse_kl(s, t, skew):
    return kl(log_softmax(s), shares(s, t, 1 - skew))


def alpha_beta(s, t, alpha, beta):
    """ABKD, definition 4.1 and its limits."""
    p, q = np.exp(log_softmax(t)), np.exp(log_softmax(s))
    with np.errstate(invalid="ignore"):
        ratio = log_softmax(t) - log_softmax(s)
    if alpha == 0:
        return (beta * total(q**beta, -ratio) + (p**beta - q**beta).sum(-1)) / beta**2
    if beta == 0:
        return (alpha * total(p**alpha, ratio) + (q**alpha - p**alpha).sum(-1)) / alpha**2
    both = alpha + beta
    terms = p**alpha * q**beta - alpha / both * p**both - beta / both * q**both
    return -terms.sum(-1) / (alpha * beta)


def alpha_mixture(s, t, share, alpha, least=0.0):
    """Log of AMiD's assistant distribution; `least` stands for smaller probabilities."""
    p, q = (np.maximum(log_softmax(z), log(least)) for z in (t, s))
    exponent = (1 - alpha) / 2
    if exponent == 0:
        return log_softmax(share * p + (1 - share) * q)
    parts = np.log(share) + exponent * p, np.log1p(-share) + exponent * q
    return log_softmax(np.logaddexp(*parts) / exponent)


def amid(s, t, share, alpha, of="teacher", least=0.0):
    return kl(log_softmax(t if of == "teacher" else s), alpha_mixture(s, t, share, alpha, least))


def taid(s, t, target):
    """KL from softmax((1 - τ) z_q + τ z_p); a token that one of them rules out, it rules out."""
    parts = [w * z for w, z in ((1 - target, s), (target, t)) if w]
    return kl(log_softmax(sum(parts)), log_softmax(s))


def grouped(z, tokens):
    """Log-probabilities of some tokens and of all others as one."""
    named = np.take_along_axis(log_softmax(z), tokens, -1)
    rest = np.maximum(1 - np.exp(named).sum(-1, keepdims=True), LEAST)
    return np.concatenate([named, log(rest)], -1)


# -- losses of public implementations --------------------------------------------------------------


def without(weights, values, *logits):
    """Σ w v over tokens of which no logit is infinite."""
    ruled_out = np.logical_or.reduce([np.isinf(z) for z in logits])
    with np.errstate(invalid="ignore"):
        return np.where(ruled_out, 0.0, weights * values).sum(-1)


def added(s, t, share):
    """Log of the mixture, of added probabilities: -inf where both are too small for a number."""
    return log(share * np.exp(log_softmax(t)) + (1 - share) * np.exp(log_softmax(s)))


def distilbert(s, t, temperature):
    """Example of `transformers`: T² KL(p ‖ q) at temperature T."""
    return temperature**2 * forward_kl(np.asarray(s) / temperature, np.asarray(t) / temperature)


def minillm_kd(s, t):
    """KD of MiniLLM's authors, and `KDLoss` of OpenRLHF: a cross-entropy."""
    return -without(np.exp(log_softmax(t)), log_softmax(s), s)


def trl_gkd(s, t, beta):
    """Generalised JSD of TRL and of Liger's kernels."""
    q, p = log_softmax(s), log_softmax(t)
    if beta in (0, 1):
        a, b = (p, q) if beta == 0 else (q, p)
        return (np.exp(a) * (a - b)).sum(-1)
    m = np.logaddexp(q + np.log1p(-beta), p + np.log(beta))
    return (beta * np.exp(p) * (p - m) + (1 - beta) * np.exp(q) * (q - m)).sum(-1)


def distillm_skewed_forward(s, t, lam):
    return -without(np.exp(log_softmax(t)), added(s, t, lam), s, t)


def distillm_skewed_reverse(s, t, lam):
    return without(np.exp(log_softmax(s)), log_softmax(s) - added(s, t, 1 - lam), s, t)


def distillm_js(s, t, lam):
    """`js_distance`: λ is the student's share of m, and the weight of its KL."""
    m = added(s, t, 1 - lam)
    of_student = without(np.exp(log_softmax(s)), log_softmax(s) - m, s, t)
    return lam * of_student + (1 - lam) * without(np.exp(log_softmax(t)), log_softmax(t) - m, s, t)


def distillm2(taught, own, skew):
    """As the paper states: the skewed KL on a teacher's response and the reverse one on the student's."""
    return (skewed_forward_kl(*taught, skew).mean() + skewed_reverse_kl(*own, skew).mean()) / 2


def abkd_edge(s, t, number, zero):
    """`ab_div` where α or β is 0: of powers, not of distributions."""
    large, small = (t, s) if zero == "beta" else (s, t)
    a, b = np.exp(number * log_softmax(large)), np.exp(number * log_softmax(small))
    return (a * np.log(a / b) - a + b).sum(-1) / number


def distillkit_top_k(s, t, tokens, rest):
    """DistillKit, sparse teacher: renormalised over its top k ("zero"), or the rest as one ("symmetric_uniform")."""
    p, q = (np.take_along_axis(log_softmax(z), tokens, -1) for z in (t, s))
    if rest == "zero":
        return kl(log_softmax(p), q)
    p_rest, q_rest = (np.maximum(1 - np.exp(x).sum(-1), 1e-6) for x in (p, q))
    return kl(p, q) + np.where(p_rest > 1e-6, p_rest * np.log(p_rest / q_rest), 0)


def nemo_rl_top_k(s, t, tokens, direction):
    """NeMo-RL, `zero_outside_topk`: the teacher renormalised over its top k, e^-100 elsewhere."""
    p = log_softmax(np.take_along_axis(np.asarray(t), tokens, -1))
    q, whole = np.take_along_axis(log_softmax(s), tokens, -1), log_softmax(s)
    if direction == "forward":
        return total(np.exp(p), p - q)
    entropy_rest = total(np.exp(whole), whole) - total(np.exp(q), q)
    return total(np.exp(q), q - p) + entropy_rest + 100 * (1 - np.exp(q).sum(-1))


def skd_law(s, t, k):
    """As the paper states: the student's token if it is of the teacher's top k, else one of the teacher's."""
    q, p = np.exp(log_softmax(s)), np.exp(log_softmax(t))
    top = np.zeros_like(p)
    np.put_along_axis(top, np.argsort(-p, -1)[..., :k], 1.0, -1)
    return q * top + (q * (1 - top)).sum(-1, keepdims=True) * p


def taid_schedule(losses, steps, start, alpha, beta):
    """τ of each loss, in the authors' code: the first loss is only noted, and progress counts steps that are done."""
    now, before, momentum, found = start, None, 0.0, []
    for done, loss in enumerate(losses):
        found.append(now)
        if before is not None:
            momentum = beta * momentum + (1 - beta) * (before - loss) / before
            now = min(
                1.0,
                max(
                    start + (1 - start) * done / steps,
                    now + alpha / (1 + np.exp(-momentum)) * (1 - now),
                ),
            )
        before = loss
    return found


# -- MiniLLM: terms of one batch; rows are responses, as lists of arrays ---------------------------


def padded(rows, slots):
    return np.stack(
        [np.pad(np.asarray(row, dtype=np.float64), (0, slots - len(row))) for row in rows]
    )


def rewards_to_go(rewards, discount):
    """From behind: R_t = r_t + γ R_{t+1}, (rows, slots)."""
    found, running = np.zeros_like(rewards), np.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        running = found[:, t] = rewards[:, t] + discount * running
    return found


def whitened(values, over):
    """By the mean and the biased variance of `over`."""
    return (values - over.mean()) / np.sqrt(over.var() + 1e-8)


def minillm_code_advantages(rewards, mask):
    """The authors' code: discounted, over the tokens left, whitened over all slots."""
    left = np.maximum(np.cumsum(mask[:, ::-1], 1)[:, ::-1], 1)
    found = rewards_to_go(np.clip(rewards / 0.5, -100, 100), 0.95) / left
    return found, whitened(found, found)


def trl_minillm_advantages(rewards, mask, discount, length_normalisation):
    """TRL (until it removed the trainer): γ to the power of the position in the response, not of the distance."""
    if discount == 0:
        return rewards
    powers = discount ** np.arange(rewards.shape[1])
    sums, left = (
        np.cumsum((x * powers)[:, ::-1], 1)[:, ::-1] for x in (rewards, np.maximum(mask, 1e-4))
    )
    return sums / left if length_normalisation else sums


def tinker_advantages(rewards, discount):
    """Tinker's cookbook, and slime: log p - log q of the token, or its discounted sum."""
    return rewards_to_go(rewards, discount) if discount else rewards


def clipped(ratio, advantage, weight, clip):
    """PPO's loss, of the weighted ratio."""
    ratio = ratio * weight
    return np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 1 - clip, 1 + clip))


def minillm_code(q_now, q, p, mixed, single, slots):
    """Loss of a batch as in the authors' code; log-probabilities and single-step KL of each response."""
    mask = padded([np.ones(len(row)) for row in q], slots)
    now, then, teacher, drawn, kl_step = (padded(x, slots) for x in (q_now, q, p, mixed, single))
    _, advantage = minillm_code_advantages(teacher - then, mask)
    policy = clipped(np.exp(now - then), advantage, np.exp(then - drawn), 0.2)
    return ((policy + kl_step) * mask).sum() / mask.sum()


def minillm_paper(q_now, q, p, mixed, single):
    """Loss with the gradient of equation 8: weights of single tokens, mean reward of the tokens after each."""
    losses = []
    for now, then, teacher, drawn, kl_step in zip(q_now, q, p, mixed, single, strict=True):
        weight, reward = np.exp(then - drawn), teacher - then
        later = np.array(
            [reward[t + 1 :].sum() / max(len(reward) - t - 1, 1) for t in range(len(reward))]
        )
        losses.append((weight * (kl_step - later * np.exp(now - then))).sum())
    return np.mean(losses)


def minillm_exact(q_now, q, p, mixed, single):
    """Loss with the gradient of KL(q ‖ p) of whole responses: each reward with the weight of its prefix."""
    losses = []
    for now, then, teacher, drawn, kl_step in zip(q_now, q, p, mixed, single, strict=True):
        products = np.exp(np.cumsum(then - drawn))
        reward = products * (teacher - then)
        later = np.array([reward[t + 1 :].sum() for t in range(len(reward))])
        of_state = np.concatenate([[1.0], products[:-1]])
        losses.append((of_state * kl_step - later * np.exp(now - then)).sum())
    return np.mean(losses)


def opd(q_now, q, p, mixed, single):
    """On-policy distillation: importance sampling with the reward of the token alone, per token."""
    rows = zip(q_now, q, p, strict=True)
    losses = [-np.exp(now - then) * (teacher - then) for now, then, teacher in rows]
    return np.concatenate(losses).mean()


def minillm_accumulated(prompts):
    """Exposure bias as MiniLLM's script has it: means over the running texts of a prompt, added up, over prompts."""
    longest = max(len(text) for texts in prompts for text in texts)
    curves = []
    for texts in prompts:
        errors, runs = np.zeros((2, longest - 1))
        for text in texts:
            errors[: len(text) - 1] += text[1:]
            runs[: len(text) - 1] += 1
        curves.append(np.cumsum(errors / (runs + 1e-3)))
    return np.mean(curves, 0)
