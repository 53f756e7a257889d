"""takd's decoder and `transformers.generate` draw from one distribution: the one that the model states.

A tiny model over five tokens gives every response of up to three tokens a probability, which is multiplied here from
plain passes over one unpadded text at a time. Prompts of four lengths share a batch: left-padded for `generate`,
without padding for takd, whose rows leave and come. Chi-square tests compare first tokens and whole responses of both
with these probabilities, and with each other; Fisher's method sums up what the prompts say.

All hypotheses of a case hold together with the error `FALSE_ALARM` (Bonferroni): with other seeds, a case of right
decoders would fail once in 10,000 times. Seeds are fixed, so these do not. Wrong decoders are tried too.
"""

import itertools
import math
from collections import Counter

import pytest
import torch
from models_for_tests import END, tiny_gpt2
from scipy import stats

from takd.decoding.sampling import Decoding, Prompt, draw

VOCABULARY, LONGEST = 5, 3
PROMPTS = [(2,), (3, 1), (1, 2, 3, 4), (4, 4, 1, 2, 3, 2, 1)]
SEEDS, KEYS = (10, 20, 30, 40, 50), 2000  # as in an evaluation: many prompts, a few seeds each
DRAWS = len(SEEDS) * KEYS
FALSE_ALARM = 1e-4
# expected counts below this are pooled: far out in its tail the chi-square distribution needs more than the usual 5
POOLED = 20


@pytest.fixture(scope="module")
def model():
    return tiny_gpt2(2, VOCABULARY, width=8, scale=5)


# exact probabilities


@torch.no_grad()
def exact(model, prompt, ngram=0, temperature=1.0):
    """Probability of each response: a pass over each text, one token after the other."""
    found = {}

    def grow(response, probability):
        if len(response) == LONGEST or (response and response[-1] == END):
            found[response] = probability
            return
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, -1].double() / temperature
        logits[repeating([*prompt, *response], ngram)] = -math.inf
        for token, p in enumerate(logits.softmax(-1).tolist()):
            if p:
                grow((*response, token), probability * p)

    grow((), 1.0)
    assert sum(found.values()) == pytest.approx(1)
    return found


def repeating(text, ngram):
    """Tokens that would repeat an n-gram of the text."""
    if not ngram:
        return []
    there = {tuple(text[i : i + ngram]) for i in range(len(text) - ngram + 1)}
    last = text[len(text) - ngram + 1 :]
    return [token for token in range(VOCABULARY) if (*last, token) in there]


# draws: for each prompt, `DRAWS` responses


def ours(model, ngram=0, temperature=1.0, noise=lambda seed, key: (seed, key)):
    rows = [
        Prompt(list(prompt), *noise(seed, key * len(PROMPTS) + at)[::-1])
        for key in range(KEYS)
        for at, prompt in enumerate(PROMPTS)
        for seed in SEEDS
    ]
    decoding = Decoding(LONGEST, temperature=temperature, no_repeat_ngram=ngram)
    drawn = draw(
        model, rows, decoding, end_token=END, vocabulary=VOCABULARY, micro_batch=len(rows) // 9
    )
    found = [[] for _ in PROMPTS]
    for row, response in zip(rows, drawn, strict=True):
        found[PROMPTS.index(tuple(row.tokens))].append(tuple(response.tokens.tolist()))
    return found


def theirs(model, ngram=0, temperature=1.0, masked=True):
    torch.manual_seed(0)
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[END] * (width - len(p)) + list(p) for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    new_bt = model.generate(
        ids.repeat(DRAWS, 1),
        attention_mask=(mask if masked else torch.ones_like(mask)).repeat(DRAWS, 1),
        do_sample=True,
        temperature=temperature,
        top_k=0,
        no_repeat_ngram_size=ngram,
        max_new_tokens=LONGEST,
        eos_token_id=END,
        pad_token_id=END,
    )[:, width:]
    responses = [tuple(row[: row.index(END) + 1] if END in row else row) for row in new_bt.tolist()]
    return [responses[at :: len(PROMPTS)] for at in range(len(PROMPTS))]


# tests


