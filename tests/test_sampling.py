"""The mixed sampler: its distribution, its log-probabilities, and that a prompt's text is its own."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from models_for_tests import END, all_responses, tiny_gpt2, token_log_probabilities

from takd.decoding import amounts, replay
from takd.decoding.gumbel import gumbel_noise
from takd.decoding.mixing import mixture, shares, speculative
from takd.decoding.ngrams import Repeats
from takd.decoding.sampling import Decoding, Prompt, draw

VOCABULARY = 5


@pytest.fixture(scope="module")
def pair():
    """Student and teacher."""
    return tiny_gpt2(1, VOCABULARY, width=8, scale=3), tiny_gpt2(2, VOCABULARY, width=8, scale=3)


def sample(pair, prompts, decoding, *, mix=0.3, micro_batch=64, teacher=True, end=END):
    student, teacher_model = pair
    return draw(
        student,
        prompts,
        decoding,
        end_token=end,
        vocabulary=VOCABULARY,
        micro_batch=micro_batch,
        teacher=teacher_model if teacher else None,
        teacher_mix=mix,
    )


def many_prompts(count, seed=0):
    words = random.Random(seed)
    return [
        Prompt([words.randrange(1, VOCABULARY) for _ in range(words.randrange(1, 9))], key, 7)
        for key in range(count)
    ]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_blocked_tokens_are_those_that_would_repeat_an_ngram(size):
    words = random.Random(size)
    text = [words.randrange(3) for _ in range(12)]
    repeats = Repeats(size, text[:4])
    for end in range(4, len(text)):
        seen = {tuple(text[i : i + size]) for i in range(end - size + 1)}
        last = tuple(text[end - size + 1 : end])
        assert set(repeats.banned()) == {token for token in range(3) if (*last, token) in seen}
        repeats.add(text[end])


def test_noise_is_gumbel_distributed_and_independent():
    rows = 2000
    keys = torch.arange(rows)
    zeros = torch.zeros(rows, dtype=torch.long)
    noise = gumbel_noise(zeros, keys, zeros, 200)
    # exp(-exp(-g)) of Gumbel noise is uniform
    uniform = torch.exp(-torch.exp(-noise.double())).flatten()
    counts = torch.histc(uniform, 50, 0, 1)
    chi_square = ((counts - rows * 4) ** 2 / (rows * 4)).sum()
    assert chi_square < 85.4  # 99.9 % point for 49 degrees of freedom
    neighbours = {
        "key": gumbel_noise(zeros, keys + 1, zeros, 200),
        "seed": gumbel_noise(zeros + 1, keys, zeros, 200),
        "position": gumbel_noise(zeros, keys, zeros + 1, 200),
        "token": noise.roll(1, 1),
    }
    for name, other in neighbours.items():
        stacked = torch.stack([noise.flatten(), other.flatten()])
        assert abs(torch.corrcoef(stacked)[0, 1]) < 0.008, name  # 5 standard errors


def test_noise_is_the_hash_that_it_says():
    """Against the same arithmetic on Python's integers, so that no device or version changes a text unseen."""
    word = 2**32

    def mix(x):
        x ^= x >> 16
        x = x * 0x85EBCA6B % word
        x ^= x >> 13
        x = x * 0xC2B2AE35 % word
        return x ^ (x >> 16)

    seed, key, position = 3, 2**31 + 5, 17
    first, second = 0x243F6A88, 0x13198A2E
    for part in (seed, key, position):
        first = mix(((first ^ part) + 0x9E3779B9) % word)
        second = mix((second + part) * 0x27D4EB2F % word)
    expected = []
    for token in range(1, 8):
        bits = mix(((mix(token) ^ first) + second) % word) % 2**31
        expected.append(-math.log(-math.log1p(-(bits + 0.5) * 2**-31)))
    ours = gumbel_noise(*(torch.tensor([x]) for x in (seed, key, position)), 7)[0]
    assert ours.tolist() == pytest.approx(expected, rel=1e-5)


