"""A world whose responses can all be listed: its data, its tokenizer, and exact divergences against brute force."""

import itertools
import json
import math
from collections import Counter

import pytest
import torch
from datasets import load_from_disk
from models_for_tests import tiny_gpt2
from sealing import write_json
from test_data import run_prepare, run_tokenizer
from test_evaluation_likelihoods import TEACHERS, likelihoods, read
from test_experiment import GOOD, edit
from test_experiment import read as read_experiment
from test_report import STUDY, make
from test_report_figures import results_of
from transformers import AutoModelForCausalLM, AutoTokenizer
from workspace import Workspace

from takd.analysis import exports, table
from takd.data import demo, letters
from takd.evaluation.exact import Responses
from takd.experiment import specs
from takd.experiment.experiment import load
from takd.report import results_page
from takd.report.figures.exact import exact
from takd.runtime.errors import InputError

LETTERS = list(letters.LETTERS)
END = len(LETTERS)
PLAIN = {"with_input": "{instruction} {input}", "without_input": "{instruction}"}


def responses(vocabulary, ends, tokens):
    """All responses: without an end token only those of the greatest length."""
    others = [token for token in range(vocabulary) if token not in ends]
    for length in range(tokens):
        for said in itertools.product(others, repeat=length):
            yield from ((*said, end) for end in ends)
    yield from itertools.product(others, repeat=tokens)


@torch.no_grad()
def probability(model, prompt, response, vocabulary):
    """That of a response, by one plain pass."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    log_tv = logits[:, :vocabulary].log_softmax(-1)
    return log_tv[range(len(response)), list(response)].sum().item()


def brute_force(student, other, prompts, vocabulary, ends, tokens):
    """Mean reverse and forward KL over prompts, response by response."""
    sums = [0.0, 0.0]
    for prompt in prompts:
        for response in responses(vocabulary, ends, tokens):
            q, p = (log_p(prompt, response) for log_p in (student, other))
            sums[0] += math.exp(q) * (q - p)
            sums[1] += math.exp(p) * (p - q)
    return [value / len(prompts) for value in sums]


@pytest.mark.parametrize(
    ("vocabulary", "ends", "tokens", "prompt"),
    [
        *((4, (0,), 3, [1]), (4, (3,), 3, [2, 0, 1]), (3, (1,), 4, [0]), (6, (5,), 1, [3])),
        (5, (2, 4), 3, [0, 4]),  # a chat model may have several end tokens
    ],
)
def test_divergences_are_those_of_brute_force(vocabulary, ends, tokens, prompt):
    # the models have further entries, as padded ones do, which no side may count
    q, p = (tiny_gpt2(seed, vocabulary + 3).double() for seed in (1, 2))
    listed = Responses(tokens, vocabulary, ends)
    found = listed.divergences(*(listed.of_model(model)(prompt) for model in (q, p)))
    student, other = (
        lambda prompt, response, model=model: probability(model, prompt, response, vocabulary)
        for model in (q, p)
    )
    assert found == pytest.approx(
        brute_force(student, other, [prompt], vocabulary, ends, tokens), abs=1e-12
    )
    assert min(found) > 0.01
    own = listed.of_model(q)(prompt)
    assert listed.divergences(own, own) == (0.0, 0.0)


def spoken(seed, prompt, response):
    """Log-probability of a response in the world of a seed, token by token."""
    world, said = letters.world(seed), list(prompt)
    total = 0.0
    for token in response:
        total += math.log(world.next(said)[token])
        said.append(token)
    return total


def test_the_truth_is_that_of_the_data_whatever_the_order_of_the_tokens():
    model, ids, end = tiny_gpt2(3, 5).double(), [3, 0, 4, 1], 2
    listed = Responses(3, 5, (end,))
    found = listed.divergences(listed.of_model(model)([0, 3]), listed.of_letters(7, ids)([0, 3]))
    number = {token: at for at, token in enumerate([*ids, end])}

    def truth(prompt, response):
        return spoken(7, [number[t] for t in prompt], [number[t] for t in response])

    def student(prompt, response):
        return probability(model, prompt, response, 5)

    assert found == pytest.approx(brute_force(student, truth, [[0, 3]], 5, [end], 3), abs=1e-12)
    masses = [math.exp(truth([0, 3], each)) for each in responses(5, [end], 3)]
    assert math.fsum(masses) == pytest.approx(1, abs=1e-12)


@pytest.mark.slow
def test_rows_are_draws_from_the_distribution_that_is_compared_with():
    drawn = list(demo.rows("train", 32_000, seed=1, topics=["letters"]))
    assert {row[1] for row in drawn} == {""}
    prompts = Counter(asked for asked, _, _ in drawn)
    assert set(prompts.values()) == {2000} and len(prompts) == 16
    counts = Counter((asked, said) for asked, _, said in drawn)
    assert any(said == "" for _, said in counts)
    for prompt in ("a b", "d d"):
        asked = [LETTERS.index(letter) for letter in prompt.split()]
        statistic, cells = 0.0, 0
        for response in responses(5, [END], letters.LENGTH):
            expected = 2000 * math.exp(spoken(1, asked, response))
            if expected >= 5:  # as a test of Pearson's χ² wants it
                said = " ".join(LETTERS[token] for token in response if token != END)
                statistic += (counts[prompt, said] - expected) ** 2 / expected
                cells += 1
        assert cells > 30
        assert abs(statistic - cells) < 4 * math.sqrt(2 * cells)
    assert list(demo.rows("dev", 32_000, seed=1, topics=["letters"])) != drawn
    # pinned: another world makes other numbers in the documentation
    assert [said for _, _, said in drawn[:3]] == ["b c c c", "c c c", "c c d c b c"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    return run_tokenizer(folder, {"source": {"words": LETTERS}, "template": PLAIN})


def test_a_tokenizer_of_words_loads_in_transformers(words):
    facts = json.loads(words.read_text())
    assert (facts["vocabulary"], facts["end"], facts["pad"]) == (5, 4, 4)
    tokenizer = AutoTokenizer.from_pretrained(words.parent / "tokenizer")
    assert tokenizer("a  d b").input_ids == [0, 3, 1]
    assert tokenizer.decode([0, 3, 1, 4], skip_special_tokens=True) == "a d b"
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id) == (5, 4, 4)
    message = [{"role": "user", "content": "a b", "input": ""}]
    assert tokenizer.apply_chat_template(message, return_dict=False) == [0, 1]


@pytest.mark.parametrize("text", ["a e", "A", "ab", "a <|endoftext|>"])
def test_words_that_a_tokenizer_lacks_are_refused(words, tmp_path, text):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"instruction": "a b", "output": text}) + "\n")
    with pytest.raises(InputError, match="of `words`, words that it lacks"):
        run_prepare(tmp_path, words, "train", {"json": str(file)}, template=PLAIN)


@pytest.mark.slow
def test_empty_responses_of_a_distribution_are_kept(words, tmp_path):
    source = {"demo": {"part": "train", "rows": 4000, "seed": 1, "topics": ["letters"]}}
    settings = {"template": PLAIN, "max_length": 8, "max_prompt_length": 2}
    for split in ("train", "heldout"):
        scored = {"rouge_tokenizer": "auto"} if split == "heldout" else {}
        data, manifest = run_prepare(tmp_path, words, split, source, **settings, **scored)
        assert len(data) == manifest["counts"]["kept"] == 4000
        assert [END] in data["response_ids"]
        assert {len(ids) for ids in data["prompt_ids"]} == {2}
        assert max(map(len, data["response_ids"])) == letters.LENGTH


# settings

WORLD = """
tokenizer: {words: [a, b, c, d]}
models:
  large: {weights: {scratch: {layers: 1, width: 8, heads: 2, positions: 8}}}
  small: {weights: {scratch: {layers: 1, width: 4, heads: 2, positions: 8}}}
