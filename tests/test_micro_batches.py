"""How a step's rows are divided among processes and micro-batches, laid out, and given to those that need them."""

import threading
from types import SimpleNamespace

import pytest
import torch
from models_for_tests import MINILLM_REFERENCE, context, tiny_gpt2

from takd.decoding.prompts import Response
from takd.losses.batch import RightPadded, by_length, spans
from takd.losses.chunked import sum_over_tokens
from takd.losses.teacher_logits import KEPT_SHARE, kept
from takd.methods import policy_gradient
from takd.methods.minillm import MiniLLM, Rollout
from takd.models.logits import project, unchanged
from takd.training import rollouts

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("lengths", "rows", "tokens", "expected"),
    [
        ([1, 2, 3, 4, 5], 2, 0, [2, 2, 1]),
        ([5] * 8, 3, 0, [3, 3, 2]),
        ([1, 1, 1, 1, 9, 9], 4, 10, [4, 1, 1]),
        ([2, 2, 2, 2, 2], 8, 6, [3, 2]),
        ([50, 60], 8, 10, [1, 1]),  # longer than the limit: alone
        ([1, 1, 1, 20], 8, 40, [3, 1]),  # padding counts
        ([], 8, 10, []),
    ],
)
def test_micro_batches_by_rows_and_by_tokens(lengths, rows, tokens, expected):
    found = list(spans(lengths, rows, tokens))
    assert [len(lengths[span]) for span in found] == expected
    assert [i for span in found for i in range(len(lengths))[span]] == list(range(len(lengths)))


@pytest.mark.parametrize(
    ("lengths", "padding", "expected"),
    [
        ([16, 16, 16, 32, 32, 64], 40, [3, 2, 1]),  # of 48, 64 and more tokens
        ([16, 16, 32, 48], 50, [4]),
        ([16, 16, 16, 48], 0, [4]),
    ],
)
def test_a_longer_text_that_would_pad_many_begins_a_batch(lengths, padding, expected):
    found = list(spans(lengths, 8, 0, padding))
    assert [len(lengths[span]) for span in found] == expected


def test_texts_are_laid_out_token_by_token():
    """As a loop over them does it: empty prompts, single tokens, and texts of all lengths."""
    drawn = torch.Generator().manual_seed(1)
    for _ in range(50):
        sizes = torch.randint(0, 6, (5, 2), generator=drawn).tolist()
        texts = [([7] * p, list(range(1, 2 + r))) for p, r in sizes]
        batch = RightPadded.of(texts, CPU)
        width = max(len(p) + len(r) for p, r in texts)
        ids, places, targets, counts = [], [], [], []
        for row, (prompt, response) in enumerate(texts):
            whole = [*prompt, *response]
            ids.append(whole + [0] * (width - len(whole)))
            at = range(max(len(prompt), 1) - 1, len(whole) - 1)
            places += [row * width + column for column in at]
            targets += [whole[column + 1] for column in at]
            counts.append(len(at))
        assert batch.ids_bt.tolist() == ids
        assert batch.places_n.tolist() == places
        assert batch.targets_n.tolist() == targets
        assert batch.counts == counts
        assert [len(part) for part in batch.split(batch.targets_n)] == counts


def test_batches_of_similar_length_keep_to_both_limits():
    texts = [([1], [2] * (1 + i % 9)) for i in range(40)]
    seen = []
    for chosen, batch in by_length(texts, 6, CPU, 24):
        assert len(chosen) <= 6
        assert batch.ids_bt.numel() <= 24
        seen += chosen
    assert sorted(seen) == list(range(40))


def rolled(count: int, width: int = 32) -> list[Rollout]:
    drawn = torch.Generator().manual_seed(2)
    found = []
    for i in range(count):
        length = 1 + (5 * i) % 13
        scores = [-3 * torch.rand(length, generator=drawn) for _ in range(3)]
        hidden = torch.randn(length, width, generator=drawn)
        found.append(Rollout(i, i, [1] * (1 + i % 4), [2] * length, *scores, hidden))
    return found