def test_noise_does_not_depend_on_the_batch():
    keys = torch.tensor([5, 9, 2**31])
    zeros = torch.zeros(3, dtype=torch.long)
    whole = gumbel_noise(zeros, keys, zeros, 50)
    assert torch.equal(whole[1:2], gumbel_noise(zeros[:1], keys[1:2], zeros[:1], 50))
    assert torch.equal(whole[:, :20], gumbel_noise(zeros, keys, zeros, 20))


def test_mixture_is_of_probabilities():
    p, q = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.2, 0.8]).log()
    mixed = mixture(torch.stack([q, p])[:, None], shares(0.25, q.device))[0].exp()
    assert mixed.tolist() == pytest.approx([0.25 * 0.9 + 0.75 * 0.2, 0.25 * 0.1 + 0.75 * 0.8])


def replaced(p, q, top_k):
    """Probabilities of each token where the teacher replaces proposals outside of its top k, by its definition."""
    found = []
    for p_v, q_v in zip(p.tolist(), q.tolist(), strict=True):
        inside = [sum(other > mine for other in p_v) < top_k for mine in p_v]
        outside = sum(share for share, kept in zip(q_v, inside, strict=True) if not kept)
        parts = zip(p_v, q_v, inside, strict=True)
        found.append([kept * proposed + outside * own for own, proposed, kept in parts])
    return torch.tensor(found, dtype=p.dtype)


def distributions(model, prompt, response):
    """(response tokens, vocabulary) by one full pass."""
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *response]])
        return model(ids).logits[0, len(prompt) - 1 : -1].softmax(-1)


def test_what_a_teacher_replaces_is_drawn_from_it_and_ties_are_kept():
    generator = torch.Generator().manual_seed(1)
    for top_k in range(1, 7):
        p, q = torch.rand(2, 50, 6, dtype=torch.float64, generator=generator)
        p[:10] = torch.tensor([3.0, 1, 2, 2, 2, 1])  # as half-precision logits tie
        q[0, 1:] = 0  # a student that is sure
        p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
        found, log_share = speculative(torch.stack([q.log(), p.log()]), top_k)
        expected = replaced(p, q, top_k)
        torch.testing.assert_close(found.exp(), expected)
        assert found.logsumexp(-1).abs().max() < 1e-12
        kept = (found.exp() - log_share.exp()[:, None] * p).sum(-1)
        torch.testing.assert_close(1 - kept, log_share.exp())
    # nothing is replaced: the student's probabilities in every bit
    assert torch.equal(found, q.log()) and log_share.exp().max() == 0


@pytest.fixture(scope="module")
def enumerated(pair):
    """Of two prompts, all responses of up to three tokens, each with (teacher's, student's) probabilities."""
    return {
        prompt: {
            tuple(response): tuple(distributions(model, prompt, response) for model in pair[::-1])
            for response in all_responses(VOCABULARY, 3)
        }
        for prompt in ((1, 2, 3, 4), (2,))
    }


@pytest.mark.slow
@pytest.mark.parametrize(("mix", "top_k"), [(0.3, 0), (0.0, 1), (0.0, 2), (0.0, 9)])
def test_distribution_against_enumeration(pair, enumerated, mix, top_k):
    """Two prompts of different length in one left-padded batch, 20,000 samples.

    Of the student alone, `test_decoding_distribution` has 40,000.
    """
    count, longest = 10_000, 3
    prompts = {prompt: key for key, prompt in enumerate(enumerated)}
    rows = [
        Prompt(list(tokens), key, seed) for seed in range(count) for tokens, key in prompts.items()
    ]
    decoding = Decoding(longest, teacher_top_k=top_k)
    drawn = sample(pair, rows, decoding, mix=mix, micro_batch=5000)
    for tokens, responses in enumerated.items():
        exact = []
        for response, (p, q) in responses.items():
            r = replaced(p, q, top_k) if top_k else mix * p + (1 - mix) * q
            exact.append(r.gather(-1, torch.tensor(response)[:, None]).prod().item())
        assert sum(exact) == pytest.approx(1, abs=1e-5)
        seen = dict.fromkeys(responses, 0)
        for prompt, response in zip(rows, drawn, strict=True):
            if tuple(prompt.tokens) == tokens:
                seen[tuple(response.tokens.tolist())] += 1
        # a chi-square test over the responses that are expected at least five times, the rest pooled
        cells = list(zip(exact, seen.values(), strict=True))
        large = [(p * count, n) for p, n in cells if p * count >= 5]
        rest = [(p * count, n) for p, n in cells if p * count < 5]
        large.append((sum(e for e, _ in rest), sum(n for _, n in rest)))
        chi_square = sum((n - e) ** 2 / max(e, 1e-9) for e, n in large if e > 1)
        freedom = len(large) - 1
        assert chi_square < freedom + 4 * (2 * freedom) ** 0.5
        distance = sum(abs(e - n) for e, n in large) / (2 * count)
        assert distance < 1.5 * (len(large) / count) ** 0.5