data:
  train: {demo: {part: train, rows: 64, topics: [letters]}}
  dev: {demo: {part: dev, rows: 16, topics: [letters]}}
  max_length: 8
  max_prompt_length: 2
chains: [{models: [large, small], methods: [minillm]}]
training: {sft: {epochs: 3}, minillm: {}}
evaluation: {exact: true, sets: {letters: {demo: {part: test, rows: 16, seed: 3, topics: [letters]}}}}
"""


def test_the_settings_of_a_world_that_can_be_listed(tmp_path):
    found = read_experiment(tmp_path, WORLD)
    # embeddings of five tokens and eight positions, one block, a norm
    assert found.parameters["small"] == 4 * (5 + 8) + 12 * 16 + 13 * 4 + 8
    spec = specs.likelihoods(found, "large-sft__small-minillm", 10, "letters")
    assert spec["exact"] == {"tokens": 6, "letters": 3}
    assert specs.tokenizer(found)["source"] == {"words": LETTERS}
    off = read_experiment(tmp_path, edit("exact: true, ", "", WORLD))
    assert "exact" not in specs.likelihoods(off, "large-sft__small-minillm", 10, "letters")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("max_length: 8", "max_length: 12"), "a response of up to 10 tokens out of 5 has more"),
        (("[a, b, c, d]", "[a, b, c]"), "tokenizer.words must be \\['a', 'b', 'c', 'd'\\]"),
        (("[a, b, c, d]", "[a, b, c, 'd e']"), "must be a word without blanks"),
        (("[a, b, c, d]", "[a, b, c, <|endoftext|>]"), "must be a word without blanks"),
        (("words: [a, b, c, d]", "words: [a], vocabulary: 2"), "train and words have their own"),
        (("topics: [letters]", "topics: [facts, letters]"), "letters stand alone"),
        (("max_length: 8", "max_length: 8\n  template: chat"), "has no chat template"),
    ],
)
def test_what_cannot_be_listed_is_refused(tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        read_experiment(tmp_path, edit(*change, WORLD))


def test_a_vocabulary_that_is_not_stated_cannot_be_listed(tmp_path):
    assert "evaluation:" in GOOD
    with pytest.raises(InputError, match=r"exact is true, (for which|but a response)"):
        read_experiment(tmp_path, edit("evaluation:", "evaluation:\n  exact: true", GOOD))


def test_the_shipped_world_is_small_enough(tmp_path):
    from conftest import ROOT

    found = load(ROOT / "config/experiments/enumerable.yaml", ROOT)
    assert found.settings["evaluation"]["exact"] and found.longest_response == letters.LENGTH
    assert len(found.settings["tokenizer"]["words"]) + 1 <= 5


# the stage, and what is shown of it


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    space = Workspace(
        tmp_path_factory.mktemp("workspace"), ["a", "b", "c", "d", "x", "y", "z", "q"]
    )
    space.finished(space.train("model", "sft", steps=10, evaluate_every=10))
    base = {"inputs": {"base": "teacher"}}
    space.finished(space.train("oracle", "sft", **base, steps=20, evaluate_every=20))
    for name, lineage in (("model", "teacher-sft__student-kd"), ("oracle", "teacher-sft")):
        space.finished(space.evaluate(f"{name}-answers", name))
        for file in (f"{name}/manifest.json", f"{name}-answers/scores.json"):
            path = space.folder / file
            write_json(path, json.loads(path.read_text()) | {"lineage": lineage})
    return space


def test_the_stage_lists_all_responses_after_each_prompt_once(workspace):
    workspace.finished(likelihoods(workspace, "listed", teachers=TEACHERS, exact={"tokens": 2}))
    workspace.finished(likelihoods(workspace, "plain", teachers=TEACHERS))
    found, lines = read(workspace.folder / "listed")
    plain, others = read(workspace.folder / "plain")
    dev = load_from_disk(str(workspace.folder / "dev" / "dataset"))
    prompts = list(dict.fromkeys(map(tuple, dev["prompt_ids"])))
    student, oracle = (
        AutoModelForCausalLM.from_pretrained(workspace.folder / name / "model").double().eval()
        for name in ("model", "oracle")
    )
    vocabulary = len(workspace.tokenizer)
    sides = (
        lambda prompt, response, model=model: probability(model, prompt, response, vocabulary)
        for model in (student, oracle)
    )
    reverse, forward = brute_force(*sides, prompts, vocabulary, [0], 2)
    assert found["exact"] == {
        role: pytest.approx({"reverse_kl": reverse, "forward_kl": forward}, rel=1e-9)
        for role in ("direct", "first")
    }
    listed = [line.pop("exact")["direct"] for line in lines if "exact" in line]
    assert len(listed) == len(prompts)
    # all else is as without
    assert lines == others
    differing = ("exact", "spec", "digest", "files")
    assert {k: v for k, v in found.items() if k not in differing} == {
        k: v for k, v in plain.items() if k not in differing
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The study's chains with divergences: 0.4 through assistants and 0.5 directly, plus a hundredth a seed."""
    root = tmp_path_factory.mktemp("results")
    spec = make(root, STUDY, (1, 2, 3))
    for file in root.glob("evaluations/*/seed*/*/likelihoods/likelihoods.json"):
        record = json.loads(file.read_text())
        lineage = record["lineage"]
        value = 0.4 if lineage.count("__") > 1 else 0.5
        both = {f"{kind}_kl": value + record["seed"] / 100 for kind in ("reverse", "forward")}
        roles = ("direct", "first", "truth") if "__" in lineage else ("truth",)
        write_json(file, record | {"exact": dict.fromkeys(roles, both)})
    return results_of(root, spec)


