"""Tokens of ROUGE-L in every script: what can be seen, what is chosen, what is said, and which weights are kept."""

import itertools
import json
import math
import random
import string
from functools import partial

import pytest
from nltk.tokenize import wordpunct_tokenize
from rouge_score.rouge_scorer import RougeScorer
from sealing import write_json
from test_data import run_prepare, train_tokenizer, write
from test_report import DIRECT, make, rows_of, run
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from workspace import Workspace

from takd.data import summary
from takd.data.page import SCORABLE
from takd.metrics import words
from takd.metrics.diversity import distinct, self_bleu
from takd.metrics.diversity import words as words_of
from takd.metrics.parallel import of_prompt, pooled, score
from takd.metrics.rouge import rouge_l
from takd.runtime.files import read_json
from takd.runtime.stage import Stage
from takd.training.best_weights import Best

# a text, another one that shares half of its tokens in order, and how many tokens it has
SCRIPTS = {
    "Chinese": ("红色蓝色", "红色绿草", 4),
    "Japanese": ("赤い猫だよ", "赤い猫", 5),
    "Thai": ("แมวสีแดง", "แมวสีดำ", 7),
    "Korean": ("빨간 고양이", "빨간 개", 2),
    "Russian": ("красный кот", "красный пёс", 2),
    "Greek": ("κόκκινη γάτα", "κόκκινη πόρτα", 2),
    "Arabic": ("قِطَّةٌ حَمْراء", "قِطَّةٌ سوداء", 2),
    "Persian": ("می‌خواهم بروم", "می‌خواهم بمانم", 2),
    "Hebrew": ("חתול אדום", "חתול שחור", 2),
    "Hindi": ("लाल बिल्ली", "लाल कुत्ता", 2),
    "Tamil": ("சிவப்பு பூனை", "சிவப்பு நாய்", 2),
    "Georgian": ("წითელი კატა", "წითელი ძაღლი", 2),
    "Armenian": ("կարմիր կատու", "կարմիր շուն", 2),
    "emoji": ("😀 🐈", "😀 🐕", 2),
}
LATIN = [
    "crème brûlée à la carte",
    "Việt Nam rất đẹp",
    "żółta łódź pływa",
    "ñandú y cigüeña",
    "İstanbul’da güzel",
]


def standard(text, reference):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return 100 * scorer.score(reference, text)["rougeL"].fmeasure


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_scores_itself_and_what_is_like_it(name):
    text, like, count = SCRIPTS[name]
    assert standard(text, text) == 0, "or this script is no case"
    assert len(words.tokens(text)) == count
    assert rouge_l(text, [text], "unicode") == rouge_l(text, [text]) == 100
    assert 0 < rouge_l(like, [text], "unicode") < 100
    assert words.unseen([text, "+"])
    # as an answer among ASCII it is not
    assert not words.unseen([f"the word for the red cat is {text[:1]}"])
    assert not words.unseen([text, "red cat"])


def test_tokens_by_hand():
    assert words.tokens("GPT-4是好模型。") == ["gpt", "4", "是", "好", "模", "型"]
    assert words.tokens("ｶﾞｰﾄﾞ ﬁn ＡＢＣ") == ["ガ", "ー", "ド", "fin", "abc"]
    assert words.tokens("é ΣΊΣ é σίς") == ["é", "σίσ", "é", "σίσ"]
    assert words.tokens("我a\u0301b क्षि कर्म") == ["我", "áb", "क्षि", "कर्म"]
    assert words.tokens("« 3 € — 5 » …") == ["3", "€", "5"]
    assert words.tokens("+ ? - 。") == []


def test_ascii_text_has_the_same_tokens_and_scores_with_both():
    draws = random.Random(3)
    texts = [
        "".join(draws.choices(string.printable + "   running dogs", k=draws.randrange(80)))
        for _ in range(300)
    ]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for text, other in itertools.pairwise(texts):
        expected = 100 * scorer.score(other, text)["rougeL"].fmeasure
        assert rouge_l(text, [other], "unicode") == rouge_l(text, [other], "standard") == expected
        assert words.pieces(text) == wordpunct_tokenize(text)