def against(draws, probabilities):
    """p value of draws from these probabilities; 0 if one was drawn that cannot be."""
    counts = Counter(draws)
    if set(counts) - set(probabilities):
        return 0.0
    cells = [(n * len(draws), counts[each]) for each, n in probabilities.items()]
    large = [cell for cell in cells if cell[0] >= POOLED]
    small = [cell for cell in cells if cell[0] < POOLED]
    if small:
        large.append((sum(e for e, _ in small), sum(n for _, n in small)))
    if large[-1][0] < POOLED:  # still little: to the rarest of the others
        (more, times), rarest = large.pop(), min(large)
        large[large.index(rarest)] = (rarest[0] + more, rarest[1] + times)
    expected, seen = zip(*large, strict=True)
    return stats.chisquare(seen, expected).pvalue


def between(first, second):
    """p value of two lots of draws from one distribution, whatever it is."""
    counts = [Counter(first), Counter(second)]
    names = sorted(set(first) | set(second))
    table = [[count[name] for name in names] for count in counts]
    large = [column for column in zip(*table, strict=True) if sum(column) >= 2 * POOLED]
    small = [column for column in zip(*table, strict=True) if sum(column) < 2 * POOLED]
    if small:
        large.append(tuple(map(sum, zip(*small, strict=True))))
    return stats.chi2_contingency(list(zip(*large, strict=True))).pvalue


def p_values(model, first, second=None, **settings):
    """All tests of a case by name: of each prompt, of first tokens and whole responses, of each and between both."""
    found = {}
    for at, prompt in enumerate(PROMPTS):
        probabilities = exact(model, prompt, **settings)
        firsts = Counter()
        for response, probability in probabilities.items():
            firsts[response[:1]] += probability
        for what, cut, wanted in (("first", 1, firsts), ("whole", LONGEST, probabilities)):
            lots = [[response[:cut] for response in lot[at]] for lot in (first, second) if lot]
            for name, lot in zip(("first", "second"), lots, strict=False):
                found[prompt, what, name] = against(lot, wanted)
            if len(lots) == 2:
                found[prompt, what, "between"] = between(*lots)
    # the prompts' draws are independent, so a small fault in all of them shows here
    for what, kind in sorted({name[1:] for name in found}):
        values = [max(p, 1e-300) for name, p in found.items() if name[1:] == (what, kind)]
        found["all", what, kind] = stats.combine_pvalues(values).pvalue
    return found


def alarms(found):
    return {name: p for name, p in found.items() if p < FALSE_ALARM / len(found)}


@pytest.fixture(scope="module")
def generated(model):
    return theirs(model)


def test_takd_and_generate_draw_what_the_model_states(model, generated):
    found = p_values(model, ours(model), generated)
    assert len(found) == (len(PROMPTS) + 1) * 2 * 3
    assert not alarms(found)


@pytest.mark.parametrize("settings", [{"ngram": 2}, {"temperature": 0.7}], ids=str)
def test_both_do_so_with_settings(model, settings):
    drawn = ours(model, **settings)
    found = p_values(model, drawn, theirs(model, **settings), **settings)
    assert not alarms(found)
    # the settings are seen: the draws are not those of plain sampling
    assert alarms(p_values(model, drawn))


WRONG = {
    "temperature of 1.1": lambda model: ours(model, temperature=1.1),
    "generate at a temperature of 1.1": lambda model: theirs(model, temperature=1.1),
    "padding that is read": lambda model: theirs(model, masked=False),
    "one noise for all prompts": lambda model: ours(model, noise=lambda seed, key: (seed, 0)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_decoder_is_found_out(model, generated, name):
    """Against the probabilities, and where these are not known against the other decoder."""
    found = p_values(model, WRONG[name](model), generated)
    for pair in ("first", "between"):
        assert any(kind == pair for _, _, kind in alarms(found)), pair


def test_p_values_of_right_draws_are_uniform():
    """So that the threshold means what it says: draws from the probabilities themselves."""
    probabilities = dict(
        zip(itertools.count(), [0.5, 0.3, 0.15, 0.045, 0.004, 0.001], strict=False)
    )
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor(list(probabilities.values()))

    def lot():
        return torch.multinomial(weights, 4000, True, generator=generator).tolist()

    found = [[against(lot(), probabilities), between(lot(), lot())] for _ in range(150)]
    for values in zip(*found, strict=True):
        assert stats.kstest(values, "uniform").pvalue > 1e-4