@pytest.mark.slow
def test_divergences_have_intervals_over_trainings(results):
    found = table.rows(table.of(results), kind="score", measure="exact_first_reverse_kl")
    direct = next(each for each in found if each.lineage.count("__") == 1)
    half = 4.302653 * 0.01 / math.sqrt(3)  # Student's t with two degrees of freedom
    assert (direct.value, direct.low, direct.high) == pytest.approx(
        (0.52, 0.52 - half, 0.52 + half)
    )
    assert "exact_first_reverse_kl_low" in exports.results_csv(results).splitlines()[0]
    assert "0.5200" in results_page.page(results)


@pytest.mark.slow
def test_the_figure_says_what_an_assistant_changes(results):
    drawing = exact(results)
    through = [row for row in drawing.numbers if row["lineage"].count("__") > 1]
    assert through and all(
        row["minus_direct"] == pytest.approx(-0.1)
        and row["minus_direct_low"] == pytest.approx(-0.1)
        for row in through
        if row["minus_direct"] is not None
    )
    assert any(row["minus_direct"] is not None for row in through)
    assert "−0.1000" in drawing.note
    assert "to the truth" in drawing.svg


def test_no_figure_without_exact_divergences(tmp_path):
    assert exact(results_of(tmp_path, make(tmp_path, STUDY))) is None