@pytest.mark.parametrize("text", LATIN)
def test_text_in_latin_letters_keeps_the_standard_tokens(text):
    other = f"{text} {LATIN[0]}"
    assert words.suited([text]) == "standard"
    assert rouge_l(other, [text]) == standard(other, text)


def test_all_measures_of_a_prompt_have_the_tokens_of_the_set():
    texts, references = ["红色的猫", "红色的狗"], ["红色的猫"]
    plain, found = (of_prompt(tokens, texts, references) for tokens in ("standard", "unicode"))
    assert plain["rougeL"] == [0, 0] and found["rougeL"] == [100, 75]
    assert plain["exact_match"] == found["exact_match"] == [100, 0]
    assert (
        plain["self_bleu"] == 0 < found["self_bleu"] == pytest.approx(self_bleu(texts, "unicode"))
    )
    assert distinct(texts, 1) == 100 and distinct(texts, 1, "unicode") == pytest.approx(100 * 5 / 8)
    assert words_of("红色，猫 cat_2", "unicode") == ["红", "色", "，", "猫", "cat_2"]
    assert words_of("红色，猫 cat_2") == ["红色", "，", "猫", "cat_2"]
    assert words.pieces("लाल, बिल्ली") == ["लाल", ",", "बिल्ली"]
    many = ([texts] * 3, [references] * 3)
    alone, together = score(*many, 1, "unicode"), pooled(partial(of_prompt, "unicode"), *many, 2)
    assert alone == together == [found] * 3


@pytest.mark.parametrize(
    ("unseen", "rows", "chosen"),
    [
        *((0, 5, "standard"), (1, 8, "unicode"), (1, 100, "unicode"), (1, 101, "standard")),
        *((9, 9, "unicode"), (0, 0, "standard")),
    ],
)
def test_a_set_has_one_choice(unseen, rows, chosen):
    assert words.choose(unseen, rows) == chosen


# the data stage


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizer")
    rows = [{"instruction": "Say red blue green.", "output": f"cat {n} tree"} for n in range(60)]
    return train_tokenizer(place, write(place / "rows.jsonl", rows), vocabulary=280)


