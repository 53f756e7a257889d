"""Model cards: read back as the hub reads them, numbers against the results, and a folder that loads as it is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Project, small_experiment
from forks import Forked
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from sealing import seal, write_json
from test_report import ODD, THROUGH, make
from workspace import DECODING, ROOT, Workspace

from takd.analysis import table
from takd.analysis.results import read
from takd.data.template import as_chat_template
from takd.experiment import experiment, specs
from takd.experiment.lineage import Node, of_chain, split
from takd.model_cards import card, markdown
from takd.runtime.digests import file_digest
from takd.runtime.errors import InputError
from takd.runtime.files import read_json
from takd.runtime.stage import Stage

LINEAGE = of_chain(*THROUGH[1:])
HUB = {"hub": "openai-community/gpt2", "revision": "607a30d783dfa663caf39e06633721c8d4cfcd7e"}
SOURCES = {
    "train": {"json": "/home/someone/private/train.jsonl", "sha256": ["ab" * 32]},
    "corpus": {"hub": "Skylion007/openwebtext", "revision": "1" * 40, "split": "train"},
    "heldout": {"demo": {"part": "test", "rows": 6}},
    "other": {"hub": "MiniLLM/sinst", "revision": "2" * 40, "file": "11_/valid.jsonl"},
}
TEMPLATE = {
    "with_input": "{instruction}\n{input}\n```\n{{ 7 * 7 }}\n",
    "without_input": "Say '{instruction}'\n---\n",
}


def settings(spec, lineage=LINEAGE, seed=2):
    """Settings of a card for the results that test_report makes."""
    hops = [hop.model for hop in split(lineage)]
    kept = ("experiment", "title", "description", "sets", "decoding", "decoding_seeds", "judge")
    return {key: spec[key] for key in kept} | {
        "nodes": [[lineage, seed]],
        "models": {name: spec["models"][name] for name in hops},
        "weights": {name: HUB for name in hops[-1:]}
        | {name: {"scratch": {"layers": 2}} for name in hops[:-1]},
        "chains": [],
        "teacher_cache": [],
        "samples": 1,
        "sources": SOURCES,
        "template": TEMPLATE,
        "license": "apache-2.0",
    }


def write_card(root, spec):
    (node,) = spec["nodes"]
    folder = root / "models" / node[0] / f"seed{node[1]}"
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/config.json").write_text("{}")
    seal(folder)
    inputs = {"models": [root / "models"], "evaluations": [root / "evaluations"]}
    card.run(Stage(spec, "", inputs, {"card": folder / "card.md"}))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("cards")
    spec = make(root, [THROUGH], (1, 2), ("heldout", "other"))
    return root, spec, write_card(root, settings(spec))


def test_front_matter_is_what_the_hub_reads(made):
    root, spec, folder = made
    assert (folder / "card.md").read_bytes() == (folder / "model/README.md").read_bytes()
    data = ModelCard.load(folder / "model/README.md").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert (data.base_model, data.base_model_relation) == (HUB["hub"], "finetune")
    assert data.datasets == ["Skylion007/openwebtext"]
    assert data.tags == ["takd", "knowledge-distillation", "teacher-assistant", "minillm"]
    assert data.license == "apache-2.0" and data.language is None
    assert data.model_name == f"{LINEAGE}-seed2"
    index = eval_results_to_model_index(data.model_name, data.eval_results)
    assert model_index_to_eval_results(index) == (data.model_name, data.eval_results)
    places = [result["dataset"] for result in index[0]["results"]]
    assert [(place["name"], place["type"]) for place in places] == [
        ("heldout", "heldout"),
        ("other", "MiniLLM/sinst"),
    ]
    assert places[1]["config"] == "11_/valid.jsonl" and places[1]["revision"] == "2" * 40
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results}
    # 70 of the base, 8 of MiniLLM, 2 of one assistant, 0.5 of the second seed; 40 less on the other set
    assert found["heldout", "rouge"] == 80.5 and found["other", "rouge"] == 40.5
    assert found["heldout", "direct_reverse_kl"] == 0.75
    results = read(spec, root / "models", root / "evaluations")
    assert (
        found["other", "loss"]
        == results.evaluations[Node(LINEAGE, 2), "other"].likelihoods["references"]["loss"]
    )


def test_body_says_what_the_results_say(made):
    root, spec, folder = made
    text = (folder / "card.md").read_text()
    one = read(settings(spec), root / "models", root / "evaluations")
    score, other = (
        table.one(table.of(one), kind="score", set=name, measure="rougeL")
        for name in ("heldout", "other")
    )
    assert not score.several and score.interval == score.prompts_interval
    cells = [markdown.plain(found.text()) for found in (score, other)]
    assert f"| ROUGE-L | higher | {cells[0]} | {cells[1]} |\n" in text
    assert "| prompts | | 6 | 6 |\n" in text
    manifest = read_json(folder / "manifest.json")
    assert manifest["weights"]["model"] in text and manifest["code"] in text
    assert "| 3 | student | 150000 | minillm under assistant | openai-community/gpt2 of the hub" in text  # fmt: skip
    assert "sampled at temperature 1.0, no top-k, no top-p, no 6-gram twice" in text
    assert '"no_repeat_ngram": 6' in text and "no_repeat_ngram_size=6" in text
    assert "train.jsonl (local)" in text and "/home/someone" not in text
    assert "MiniLLM" in text and "1902.03393" in text
    # the same results, the same bytes
    before = (folder / "card.md").read_bytes()
    write_card(root, settings(spec))
    assert (folder / "card.md").read_bytes() == before


def test_foreign_text_stays_text(made):
    root, spec, _ = made
    hostile = "# <script>alert(1)</script> | `x` [a](b) {{ 7 * 7 }}\n---\n"
    odd = settings(spec) | {"title": hostile, "description": ODD.replace("\ud83d", "")}
    (odd_folder,) = [write_card(root, odd)]
    text = (odd_folder / "card.md").read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text and "{{ 7 * 7 }}" in text
    assert "\n# &lt;" not in text and r"\[a\](b)" in text and "\u202e" not in text
    # a template with a fence of its own lies within a longer one
    assert "````text\n{instruction}\n{input}\n```\n{{ 7 * 7 }}\n\n````" in text
    assert ModelCard.load(odd_folder / "card.md").data.model_name == f"{LINEAGE}-seed2"
    write_card(root, settings(spec))
    assert markdown.code("a`b``c|d") == "``` a`b``c\\|d ```" and markdown.code("x") == "`x`"


def test_head_of_a_chain_from_scratch_names_no_base(made):
    root, spec, _ = made
    of_head = settings(spec, "teacher-sft", 1)
    of_head["weights"] = {"teacher": {"scratch": {"layers": 2}}}
    data = ModelCard.load(write_card(root, of_head) / "card.md").data
    assert data.base_model is None and data.get("base_model_relation") is None
    assert data.tags == ["takd", "supervised-fine-tuning"]
    names = {result.metric_type for result in data.eval_results}
    assert "rouge" in names and not {name for name in names if name.startswith("direct")}


def test_the_tokenizers_own_chat_template_is_told(made):
    root, spec, _ = made
    text = (write_card(root, settings(spec) | {"template": "chat"}) / "card.md").read_text()
    assert "trained on the tokenizer's chat template, with what the experiment sets in it" in text
    assert "tokenizer.apply_chat_template(" in text and 'hf upload NAME . --exclude ".*"' in text
    write_card(root, settings(spec))


def test_a_card_depends_on_no_page_of_the_report():
    code = "import sys, takd.model_cards.card; found = [m for m in sys.modules if m.startswith('takd.report')];"
    code += "assert not found and 'matplotlib' not in sys.modules, found"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src")})


def test_the_example_is_a_prompt_of_the_evaluation_with_its_reference(made):
    _, _, folder = made
    text = (folder / "card.md").read_text()
    assert "set_seed(10)" in text and "started from **SFT seed 2**" in text
    assert (
        "Do 0 <now>" in text and "```text\nthe answer\n```" in text and "three colours" not in text
    )


def test_a_folder_without_a_model_is_refused(made, tmp_path):
    root, spec, _ = made
    inputs = {"models": [root / "models"], "evaluations": [root / "evaluations"]}
    with pytest.raises(InputError, match=r"model: holds no model \(config\.json\)"):
        card.run(Stage(settings(spec), "", inputs, {"card": tmp_path / "card.md"}))


def test_settings_of_a_card_hold_no_other_chain(tmp_path):
    path = ROOT / "config/experiments/demo.yaml"
    demo = experiment.load(path, ROOT)
    found = specs.card(demo, "teacher-sft__student-minillm", 2)
    assert set(found["models"]) == {"teacher", "student"} == set(found["weights"])
    words = ("title", "description")
    assert "assistant" not in json.dumps({k: v for k, v in found.items() if k not in words})
    assert set(found["sources"]) == {"train", "heldout"} and found["nodes"][0][1] == 2


@pytest.fixture(scope="module", params=[False, True], ids=["text", "chat template"])
def trained(tmp_path_factory, request):
    """A model that the training stage made, evaluated by made-up scores, with its card."""
    root = tmp_path_factory.mktemp("trained")
    space = Workspace(root / "work")
    template = {k: "say {instruction} and " for k in TEMPLATE}
    if request.param:
        space.tokenizer.chat_template = as_chat_template(template, "")
        space.tokenizer.save_pretrained(root / "work/tokenizer/tokenizer")
        space.manifest("tokenizer", kind="tokenizer", vocabulary=12, begin=[], end=0)
    space.finished(space.train("out", "sft", steps=2, evaluate_every=2))
    spec = make(root, [("2.D", ["teacher", "student"], ["minillm"])])
    folder = root / "models/student-sft/seed1"
    for name in ("manifest.json", "metrics.jsonl"):
        (folder / name).write_bytes((root / "work/out" / name).read_bytes())
    (root / "work/out/model").rename(folder / "model")
    manifest = read_json(folder / "manifest.json")
    write_json(folder / "manifest.json", manifest | {"seed": 1})
    of_card = settings(spec, "student-sft", 1)
    of_card |= {"decoding": DECODING, "template": template}
    (folder / "model/.snakemake_timestamp").touch()
    inputs = {"models": [root / "models"], "evaluations": [root / "evaluations"]}
    before = {path.name: file_digest(path) for path in (folder / "model").glob("[!.]*")}
    card.run(Stage(of_card, "", inputs, {"card": folder / "card.md"}))
    return folder, before


def test_the_folder_of_a_trained_model_is_complete_and_unchanged(trained):
    folder, before = trained
    model = folder / "model"
    needed = ["config.json", "generation_config.json", "model.safetensors"]
    assert {*needed, "tokenizer.json", "tokenizer_config.json"} <= set(before)
    after = {path.name: file_digest(path) for path in model.iterdir()}
    assert after == before | {"README.md": file_digest(folder / "card.md")}
    manifest = read_json(folder / "manifest.json")
    assert manifest["weights"]["model"] == after["model.safetensors"]
    text = (model / "README.md").read_text()
    assert f"`{after['model.safetensors']}`" in text
    # the settings of the training itself
    assert "| learning\\_rate | `0.01` |" in text and "| steps | `2` |" in text
    assert manifest["versions"]["torch"] in text


def test_the_program_in_the_card_runs_in_the_folder(trained):
    """`from_pretrained` on the folder as it is, model and tokenizer."""
    folder, _ = trained
    text = (folder / "model/README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)\n```", text, re.S)
    assert "from_pretrained(folder)" in program and "max_new_tokens=8" in program
    # the tests' tokenizer knows ten words
    assert "set_seed(10)" in program and "Do 0 <now>" in program
    program = program.replace("Do 0 <now>", "red cat").replace(", \"input\": 'with input'", "")
    program += "\nassert tokenizer.decode(inputs['input_ids'][0]) == 'say red cat and'"
    program += "\nassert output.shape[1] > inputs['input_ids'].shape[1] > 1"
    program += "\nassert sum(p.numel() for p in model.parameters()) == " + str(
        read_json(folder / "manifest.json")["parameters"]
    )
    (folder / "program.py").write_text(program)
    process = Forked([str(folder / "program.py")], folder / "model")
    said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def readme(project: Project) -> list[Path]:
    """What the stage does beside its output: a card in every model's folder."""
    folders = sorted((project.folder / "results/small/models").glob("*/seed*/model"))
    for folder in folders:
        (folder / "README.md").write_text("card\n")
        (folder / ".snakemake_timestamp").unlink(missing_ok=True)
    return folders


