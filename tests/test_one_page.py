"""The one-page example against the library: the same rollouts and the same losses."""

import sys

import pytest
import torch
from conftest import ROOT
from datasets import Dataset
from models_for_tests import MINILLM_REFERENCE

sys.path.insert(0, str(ROOT / "examples"))
import minillm_on_one_page as page

from takd.decoding.gumbel import gumbel_noise
from takd.decoding.sampling import Decoding, draw
from takd.methods.base import Context
from takd.methods.minillm import MiniLLM
from takd.metrics.rouge import rouge_l

LONGEST = 8


def test_noise_is_equal_bit_for_bit() -> None:
    keys = [(7, 3, 0), (2**40 + 5, 999, 63), (0, 2**33, 1)]
    columns = [torch.tensor(column) for column in zip(*keys, strict=True)]
    for row, noise_v in zip(keys, gumbel_noise(*columns, 700), strict=True):
        assert torch.equal(page.gumbel_noise(*row, 700), noise_v)


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_rollouts_and_losses_are_those_of_the_library(alpha: float) -> None:
    rows = page.rows(16, seed=3)
    student, teacher = page.gpt2(2, 32, seed=1), page.gpt2(2, 48, seed=2)
    settings = {
        **MINILLM_REFERENCE,
        **{"batch_size": 16, "rollouts_per_round": 16, "inner_epochs": 1, "teacher_mix": alpha},
        **{"discount": page.DISCOUNT, "reward_scale": page.REWARD_SCALE},
        **{"reward_clip": page.REWARD_CLIP, "ratio_clip": page.RATIO_CLIP, "lm_weight": 0.0},
    }
    columns = {
        "id": [row.key for row in rows],
        "prompt_ids": [row.prompt for row in rows],
        "response_ids": [row.reference for row in rows],
    }
    vocabulary = len(page.WORDS)
    method = MiniLLM(
        Context(settings, 5, Dataset.from_dict(columns), vocabulary, LONGEST, teacher=teacher)
    )
    seeds: dict[int, int] = {}

    def sample(prompts, temperature, teacher_mix):
        seeds.update({prompt.key: prompt.seed for prompt in prompts})
        end = {"end_token": page.END, "vocabulary": vocabulary, "micro_batch": 16}
        mixed = {"teacher": teacher, "teacher_mix": teacher_mix}
        return draw(student, prompts, Decoding(LONGEST, temperature=temperature), **end, **mixed)

    method.prepare(0, sample)
    by_key = {rollout.id: rollout for rollout in method.rollouts}
    drawn = page.sample(student, teacher, rows, [seeds[row.key] for row in rows], alpha, LONGEST)
    assert len({len(rollout.response) for rollout in drawn}) > 2  # they end at different steps
    for rollout in drawn:
        other = by_key[rollout.row.key]
        assert rollout.response == list(other.response)
        for ours, theirs in (("log_q", "student"), ("log_p", "teacher"), ("log_mix", "mixed")):
            torch.testing.assert_close(getattr(rollout, ours), getattr(other, theirs))

    (part,) = method.parts(0)
    theirs, _ = part.loss(student, part.rows)
    theirs.backward()
    gradients = [parameter.grad.clone() for parameter in student.parameters()]
    student.zero_grad()
    ours = page.minillm_loss(student, teacher, drawn, LONGEST)
    ours.backward()
    torch.testing.assert_close(ours, theirs)
    for parameter, gradient in zip(student.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_rouge_is_that_of_the_library() -> None:
    for found, reference in (([2, 3, 4], [2, 4, 5]), ([2], [3]), ([5, 4, 3, 2], [2, 3, 4, 5])):
        texts = [" ".join(page.WORDS[token] for token in tokens) for tokens in (found, reference)]
        expected = rouge_l(texts[0], [texts[1]])
        assert page.rouge_l(found, reference) == pytest.approx(expected)
