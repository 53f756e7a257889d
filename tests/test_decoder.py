"""Steps of fixed shape: replayed without Python, captured in graphs, several between two looks, in kept tensors."""

import copy
import itertools
import random

import pytest
import torch
from models_for_tests import END, tiny_gpt2
from pretended_cuda import MEMORY, PretendedCard
from test_adapters import LORA
from test_model_checks import FAMILIES, made

from takd.decoding import amounts, memory, replay
from takd.decoding.amounts import fitting_rows
from takd.decoding.decoder import Decoder
from takd.decoding.graphs import Graphs
from takd.decoding.memory import KeptDecoder, rows_that_fit
from takd.decoding.next_tokens import NextTokens
from takd.decoding.replay import Recording, Replayed, _Recorder
from takd.decoding.sampling import Decoding, Prompt, draw
from takd.models.causal_lm import hidden_states
from takd.models.logits import freeze
from takd.models.lora import add_lora
from takd.models.lowered import LoweredWeights

RECORDED = ("student", "teacher", "mixed", "teacher_hidden", "replaced")
VOCABULARY = 11


@pytest.fixture
def pair():
    return tiny_gpt2(1, width=8, scale=3), tiny_gpt2(2, width=16, scale=3)


def prompts_of(count, vocabulary=VOCABULARY, steps=20):
    """Prompts of different lengths, whose responses end at different steps."""
    words = random.Random(count)
    return [
        Prompt(
            [words.randrange(1, vocabulary) for _ in range(words.randrange(1, 9))],
            *(key, 7, words.randrange(1, steps + 1)),
        )
        for key in range(count)
    ]


def drawn(pair, count=20, rows=5, mix=0.3, vocabulary=VOCABULARY, steps=20, kept=None, **more):
    student, teacher = pair
    return draw(
        *(student, prompts_of(count, vocabulary, steps), Decoding(steps, **more)),
        end_token=END,
        vocabulary=vocabulary,
        micro_batch=rows,
        teacher=teacher,
        teacher_mix=mix,
        kept=kept,
    )


def assert_same(found, expected, bits=True):
    for one, other in zip(found, expected, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.finished == other.finished
        for name in RECORDED:
            mine, theirs = getattr(one, name), getattr(other, name)
            if bits:
                assert torch.equal(mine, theirs), name
            else:
                torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


# Replaying on a CPU -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_replayed_steps_are_the_models_own_in_every_bit(name, monkeypatch):
    model = made(name)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    pair = model, other
    vocabulary = model.get_output_embeddings().weight.shape[0]
    replays = []
    plain = Recording.replay

    def counted(self, *args):
        replays.append(self)
        return plain(self, *args)

    monkeypatch.setattr(Recording, "replay", counted)
    found = drawn(pair, vocabulary=vocabulary)
    assert len(replays) > 2 * len(set(replays)) > 0  # each more often than for its check
    monkeypatch.setattr(replay, "ATTEMPTS", 0)
    assert_same(found, drawn(pair, vocabulary=vocabulary))


def called(function, times=12):
    """What a replayed function returns, with a tensor that grows, and whether it was replayed in the end."""
    replayed = Replayed()
    found = []
    for columns in range(5, 5 + times):
        growing = torch.ones(2, columns)
        found.append(replayed("key", lambda x=growing: function(x), [growing], columns))
    return found, bool(replayed._checked)


def test_what_python_decides_in_each_call_is_not_replayed():
    numbers = itertools.count()
    found, replayed = called(lambda x: torch.zeros(1) + next(numbers))
    assert [x.item() for x in found] == sorted(x.item() for x in found)
    assert not replayed


def test_what_reads_numbers_from_tensors_is_not_replayed():
    state = torch.zeros(1)

    def function(x):
        state.add_(1)
        return torch.full((1,), state.item())

    found, replayed = called(function)
    assert [x.item() for x in found] == list(range(1, 13))
    assert not replayed


def test_operations_on_growing_tensors_are_replayed_with_the_current_ones():
    replayed = Replayed()
    base = torch.rand(2, 40)
    for columns in range(5, 30):
        moving = base[:, :columns]

        def function(moving=moving, columns=columns):
            wide = moving.reshape(2, 1, columns).expand(2, 3, columns) * 2
            return torch.softmax(wide, -1).cumsum(-1)[..., :2].sum(-1)

        assert torch.equal(replayed("key", function, [moving], columns), function())
    assert replayed._checked


def test_a_size_that_is_the_number_of_columns_once_is_not_taken_for_it():
    """As heads of 8 numbers are where attention sees 8 columns; 16 columns would divide them without an error."""
    replayed, fixed, base = Replayed(), torch.rand(2, 4, 8), torch.rand(2, 40)
    for columns in (7, 7, 7, 8, 16, 9, 10, 11, 12):
        moving = base[:, :columns]

        def function(moving=moving):
            mixed = fixed + moving[:, :1, None]
            return mixed.view(2, -1, 1, 8).transpose(1, 2).reshape(2, 32).sum(-1)

        assert torch.equal(replayed("key", function, [moving], columns), function())
    assert replayed._checked


# Weights that change between two draws ------------------------------------------------------------


@pytest.mark.parametrize("mix", [0.0, 0.3])
def test_a_kept_decoder_draws_with_the_weights_of_the_moment(pair, mix):
    kept = KeptDecoder()
    decoders = set()
    for turn in range(4):
        assert_same(drawn(pair, mix=mix, kept=kept), drawn(pair, mix=mix))
        decoders.add(kept.decoder)
        with torch.no_grad():
            for parameter in pair[0].parameters():
                if turn == 1:  # as an optimizer does, and as loading does
                    parameter.data = parameter * 1.1
                else:
                    parameter.mul_(1.1)
    assert len(decoders) == 1
    assert drawn(pair, mix=mix, kept=kept, steps=40)
    assert kept.decoder not in decoders  # the texts are longer
    kept.free()
    assert kept.decoder is None


def test_what_stands_beside_training_fits_into_memory(pair, monkeypatch):
    most = 0.5 * MEMORY
    with PretendedCard():
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: most)
        models = [model.to("cuda") for model in pair]
        kept = KeptDecoder()
        drawn(models, 6, kept=kept)
        assert kept.decoder is None  # nobody knows yet what training takes
        drawn(models, 6, kept=kept)
        first = kept.decoder
        assert first is not None
        drawn(models, 6, kept=kept)
        assert kept.decoder is first
        most = 0.85 * MEMORY - 1
        drawn(models, 6, kept=kept, steps=30)
        assert kept.decoder is None