@pytest.mark.parametrize("importance", ["token", "prefix", "per_decision", "none"])
def test_values_of_all_tokens_at_once_are_those_of_each_response(importance):
    """Bit by bit: what is computed at once follows no other order."""
    settings = {**MINILLM_REFERENCE, "importance": importance}
    method = MiniLLM(context(settings, tiny_gpt2(1, 11, 32), 11))
    rows = method.with_advantages(rolled(9))
    columns = method.columns(rows, CPU)
    weights = {
        "token": lambda r: (r.student - r.mixed).exp(),
        "prefix": lambda r: (r.student - r.mixed).cumsum(0).exp(),
        "per_decision": lambda r: torch.ones_like(r.student),
        "none": lambda r: torch.ones_like(r.student),
    }[importance]
    assert torch.equal(columns["weight"], torch.cat([weights(row) for row in rows]))
    rewards = torch.cat([row.teacher - row.student for row in rows])
    assert torch.equal(columns["reward"], rewards)
    if importance == "per_decision":
        logs = [row.student - row.mixed for row in rows]
        states = torch.cat([(log.cumsum(0) - log).exp() for log in logs])
        assert torch.equal(columns["state_weight"], states)
        rewards = torch.cat(
            [
                policy_gradient.rewards(row.student, row.teacher, 0.5, 100.0) * log.cumsum(0).exp()
                for row, log in zip(rows, logs, strict=True)
            ]
        )
        assert torch.equal(method.weighted_rewards(rows), rewards)
    else:
        assert torch.equal(columns["state_weight"], columns["weight"])


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_returns_do_not_depend_on_the_room_of_their_discounts(length):
    rewards = torch.randn(3, length, generator=torch.Generator().manual_seed(length))
    later = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    weights = torch.where(later >= 0, 0.95 ** later.clamp(min=0), 0.0)
    found = policy_gradient.returns(rewards, torch.full((3,), length), 0.95, True, False)
    assert torch.equal(found, rewards @ weights.T)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_hidden_states_go_to_the_processes_that_train_on_them(processes, monkeypatch):
    """Each has those of its rows in every step, the first one all; nothing is sent twice or to others."""
    monkeypatch.setattr(rollouts, "AT_ONCE", 4)
    teacher, count, size = tiny_gpt2(1, 11, 32), 12, 6
    rows = rolled(count)
    lengths = [len(row) for row in rows]
    uses = [[(i * 5 + step) % count for i in range(size)] for step in range(4)]
    needed = rollouts.wanted(uses, lengths, processes)
    assert needed[0] == set(range(count))
    for process in range(1, processes):
        mine = set()
        for batch in uses:
            ordered = sorted(batch, key=lambda i: lengths[i])
            mine |= set(ordered[process::processes])
        assert needed[process] == mine
    owned = [set(range(p, count, processes)) for p in range(processes)]

    here, barrier = threading.local(), threading.Barrier(processes)
    sent: dict[int, list[torch.Tensor]] = {}

    def all_to_all(taken, given, take, give):
        sent[here.rank] = list(given.split(give))
        barrier.wait()
        taken.copy_(torch.cat([sent[other][here.rank] for other in range(processes)]))
        assert [len(sent[other][here.rank]) for other in range(processes)] == take
        barrier.wait()

    fake = SimpleNamespace(get_rank=lambda: here.rank, all_to_all_single=all_to_all)
    monkeypatch.setattr(rollouts, "dist", fake)
    results: dict[int, list[Response]] = {}

    def run(rank: int) -> None:
        here.rank = rank
        nothing = torch.zeros(0)
        responses = [
            Response(torch.tensor(row.response), True, row.student, row.teacher, row.mixed, nothing)
            for row in rows
        ]
        hidden = {i: rows[i].teacher_hidden for i in owned[rank]}
        rollouts.deliver(responses, hidden, owned, needed, teacher, lambda states: states)
        results[rank] = responses

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(processes):
        for i, response in enumerate(results[rank]):
            states = response.teacher_hidden
            assert (
                torch.equal(states, rows[i].teacher_hidden)
                if i in needed[rank]
                else not len(states)
            )


def test_hidden_states_leave_a_card_that_they_would_fill(monkeypatch):
    card = torch.device("cuda", 0)
    memory = SimpleNamespace(total_memory=1600)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **_: moved.append(device) or self)
    states = torch.zeros(2, 3)
    assert kept(states, card, KEPT_SHARE * 1600) is states and moved == [card]
    assert kept(states, card, KEPT_SHARE * 1600 + 1).tolist() == (states + 1).tolist()
    assert moved == [card]


def test_the_head_is_cast_once_while_its_weight_is_unchanged():
    """And anew afterwards: an optimizer that changes weights by one kernel leaves no trace of it."""
    model = tiny_gpt2(1, 11).train()
    hidden = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    targets = torch.tensor([1, 2, 3, 4, 5, 6])

    def loss() -> torch.Tensor:
        def of_tokens(logits_mv, columns):
            return -logits_mv.log_softmax(-1).gather(-1, columns["target"][:, None])[:, 0], {}

        with torch.autocast("cpu", torch.bfloat16):
            return sum_over_tokens(of_tokens, model, hidden, {"target": targets}, 9)[0]

    with unchanged(model):
        first = loss()
        first.backward()
        with torch.autocast("cpu", torch.bfloat16):
            logits = project(model, hidden, 9)
        (cast,) = model.lm_head.takd_casts.values()
        assert torch.equal(cast, model.lm_head.weight[:9].bfloat16())
        assert torch.equal(loss(), first)
        assert next(iter(model.lm_head.takd_casts.values())) is cast
    optimizer.step()
    for within in (True, False):
        with unchanged(model) if within else torch.enable_grad():
            found = loss()
            with torch.autocast("cpu", torch.bfloat16):
                now = project(model, hidden, 9)
        assert not torch.equal(found, first) and not torch.equal(now, logits)
    assert not hasattr(model.lm_head, "takd_casts")