def test_a_card_in_a_models_folder_makes_nothing_stale(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "copy")
    assert len(readme(project)) == 7
    assert project.plan() == {}


def test_a_retrained_model_gets_a_new_card(finished: Project, tmp_path: Path) -> None:
    """Even where it came out the same: a training's log has its times, and the folder was made anew."""
    project = finished.copy(tmp_path / "copy")
    folders = readme(project)
    fakes = project.folder / "fakes.py"
    fakes.write_text(
        fakes.read_text().replace('write_text("{}")', 'write_text("{\\"seconds\\": 1}")')
    )
    redone = [f for f in folders if f.parts[-3] in ("assistant-sft", "student-sft")]
    manifests = [(folder.parent / "manifest.json").read_bytes() for folder in redone]
    project.run("--quiet", "rules", "--forcerun", "sft", "--until", "sft")
    assert [(folder.parent / "manifest.json").read_bytes() for folder in redone] == manifests
    assert [(folder / "README.md").exists() for folder in redone] == [False, False]
    assert project.plan() == {"card": 2, "report": 1}


def test_every_model_has_a_card_in_the_plan(project: Project) -> None:
    # after an option that takes no words: --quiet takes several
    jobs = project.plan("--dry-run", "cards")
    assert jobs["card"] == 7 and "report" not in jobs
    project.experiment(lambda e: e.update(seeds=[1, 2]))
    assert project.plan()["card"] == 1 + 2 * 6
    assert len(small_experiment()["seeds"]) == 1