# Several steps between two looks, in a graph ------------------------------------------------------


@pytest.fixture
def ahead(monkeypatch):
    """Eight steps between two looks on the CPU, too, and a model's own code in each of them."""
    monkeypatch.setitem(amounts.AHEAD, "cpu", 8)
    monkeypatch.setattr(replay, "ATTEMPTS", 0)


def captured(function):
    """Stands for a CUDA graph: the operations with their tensors' addresses, without Python's decisions."""
    with _Recorder([], 10**9) as recorder:
        function()
    assert recorder.known
    recording = Recording(recorder, recorder.kept[0])
    return lambda: recording.replay([], 10**9)


def with_graphs(monkeypatch, capture):
    plain = Graphs.__init__

    def init(self, device):
        plain(self, device)
        self.capture = capture

    monkeypatch.setattr(Graphs, "__init__", init)


TEACHERS = [{"mix": 0.0}, {"mix": 0.3}, {"mix": 0.0, "teacher_top_k": 3}]
SETTINGS = [
    {},
    {"temperature": 0.7},
    {"top_p": 0.8},
    {"top_k": 3},
    {"no_repeat_ngram": 2},
    {"sample": False},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_rows_that_end_between_two_looks_are_those_that_end_at_once(
    pair, teacher, settings, monkeypatch
):
    expected = drawn(pair, **teacher, **settings)
    monkeypatch.setitem(amounts.AHEAD, "cpu", 8)
    assert len({len(response.tokens) % 8 for response in expected}) > 4
    # the longest text may end at the model's last position
    assert_same(drawn(pair, **teacher, **settings), expected, bits=False)


# two settings of each teacher; the test above has all pairs
CAPTURED = [
    *((TEACHERS[0], SETTINGS[at]) for at in (0, 2)),
    *((TEACHERS[1], SETTINGS[at]) for at in (1, 3)),
    *((TEACHERS[2], SETTINGS[at]) for at in (0, 3)),
]


@pytest.mark.parametrize(("teacher", "settings"), CAPTURED)
def test_captured_steps_are_the_same_in_every_bit(pair, teacher, settings, ahead, monkeypatch):
    expected = drawn(pair, **teacher, **settings)
    graphs_of = []

    def counting(function):
        graph = captured(function)
        graphs_of.append(0)
        place = len(graphs_of) - 1

        def run():
            graphs_of[place] += 1
            graph()

        return run

    with_graphs(monkeypatch, counting)
    # a graph is of one number of columns, which grows on a CPU; on a GPU in steps of 64
    monkeypatch.setattr("takd.decoding.kv_cache.columns_seen", lambda last, device: 64)
    kept = KeptDecoder()
    found = drawn(pair, **teacher, kept=kept, **settings)
    assert_same(found, expected, bits=False)
    assert sum(graphs_of) > 3
    # of another round, with other weights at the same addresses
    with torch.no_grad():
        pair[0].lm_head.weight.mul_(1.1)
    again = drawn(pair, **teacher, kept=kept, **settings)
    with_graphs(monkeypatch, None)
    assert_same(again, drawn(pair, **teacher, **settings))


@pytest.mark.parametrize("trained", ["adapters", "partitioned"])
def test_captured_steps_follow_trained_weights_that_are_not_the_models_own(
    pair, trained, ahead, monkeypatch
):
    """LoRA's matrices beside frozen ones, under autocast; ZeRO-3's whole copy, refilled in half precision."""
    student, teacher = pair
    if trained == "adapters":
        add_lora(student, LORA, name="student", seed=1)
        moved = [weight for name, weight in student.named_parameters() if "lora_" in name]
    else:
        student = copy.deepcopy(student).bfloat16()
        moved = [*student.parameters()]
    freeze(teacher.bfloat16())
    runs, kept = [], KeptDecoder()

    def capture(function):
        graph = captured(function)

        def run():
            runs.append(graph)
            graph()

        return run

    monkeypatch.setattr("takd.decoding.kv_cache.columns_seen", lambda last, device: 64)

    def both():
        found = []
        for way in (capture, None):
            with_graphs(monkeypatch, way)
            with torch.autocast("cpu", torch.bfloat16, enabled=trained == "adapters"):
                held = kept if way else None
                found.append(drawn((student.eval(), teacher), 40, kept=held))
        assert_same(*found)
        return found[0]

    first = both()
    with torch.no_grad():
        for weight in moved:
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.manual_seed(2)))
    before = len(runs)
    second = both()
    # a graph of the first draw, with other weights
    assert runs[0] in runs[before:]
    assert [x.tokens.tolist() for x in first] != [x.tokens.tolist() for x in second]