def test_log_probabilities_equal_those_of_a_full_pass(pair):
    student, teacher = pair
    prompts = many_prompts(40)
    for prompt, response in zip(prompts, sample(pair, prompts, Decoding(12)), strict=True):
        tokens = response.tokens.tolist()
        with torch.no_grad():
            q = token_log_probabilities(student, list(prompt.tokens), tokens)
            p = token_log_probabilities(teacher, list(prompt.tokens), tokens)
        torch.testing.assert_close(response.student, q, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(response.teacher, p, atol=2e-5, rtol=1e-5)
        mixed = torch.log(0.3 * p.exp() + 0.7 * q.exp())
        torch.testing.assert_close(response.mixed, mixed, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("top_k", [1, 3])
def test_scores_where_a_teacher_replaces_equal_those_of_a_full_pass(pair, top_k):
    prompts = many_prompts(40)
    drawn = sample(pair, prompts, Decoding(12, teacher_top_k=top_k), mix=0.0)
    for prompt, response in zip(prompts, drawn, strict=True):
        tokens = response.tokens.tolist()
        q, p = (distributions(model, prompt.tokens, tokens) for model in pair)
        r = replaced(p, q, top_k)
        for probabilities, found in (
            (q, response.student),
            (p, response.teacher),
            (r, response.mixed),
        ):
            expected = probabilities.gather(-1, response.tokens[:, None])[:, 0].log()
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
        inside = p >= p.topk(top_k).values[:, -1:]
        torch.testing.assert_close(response.replaced, (q * ~inside).sum(-1), atol=2e-5, rtol=1e-4)


def test_a_top_k_of_the_whole_vocabulary_is_the_student_alone(pair):
    prompts = many_prompts(40)
    alone = sample(pair, prompts, Decoding(12), teacher=False, mix=0.0)
    for top_k in (VOCABULARY, 25):
        drawn = sample(pair, prompts, Decoding(12, teacher_top_k=top_k), mix=0.0)
        assert all(map(torch.equal, [r.tokens for r in drawn], [r.tokens for r in alone]))
        assert not any(r.replaced.any() for r in drawn)


@pytest.mark.parametrize(("mix", "top_k"), [(0.3, 0), (0.0, 2)])
def test_text_of_a_prompt_does_not_depend_on_its_batch(pair, mix, top_k):
    prompts, decoding = many_prompts(50), Decoding(20, teacher_top_k=top_k)

    def texts(prompts, **more):
        return [r.tokens.tolist() for r in sample(pair, prompts, decoding, mix=mix, **more)]

    reference = texts(prompts)
    assert len({tuple(tokens) for tokens in reference}) > 30
    for micro_batch in (1, 7):
        assert texts(prompts, micro_batch=micro_batch) == reference
    order = list(range(50))
    random.Random(1).shuffle(order)
    shuffled = texts([prompts[i] for i in order], micro_batch=13)
    assert shuffled == [reference[i] for i in order]
    # a long prompt beside it pads all the others
    assert texts([*prompts, Prompt([1] * 30, 99, 7)])[:-1] == reference


def test_responses_end_at_the_end_token_or_the_limit(pair):
    for response in sample(pair, many_prompts(200), Decoding(4)):
        tokens = response.tokens.tolist()
        assert END not in tokens[:-1]
        assert response.finished == (tokens[-1] == END)
        assert response.finished or len(tokens) == 4
        assert len(response.student) == len(response.teacher) == len(response.mixed) == len(tokens)


@pytest.mark.parametrize("ahead", [1, 8])
def test_a_response_ends_at_the_first_of_several_end_tokens(pair, ahead, monkeypatch):
    """Which changes nothing else: it is what one end token gives, up to there."""
    monkeypatch.setitem(amounts.AHEAD, "cpu", ahead)
    prompts, ends, cut = many_prompts(100), {END, 3}, 0
    one = sample(pair, prompts, Decoding(8))
    several = sample(pair, prompts, Decoding(8), end=(END, 3))
    for alone, response in zip(one, several, strict=True):
        tokens = alone.tokens.tolist()
        length = next((at for at, token in enumerate(tokens, 1) if token in ends), len(tokens))
        assert response.tokens.tolist() == tokens[:length]
        assert response.finished == (tokens[length - 1] in ends)
        torch.testing.assert_close(response.student, alone.student[:length])
        cut += length < len(tokens)
    assert cut > 10
    again = sample(pair, prompts, Decoding(8), end=(END,))
    for alone, response in zip(one, again, strict=True):
        assert torch.equal(alone.tokens, response.tokens)
        assert torch.equal(alone.mixed, response.mixed)


def spy_on_passes(monkeypatch, models):
    """(model, shape of the tokens) of every pass through a model's body, none of which is replayed."""
    monkeypatch.setattr(replay, "ATTEMPTS", 0)
    passes = []
    for name, model in models.items():
        body = model.base_model

        def spy(*args, name=name, real=body.forward, **kwargs):
            ids = args[0] if args else kwargs["input_ids"]
            passes.append((name, tuple(ids.shape)))
            return real(*args, **kwargs)

        monkeypatch.setattr(body, "forward", spy)
    return passes


def test_each_model_reads_each_token_once(pair, monkeypatch):
    """Per rollout: one prompt pass and one decoding of each model, and no scoring pass."""
    passes = spy_on_passes(monkeypatch, {"student": pair[0], "teacher": pair[1]})
    prompts = many_prompts(6)
    drawn = sample(pair, prompts, Decoding(10))
    steps = max(len(r.tokens) for r in drawn)
    width = max(len(p.tokens) for p in prompts)
    for name in ("student", "teacher"):
        shapes = [shape for model, shape in passes if model == name]
        assert shapes[0] == (6, width)
        assert [columns for _, columns in shapes[1:]] == [1] * (steps - 1)


def test_a_teacher_that_does_not_mix_reads_each_text_once(pair, monkeypatch):
    passes = spy_on_passes(monkeypatch, {"teacher": pair[1]})
    prompts = many_prompts(6)
    drawn = sample(pair, prompts, Decoding(10), mix=0.0)
    longest = max(len(p.tokens) + len(r.tokens) for p, r in zip(prompts, drawn, strict=True))
    assert passes == [("teacher", (6, longest))]
    alone = sample(pair, prompts, Decoding(10), mix=0.0, teacher=False)
    for prompt, response, other in zip(prompts, drawn, alone, strict=True):
        assert torch.equal(response.tokens, other.tokens)
        p = token_log_probabilities(pair[1], list(prompt.tokens), response.tokens.tolist())
        torch.testing.assert_close(response.teacher, p, atol=2e-5, rtol=1e-5)
        assert torch.equal(response.mixed, response.student)


@pytest.mark.parametrize("mix", [0.0, 0.3])
def test_hidden_states_of_the_teacher_give_its_distributions(pair, mix):
    teacher = pair[1]
    prompts = many_prompts(20)
    for prompt, response in zip(prompts, sample(pair, prompts, Decoding(12), mix=mix), strict=True):
        ids = torch.tensor([[*prompt.tokens, *response.tokens.tolist()]])
        with torch.no_grad():
            expected = teacher(ids).logits[0, len(prompt.tokens) - 1 : -1]
        ours = teacher.lm_head(response.teacher_hidden)
        torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)


def test_finished_rows_make_room_for_others(pair, monkeypatch):
    """40 prompts in 8 places: fewer passes than groups of 8 would take, which wait for their longest."""
    prompts = [
        Prompt(p.tokens, p.key, p.seed, limit=1 + 23 * (p.key % 8 == 0)) for p in many_prompts(40)
    ]
    passes = spy_on_passes(monkeypatch, {"student": pair[0]})
    drawn = sample(
        pair, prompts, Decoding(24), teacher=False, mix=0.0, micro_batch=8, end=VOCABULARY
    )
    assert [len(r.tokens) for r in drawn] == [p.limit for p in prompts]
    assert sum(columns == 1 for _, (_, columns) in passes) < 2.5 * 24
    assert all(rows <= 8 for _, (rows, _) in passes)
    assert sum(rows for _, (rows, columns) in passes if columns > 1) <= 40


def test_equal_prompts_are_read_once(pair, monkeypatch):
    passes = spy_on_passes(monkeypatch, {"student": pair[0]})
    prompts = [Prompt(p.tokens, p.key, seed) for p in many_prompts(4) for seed in (1, 2, 3)]
    drawn = sample(pair, prompts, Decoding(6), teacher=False, mix=0.0)
    different = len({tuple(p.tokens) for p in prompts})
    assert passes[0][1][0] == different < 12
    alone = [sample(pair, [p], Decoding(6), teacher=False, mix=0.0)[0] for p in prompts]
    assert [r.tokens.tolist() for r in drawn] == [r.tokens.tolist() for r in alone]


def test_greedy_decoding_equals_generate(pair):
    student = pair[0]
    prompts = many_prompts(8)
    drawn = sample(pair, prompts, Decoding(6, sample=False), teacher=False, mix=0.0)
    for prompt, response in zip(prompts, drawn, strict=True):
        ids = torch.tensor([list(prompt.tokens)])
        expected = student.generate(
            ids, do_sample=False, max_new_tokens=6, pad_token_id=END, attention_mask=ids * 0 + 1
        )[0, ids.shape[1] :].tolist()
        assert response.tokens.tolist() == expected
        assert response.teacher.numel() == 0


def test_repeated_ngrams_are_blocked_in_any_batch(pair):
    prompts = many_prompts(30)
    decoding = Decoding(20, no_repeat_ngram=2)
    drawn = sample(pair, prompts, decoding, teacher=False, mix=0.0)
    for prompt, response in zip(prompts, drawn, strict=True):
        whole = [*prompt.tokens, *response.tokens.tolist()]
        start = len(prompt.tokens)
        made = [tuple(whole[i - 1 : i + 1]) for i in range(start, len(whole))]
        before = {tuple(whole[i - 1 : i + 1]) for i in range(1, start)}
        assert len(set(made)) == len(made) and not before & set(made)
    greedy = sample(pair, prompts, replace(decoding, sample=False), teacher=False, mix=0.0)
    for prompt, response in zip(prompts, greedy, strict=True):
        ids = torch.tensor([list(prompt.tokens)])
        expected = (
            pair[0]
            .generate(
                *(ids,),
                do_sample=False,
                max_new_tokens=20,
                no_repeat_ngram_size=2,
                pad_token_id=END,
            )[0, ids.shape[1] :]
            .tolist()
        )
        assert response.tokens.tolist() == expected
    alone = sample(pair, prompts, decoding, teacher=False, mix=0.0, micro_batch=1)
    assert [r.tokens.tolist() for r in alone] == [r.tokens.tolist() for r in drawn]


def test_top_k_and_top_p_cut_the_distribution(pair):
    prompts = [Prompt([1, 2], 0, seed) for seed in range(300)]
    greedy = sample(pair, prompts[:1], Decoding(1, sample=False), teacher=False)[0].tokens
    for cut in (Decoding(1, top_k=1), Decoding(1, top_p=1e-6)):
        drawn = sample(pair, prompts, cut, teacher=False, mix=0.0)
        assert all(torch.equal(r.tokens, greedy) for r in drawn)
    two = sample(pair, prompts, Decoding(1, top_k=2), teacher=False, mix=0.0)
    assert len({int(r.tokens[0]) for r in two}) == 2


def test_temperature_sharpens(pair):
    prompts = [Prompt([1, 2], 0, seed) for seed in range(400)]

    def commonest(temperature):
        drawn = sample(pair, prompts, Decoding(2, temperature=temperature), teacher=False, mix=0.0)
        return Counter(tuple(r.tokens.tolist()) for r in drawn).most_common(1)[0][1]

    assert commonest(0.05) > commonest(1.0) > commonest(20.0)