def rows_with(*outputs):
    return [{"instruction": f"Say {n}.", "output": output} for n, output in enumerate(outputs)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_data_stage_chooses_tokens_that_see_the_set(byte_level, tmp_path, capsys, name):
    source = write(tmp_path / "rows.jsonl", rows_with(*SCRIPTS[name][:2]))
    _, manifest = run_prepare(tmp_path, byte_level, "test", source, rouge_tokenizer="auto")
    assert manifest["rouge_tokenizer"] == "unicode"
    assert manifest["scorable"]["counts"] == {
        "unseen_by_standard": 2,
        "scores_0_with_standard": 2,
        "scores_0_with_unicode": 0,
        "changed": 0,
    }
    said = capsys.readouterr().out
    assert "the references of 2 of 2 rows (rows 0, 1) are mostly of letters" in said
    assert "do not compare with standard ones" in said and "no token" not in said
    _, manifest = run_prepare(tmp_path, byte_level, "test", source, rouge_tokenizer="standard")
    assert manifest["rouge_tokenizer"] == "standard"
    said = capsys.readouterr().out
    assert "set evaluation.rouge_tokenizer: unicode" in said and "have no token" in said


@pytest.mark.parametrize(
    ("outputs", "chosen", "counts", "says"),
    [
        pytest.param(["a cat", "two dogs"], "standard", (0, 0, 0), [], id="English"),
        pytest.param(LATIN, "standard", (0, 0, 0), [], id="accents"),
        pytest.param(
            ["+", "a", "?!", "..."],
            "standard",
            (0, 3, 3),
            ["3 of 4 rows (rows 0, 2, 3) have no token"],
            id="ASCII signs",
        ),
        pytest.param(
            ["。", "，", "红"],
            "unicode",
            (1, 3, 2),
            ["1 of 3 rows (row 2) are mostly", "2 of 3 rows (rows 0, 1) have no token"],
            id="other signs",
        ),
        pytest.param(
            [["красный", "red"], "blue"], "standard", (0, 0, 0), [], id="one of two is seen"
        ),
        pytest.param(
            [["красный", "+"], "blue"],
            "unicode",
            (1, 1, 0),
            ["1 of 2 rows (row 0) are mostly"],
            id="none of two is seen",
        ),
        pytest.param(
            ["Python — это язык", "answer 3"],
            "unicode",
            (1, 0, 0),
            ["1 of 2 rows (row 0) are mostly"],
            id="a word of ASCII among others",
        ),
        pytest.param(
            ["red"] * 120 + ["кот"],
            "standard",
            (1, 1, 0),
            ["1 of 121 rows (row 120)", "set evaluation.rouge_tokenizer: unicode"],
            id="less than one in a hundred",
        ),
    ],
)
def test_what_cannot_score_is_counted_and_said(
    byte_level, tmp_path, capsys, outputs, chosen, counts, says
):
    source = write(tmp_path / "rows.jsonl", rows_with(*outputs))
    _, manifest = run_prepare(tmp_path, byte_level, "dev", source, rouge_tokenizer="auto")
    assert manifest["rouge_tokenizer"] == chosen
    found = manifest["scorable"]["counts"]
    kinds = ("unseen_by_standard", "scores_0_with_standard", "scores_0_with_unicode")
    assert tuple(found[kind] for kind in kinds) == counts
    said = capsys.readouterr().out
    assert all(part in said for part in says), said
    assert says or "references of" not in said


@pytest.fixture(scope="module")
def lower_case(tmp_path_factory):
    """A tokenizer that knows a few words in lower case."""
    place = tmp_path_factory.mktemp("lower")
    known = ["<end>", "<unk>", "cat", "dog", "say", "."]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (place / "tokenizer").mkdir()
    made.save(str(place / "tokenizer/tokenizer.json"))
    (place / "manifest.json").write_text(json.dumps({"end": 0, "begin": []}))
    return place / "manifest.json"


def test_references_that_the_tokenizer_changes_are_counted(lower_case, tmp_path, capsys):
    outputs = ["cat dog", "Cat", "bird", ["CAT", "dog"], " cat "]
    source = write(tmp_path / "rows.jsonl", rows_with(*outputs))
    _, manifest = run_prepare(tmp_path, lower_case, "test", source, rouge_tokenizer="auto")
    assert manifest["scorable"]["named"] == {"changed": [1, 2]}
    assert "2 of 5 rows (rows 1, 2) are changed by the tokenizer" in capsys.readouterr().out


def test_the_training_split_is_scored_against_nothing(byte_level, tmp_path):
    source = write(tmp_path / "rows.jsonl", rows_with("红色"))
    _, manifest = run_prepare(tmp_path, byte_level, "train", source)
    assert "rouge_tokenizer" not in manifest and "scorable" not in manifest


def test_the_data_report_shows_what_measures_can_see(byte_level, tmp_path):
    splits = {
        name: write(tmp_path / f"{name}.jsonl", rows_with("红色", "+", "red"))
        for name in ("train", "dev", "test")
    }
    for split, source in splits.items():
        settings = {} if split == "train" else {"rouge_tokenizer": "auto"}
        run_prepare(tmp_path, byte_level, split, source, **settings)
    manifests = [tmp_path / "data" / split / "manifest.json" for split in splits]
    outputs = {"report": tmp_path / "report.json", "page": tmp_path / "report.html"}
    spec = {"splits": splits, "sets": ["test"]}
    summary.run(Stage(spec=spec, code="-", inputs={"data": manifests}, outputs=outputs))
    report, page = read_json(outputs["report"]), outputs["page"].read_text()
    assert report["splits"]["test"]["scorable"]["counts"]["unseen_by_standard"] == 1
    assert set(SCORABLE) == set(report["splits"]["dev"]["scorable"]["counts"])
    scorable = page.split('id="scorable"')[1].split("</table>")[0]
    line = f'<td>{SCORABLE["scores_0_with_unicode"]}</td><td class="num">1</td><td>1</td>'
    assert line in scorable.split('<td class="name">test</td>')[0]
    assert '<td class="name">train</td>' not in scorable


# weights


def test_equal_scores_go_by_loss_and_equal_losses_to_the_earlier_step():
    best = Best("rougeL")

    def observe(step, score, loss):
        if best.improves({"rougeL": score, "loss": loss}):
            best.step, best.value, best.loss = step, score, loss
        return best.step

    assert observe(1, 0.0, math.nan) == 1
    assert observe(2, 0.0, 5.0) == 2, "a loss is better than none"
    assert observe(3, 0.0, 5.0) == 2, "the earlier of two equal ones"
    assert observe(4, 0.0, 4.0) == 4
    assert observe(5, 0.0, math.nan) == 4 and observe(6, 0.0, 6.0) == 4
    assert observe(7, 1.0, 9.0) == 7, "a higher score comes before any loss"
    assert observe(8, math.nan, 1.0) == 7 and observe(9, 0.5, 1.0) == 7
    loss = Best("loss", step=1, value=2.0, loss=2.0)
    assert loss.improves({"loss": 1.0}) and not loss.improves({"loss": 2.0})


CHINESE = [*"红蓝绿高小猫狗说和。"]


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("chinese"), CHINESE)