def test_tensors_of_a_step_stay_where_they_are(pair, ahead, monkeypatch):
    seen = {}
    plain = Decoder._several

    def several(self):
        plain(self)
        now, rows = self.next.now, len(self.rows)
        tensors = [
            *self.states[rows],
            now.found.buffer,
            now.drawn_pb,
            now.noise_pbv,
            now.logits_kbv,
        ]
        tensors += [self.next.words_2bt, *(cache._step.ends_kb for cache in self.caches)]
        tensors += [x for cache in self.caches for x in (*cache._keys, *cache._values)]
        seen.setdefault((id(self), rows), []).append([x.data_ptr() for x in tensors])

    monkeypatch.setattr(Decoder, "_several", several)
    drawn(pair, count=40)
    assert max(map(len, seen.values())) > 5
    for places in seen.values():
        assert all(place == places[0] for place in places)


def test_decoding_goes_on_where_capturing_fails(pair, ahead, monkeypatch):
    expected = drawn(pair)

    def fails(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    with_graphs(monkeypatch, fails)
    with pytest.warns(UserWarning, match="goes on without CUDA graphs.*not permitted") as warned:
        assert_same(drawn(pair), expected)
    assert len(warned) == 1


def test_what_waits_for_the_card_is_not_captured(pair, ahead, monkeypatch):
    expected = drawn(pair)
    plain = NextTokens.sample

    def waiting(self, *args):
        tokens_b = plain(self, *args)
        tokens_b.max().item()
        return tokens_b

    monkeypatch.setattr(NextTokens, "sample", waiting)
    with_graphs(monkeypatch, lambda function: pytest.fail("captured"))
    with pytest.warns(UserWarning, match="_local_scalar_dense.* waits for the GPU"):
        assert_same(drawn(pair), expected)


# Half precision -----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_weights_that_are_cast_once_give_what_autocast_gives(name):
    model = made(name)
    ids, before = torch.tensor([[3, 4, 5, 6]]), copy.deepcopy(model.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        expected = hidden_states(model, ids)
        lowered = LoweredWeights(model)
        assert lowered.copies
        with lowered.used():
            assert torch.equal(hidden_states(model, ids), expected)
            assert {copy.dtype for *_, copy in lowered.copies} == {torch.bfloat16}
        with pytest.raises(KeyError), lowered.used():
            raise KeyError
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[key])
    assert not LoweredWeights(model).copies
    with torch.autocast("cpu", torch.bfloat16):
        assert not LoweredWeights(freeze(model)).copies


# Rows that fit into memory ------------------------------------------------------------------------


def test_rows_are_those_that_fit_and_are_worth_it():
    for device in ("cpu", "cuda"):
        rows = [fitting_rows(2**20, 1000, 1, False, device, 2.0**free) for free in range(18, 48)]
        assert rows == sorted(rows)
        assert (rows[0], rows[-1]) == (1, amounts.WORTH[device])
    for rows in (1, 3, 48, 128):
        for vocabulary in (11, 50257):
            positions = amounts.noisy_positions(rows, vocabulary, "cuda")
            assert positions in (1, 2, 4, 8)
            assert positions == 1 or 4 * positions * rows * vocabulary <= amounts.NOISE_BYTES


def test_texts_do_not_depend_on_the_memory(pair, monkeypatch):
    models = list(pair)
    monkeypatch.setattr(memory, "free_memory", lambda device: 2.0**40)
    assert rows_that_fit(models, 30, 20, VOCABULARY, True) == amounts.WORTH["cpu"]
    many = drawn(pair, count=80, rows=None)
    monkeypatch.setattr(memory, "free_memory", lambda device: 2.0**20)
    assert 1 <= rows_that_fit(models, 30, 20, VOCABULARY, True) < 16
    assert_same(drawn(pair, count=80, rows=None), many, bits=False)