def test_a_training_and_an_evaluation_use_the_tokens_of_the_manifest(chinese):
    def dev_has(tokens):
        chinese.manifest("dev", kind="data", spec={"split": "dev"}, rouge_tokenizer=tokens)

    dev_has("unicode")
    chinese.finished(chinese.train("trained", "sft", evaluate_every=4))
    best = read_json(chinese.folder / "trained/manifest.json")["best"]["rougeL"]
    lines = map(json.loads, (chinese.folder / "trained/metrics.jsonl").read_text().splitlines())
    scores = {line["step"]: line["rougeL"] for line in lines if line["kind"] == "dev"}
    assert best["value"] == scores[best["step"]] == max(v for k, v in scores.items() if k) > 0
    for tokens in ("unicode", "standard"):
        dev_has(tokens)
        chinese.finished(chinese.evaluate(tokens, "trained", seeds=[10]))
        scores = read_json(chinese.folder / tokens / "scores.json")
        assert scores["rouge_tokenizer"] == tokens
        assert (scores["scores"]["rougeL"]["mean"] > 0) == (tokens == "unicode")


# the report


def test_the_report_says_where_tokens_are_others(tmp_path):
    spec = make(tmp_path, [DIRECT], sets=("heldout", "other"))
    for file in tmp_path.glob("evaluations/*/*/other/scores.json"):
        write_json(file, read_json(file) | {"rouge_tokenizer": "unicode"})
    report = run(tmp_path, spec)
    page = (report / "results.html").read_text()
    assert page.count("has the tokens “unicode” here") == 1
    assert (
        page.index('<h2 id="other"')
        < page.index("has the tokens")
        < page.index('id="scores-other"')
    )
    summary = " ".join((report / "index.html").read_text().split())
    assert "with the tokens “unicode” on other" in summary
    for name in ("results.csv", "scores.csv"):
        rows = rows_of((report / name).read_text())
        found = {(row["set"], row["rouge_tokenizer"]) for row in rows}
        assert found == {("heldout", "standard"), ("other", "unicode")}
