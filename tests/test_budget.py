"""Equal cost: the arms of an experiment under a budget spend the same, by the logs and by torch's own count."""

import csv
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file
from sealing import write_json as sealed_json
from sealing import write_lines
from test_methods_on_policy import Interruptible
from test_plan import ATTENTION
from test_report import BY_KD, THROUGH, make
from test_report import DIRECT as DIRECT_CHAIN
from torch.utils.flop_counter import FlopCounterMode
from workspace import TIMED, Workspace, of_split

from takd.analysis import costs
from takd.analysis.results import Results, read
from takd.experiment import lineage as lineages
from takd.experiment import specs
from takd.experiment.experiment import Experiment, load
from takd.preflight import table
from takd.preflight.gpus import CPU
from takd.preflight.plan import Planner
from takd.report import costs_page
from takd.report.figures import flops as flops_figure
from takd.runtime.errors import InputError
from takd.runtime.files import read_json, write_json
from takd.runtime.stage import Interrupted
from takd.training import train as training
from takd.training.loop import Run

FILES = {"model": "model", "metrics": "metrics.jsonl", "manifest": "manifest.json"}
TEACHER, ASSISTANT = "teacher-sft", "teacher-sft__assistant-minillm"
ROUNDS = {"rollouts_per_round": 8, "inner_epochs": 2}
BUDGET = 1.2e8


def run(
    space: Workspace,
    name: str,
    lineage: str,
    inputs: dict[str, str],
    steps_left: float = float("inf"),
    budget: Any = None,
    micro_batch: int = 4,
    **settings: Any,
) -> Path:
    """Run a training stage in this process; its settings are those of the workspace."""
    *above, last = lineage.split("__")
    model, method = last.split("-")
    spec = {**space.spec(method, **settings), "lineage": lineage, "model": model}
    if above:
        spec["teacher"] = ["__".join(above), 3]
    if spec["settings"].get("start") == "sft":
        spec["init"] = [f"{model}-sft", 3]
    if budget is not None:
        spec["settings"] |= {"steps": None, "epochs": None}
        spec["budget"] = budget
    read = {"base": "student", "tokenizer": "tokenizer", "train": "train", "dev": "dev", **inputs}
    files = {**FILES, **({"init": "init"} if method == "sft" else {})}
    training.run(
        Interruptible(
            spec,
            "code",
            {key: [space.folder / of / "manifest.json"] for key, of in read.items()},
            {key: space.folder / name / file for key, file in files.items()},
            checkpoint_seconds=0.0 if math.isfinite(steps_left) else 60.0,
            micro_batch=micro_batch,
            steps_left=steps_left,
        )
    )
    return space.folder / name


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Trained teacher, assistant and supervised student, each with what was spent on it."""
    space = Workspace(tmp_path_factory.mktemp("workspace"))
    run(space, "a-teacher", TEACHER, {"base": "teacher"}, steps=16, evaluate_every=8)
    run(space, "a-student", "student-sft", {}, steps=8, evaluate_every=8)
    run(space, "an-assistant-start", "assistant-sft", {}, steps=4, evaluate_every=4)
    of_assistant = {"teacher": "a-teacher", "init": "an-assistant-start"}
    run(space, "an-assistant", ASSISTANT, of_assistant, steps=6, lm_weight=0.0, **ROUNDS)
    return space


TAUGHT = {"teacher": "a-teacher", "init": "a-student"}
ARMS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "kd": (f"{TEACHER}__student-kd", {"teacher": "a-teacher"}, {}),
    "gkd": (f"{TEACHER}__student-gkd", TAUGHT, {}),
    "skd": (f"{TEACHER}__student-skd", TAUGHT, {}),
    "taid": (f"{TEACHER}__student-taid", TAUGHT, {}),
    "amid": (f"{TEACHER}__student-amid", TAUGHT, {}),
    "distillm": (f"{TEACHER}__student-distillm", TAUGHT, {}),
    "minillm": (f"{TEACHER}__student-minillm", TAUGHT, {"lm_weight": 0.0, **ROUNDS}),
    "sft": ("student.more-sft", {}, {}),
    "assistant": (
        f"{ASSISTANT}__student-minillm",
        {"teacher": "an-assistant", "init": "a-student"},
        {"lm_weight": 0.0, "teacher_mix": 0.0, **ROUNDS},
    ),
}


def test_arms_spend_the_same(space: Workspace) -> None:
    """Within 3 %: summed here over the logs of each arm's own training and of those that it needs."""
    needed = {
        "kd": ["a-teacher"],
        "sft": [],
        "assistant": ["a-teacher", "an-assistant-start", "an-assistant", "a-student"],
    }
    cost = {}
    for arm, (lineage, inputs, settings) in ARMS.items():
        settings = {**settings, "evaluate_every": 100}
        folder = run(space, f"equal-{arm}", lineage, inputs, budget={"flops": BUDGET}, **settings)
        others = needed.get(arm, ["a-teacher", "a-student"])
        folders = [folder, *(space.folder / name for name in others)]
        cost[arm] = sum(log(each)[-1]["flops"] for each in folders)
        manifest, lines = read_json(folder / "manifest.json"), log(folder)
        assert sum(manifest["spent"].values()) == cost[arm]
        assert manifest["steps"] == lines[-1]["step"] > 8
        rates = [line["learning_rate"] for line in lines if line["kind"] == "train"]
        assert rates[-1] < 0.05 * max(rates)  # the schedule ends with the budget
    assert max(cost.values()) / min(cost.values()) < 1.03
    assert all(value == pytest.approx(BUDGET, rel=0.015) for value in cost.values()), cost


@pytest.mark.parametrize("arm", ["sft", "kd", "gkd", "skd", "minillm", "assistant"])
def test_spent_is_what_torch_counts(
    space: Workspace, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 3 %, with texts of one length, as padding does not count, and without dev evaluations."""
    rows = load_from_disk(str(space.folder / "train" / "dataset"))
    # prompts that differ, as equal ones of a batch are read once
    rows = rows.map(
        lambda row, i: {
            "prompt_ids": [7, 2 + i % 10, 2 + i // 10, 4, 5, 6],
            "response_ids": [2, 3, 4, 5, 0],
        },
        with_indices=True,
        keep_in_memory=True,  # without a cache beside the rows
    )
    rows.save_to_disk(space.folder / f"equal-rows-{arm}" / "dataset")
    space.manifest(f"equal-rows-{arm}", **of_split("train"))
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    train = Run.train

    def counted(job: Run) -> None:
        job.ends = (-1,)  # drawn responses are of one length too
        with counter:
            train(job)

    def unread(job: Run, step: int) -> None:
        if step:
            job.keeper.observe(step, {"rougeL": 1.0, "loss": 1.0})

    monkeypatch.setattr(Run, "train", counted)
    monkeypatch.setattr(Run, "evaluate", unread)
    lineage, inputs, settings = ARMS[arm]
    settings = {**settings, "steps": 8, "batch_size": 8, "dropout": 0.0}
    if arm in ("gkd", "skd"):
        settings["on_policy_share"] = 1.0
    inputs = {**inputs, "train": f"equal-rows-{arm}"}
    folder = run(space, f"torch-{arm}", lineage, inputs, micro_batch=8, **settings)
    assert log(folder)[-1]["flops"] == pytest.approx(counter.get_total_flops(), rel=0.03)


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMED} for line in log(folder)]


SHORT = {"budget": {"flops": 1e8}, "evaluate_every": 100, "lm_weight": 0.0, **ROUNDS}


@pytest.fixture(scope="module")
def whole(space: Workspace) -> Path:
    lineage, inputs, _ = ARMS["minillm"]
    return run(space, "whole", lineage, inputs, **SHORT)


def test_resuming_goes_on_counting(space: Workspace, whole: Path) -> None:
    """Stopped within a round: the same steps, counts and weights as without a stop."""
    lineage, inputs, _ = ARMS["minillm"]
    with pytest.raises(Interrupted):
        run(space, "resumed", lineage, inputs, steps_left=7, **SHORT)
    resumed = run(space, "resumed", lineage, inputs, **SHORT)
    assert untimed(resumed) == untimed(whole)
    one, other = (load_file(folder / "model/model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (whole / "manifest.json").read_bytes() == (resumed / "manifest.json").read_bytes()


def test_micro_batches_and_processes_change_no_step(space: Workspace, whole: Path) -> None:
    lineage, inputs, _ = ARMS["minillm"]
    small = run(space, "small", lineage, inputs, micro_batch=1, **SHORT)
    spec = read_json(whole / "manifest.json")["spec"]
    read = {"base": "student", "tokenizer": "tokenizer", "train": "train", "dev": "dev", **inputs}
    space.finished(
        space.start(
            "train",
            spec,
            [f"{key}={of}/manifest.json" for key, of in read.items()],
            [f"{key}=two/{file}" for key, file in FILES.items()],
            "--processes=2",
        )
    )
    for other in (small, space.folder / "two"):
        counts = [
            [(line["kind"], line["step"], line["flops"]) for line in log(each)]
            for each in (whole, other)
        ]
        assert counts[0] == counts[1]


def test_the_cost_of_a_chain_is_a_budget(space: Workspace, whole: Path) -> None:
    """The reference is the run of before; the other chain spends what it has spent."""
    lineage, inputs, _ = ARMS["kd"]
    spent = sum(read_json(whole / "manifest.json")["spent"].values())
    budget = {"chain": [ARMS["minillm"][0], 3]}
    inputs = {**inputs, "reference": "whole"}
    folder = run(space, "like", lineage, inputs, budget=budget, evaluate_every=100)
    cost = sum(read_json(folder / "manifest.json")["spent"].values())
    assert cost == pytest.approx(spent, rel=0.02)  # of about 20 steps


def test_a_budget_that_its_teachers_exceed_is_refused(space: Workspace) -> None:
    lineage, inputs, _ = ARMS["assistant"]
    with pytest.raises(InputError) as caught:
        run(space, "poor", lineage, inputs, budget={"flops": 1e6})
    said = str(caught.value)
    assert f"{lineage} seed 3" in said and "budget is 1e+06" in said
    assert "models/teacher-sft/seed3" in said  # what was spent on


def test_results_without_counts_are_refused(space: Workspace) -> None:
    """Such as those of an earlier version, accepted by --touch."""
    space.manifest("uncounted", kind="model", lineage=TEACHER, seed=3, method="sft")
    lineage, inputs, _ = ARMS["kd"]
    with pytest.raises(InputError, match=r"uncounted.*does not say what was spent"):
        run(space, "unknown", lineage, {**inputs, "teacher": "uncounted"}, budget={"flops": 1e9})


CHAINS = """chains:
  - {label: direct, models: [teacher, student], methods: [minillm]}
  - {label: upper, models: [teacher, assistant], methods: [minillm]}
  - {label: stairs, models: [teacher, assistant, student], methods: [[minillm, kd]]}
  - {label: labels, models: [more]}
  - {label: base, models: [student]}
"""


def experiment(tmp_path: Path, budget: str, chains: str = CHAINS, training: str = "") -> Experiment:
    """An experiment in which only what keeps its own steps has any."""
    sizes = {"teacher": 3, "assistant": 2, "student": 1, "more": 1}
    models = "\n".join(
        f"  {name}: {{weights: {{scratch: {{layers: {n}, width: 16, heads: 2, positions: 64}}}}}}"
        for name, n in sizes.items()
    )
    path = tmp_path / "config/experiments/it.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""tokenizer: {{train: {{vocabulary: 300}}}}
models:
{models}
data:
  train: {{demo: {{part: train, rows: 40}}}}
  dev: {{demo: {{part: dev, rows: 8}}}}
  max_length: 64
  max_prompt_length: 48
{chains}
budget: {budget}
training:
  sft: {{steps: 4, batch_size: 4}}
  minillm: {{steps: 6, batch_size: 4}}
  kd: {{batch_size: 4{training}}}
evaluation: {{sets: {{heldout: {{demo: {{part: test, rows: 8}}}}}}}}
"""
    )
    return load(path, tmp_path)


STAIRS, DIRECT = f"{ASSISTANT}__student-kd", f"{TEACHER}__student-minillm"


def test_ends_of_chains_have_the_budget(tmp_path: Path) -> None:
    """Not an assistant, the reference, or the supervised start of another chain."""
    assert experiment(tmp_path, "{flops: 1e12}").ends == {STAIRS, DIRECT, "more-sft"}
    assert experiment(tmp_path, "{chain: direct}").ends == {STAIRS, "more-sft"}
    assert experiment(tmp_path, "null", training=", steps: 1").ends == set()


def test_another_budget_changes_the_ends_alone(tmp_path: Path) -> None:
    """Their `steps` do not count, so that a change of these changes nothing of them."""

    def settings(budget: str, steps: str = "") -> dict[Any, Any]:
        found = experiment(tmp_path, budget, training=steps)
        return {node: specs.train(found, *node) for node in found.trainings}

    before, after = settings("{flops: 1e12}"), settings("{flops: 2e12}")
    changed = {node.lineage for node in before if before[node] != after[node]}
    assert changed == {STAIRS, DIRECT, "more-sft"}
    assert before == settings("{flops: 1e12}", ", steps: 9")


@pytest.mark.parametrize(
    ("budget", "chains", "said"),
    [
        ("{}", CHAINS, "exactly one of flops, chain"),
        ("{flops: 1e12, chain: direct}", CHAINS, "exactly one of flops, chain"),
        ("{flops: 0}", CHAINS, "budget.flops is 0"),
        ("{chain: drect}", CHAINS, "did you mean 'direct'?"),
        (
            "{chain: two}",
            "chains: [{label: two, models: [teacher, student], methods: [minillm, kd]}]",
            "run 2 times",
        ),
        (
            "{chain: only}",
            "chains: [{label: only, models: [teacher, student], methods: [minillm]}]",
            "budget has no effect",
        ),
        ("null", CHAINS, "neither steps nor epochs for the model 'student'"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(
    tmp_path: Path, budget: str, chains: str, said: str
) -> None:
    with pytest.raises(InputError) as caught:
        experiment(tmp_path, budget, chains)
    assert said in str(caught.value) and "it.yaml, line" in str(caught.value)


def planner(found: Experiment) -> Planner:
    """A planner for data that are prepared."""
    for split, rows in (("train", 40), ("dev", 8), ("heldout", 8)):
        place = found.root / "results/it/data" / split / "manifest.json"
        tokens = {"prompt": 12 * rows, "response": 6 * rows}
        write_json(place, {"counts": {"rows": rows, "kept": rows}, "tokens": tokens})
    return Planner(found, CPU)


def test_a_plan_says_what_chains_cost(tmp_path: Path) -> None:
    """Shared models count in each chain, once; a budget gives steps to the ends alone."""
    plan = planner(experiment(tmp_path, "{flops: 1e11}"))
    found = {each.label: each for each in plan.chains.listed()}
    for label in ("direct", "stairs", "labels"):
        assert found[label].whole == pytest.approx(1e11, rel=0.01)
    assert found["upper"].steps == 6 and found["base"].steps == 4
    assert found["labels"].before == 0
    teacher, start = (plan.chains.own(name) for name in (TEACHER, "student-sft"))
    assert found["direct"].before == teacher + start
    assert set(plan.chains.before(STAIRS)) == {TEACHER, ASSISTANT, "assistant-sft"}
    text = "\n".join(table.chains(plan))
    assert f"about {found['direct'].steps}" in text and "stairs (minillm → kd)" in text
    reference = planner(experiment(tmp_path, "{chain: direct}")).chains
    assert reference.budget == reference.listed()[0].whole
    assert reference.listed()[3].whole == pytest.approx(reference.budget, rel=0.03)


def test_a_plan_names_steps_that_are_large_for_a_budget(tmp_path: Path) -> None:
    """One step of a hundred is small, one of five is not."""
    assert planner(experiment(tmp_path, "{flops: 1e11}")).chains.coarse() == []
    chains = planner(experiment(tmp_path, "{flops: 8e7}")).chains
    steps = {each.label: each.steps for each in chains.listed()}
    (line,) = [text for text in chains.coarse() if "direct" in text]
    assert 0 < steps["direct"] < 33 and "rollouts_per_round" in line


def test_a_plan_names_chains_that_a_budget_does_not_pay(tmp_path: Path) -> None:
    chains = planner(experiment(tmp_path, "{flops: 1e7}")).chains
    said = chains.problems()
    assert (
        len(said) == 2 and "stairs (MiniLLM → KD: teacher → assistant → student) needs" in said[1]
    )
    with pytest.raises(InputError, match="budget is 10M FLOP"):
        chains.refuse()


ARMS_OF_REPORT = [DIRECT_CHAIN, BY_KD, THROUGH]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up results of two seeds, in which each training has spent 1000 FLOPs a step of its log."""
    root = tmp_path_factory.mktemp("reported")
    make(root, ARMS_OF_REPORT, (1, 2))
    for path in sorted((root / "models").glob("*/*/metrics.jsonl"), key=lambda p: len(str(p))):
        name, seed = path.parts[-3], path.parts[-2]
        lines = log(path.parent)
        own = 300_000 + 3_000 * (seed == "seed2")
        for line in lines:
            line["flops"] = own if line["kind"] == "end" else own * line["step"] // 300
        write_lines(path, lines)
        spent = {f"models/{name}/{seed}": own}
        for above in lineages.prefixes(name)[:-1]:
            spent[f"models/{above}/{seed}"] = 300_000
        manifest = read_json(path.with_name("manifest.json"))
        sealed_json(path.with_name("manifest.json"), {**manifest, "flops": own, "spent": spent})
    return root


def results_of(root: Path, equal_cost: Any = None) -> Results:
    spec = make(root.with_name("unused"), ARMS_OF_REPORT, (1, 2))
    shutil.rmtree(root.with_name("unused"))
    spec |= {"equal_cost": equal_cost} if equal_cost else {}
    return read(spec, root / "models", root / "evaluations")


def test_the_costs_page_shows_the_arms(reported: Path) -> None:
    through = "teacher-sft__assistant-minillm__student-minillm"
    names = ["teacher-sft__student-minillm", "teacher-sft__student-kd", through]
    found = results_of(reported, {"flops": 600_000.0, "reference": None, "lineages": names})
    arms = costs_page.arms(found)
    assert arms is not None
    rows = {
        row.lineage: [(cell.text, list(cell.notes)) for cell in row.cells]
        for row in arms.groups[0].rows
    }
    assert list(rows) == names
    assert rows[names[0]][1:5] == [
        ("602k", ["600k to 603k"]),
        ("100.25", ["100.00 to 100.50"]),
        ("50.1", ["50.0 to 50.2"]),
        ("900", []),
    ]
    assert rows[through][2] == ("150.25", ["150.00 to 150.50"])
    assert costs_page.apart(found) == pytest.approx(50, rel=0.01)  # three trainings to two
    reference = {"flops": None, "reference": names[1], "lineages": names}
    assert costs.budgets(results_of(reported, reference)) == {1: 600_000, 2: 603_000}
    assert costs_page.arms(results_of(reported)) is None


def test_files_and_figures_have_the_flops(reported: Path, tmp_path: Path) -> None:
    found = results_of(reported)
    lines = list(csv.DictReader(io.StringIO(costs_page.to_csv(found))))
    (line,) = [
        r for r in lines if (r["lineage"], r["stage"]) == ("teacher-sft__student-kd", "training")
    ]
    assert line["flops"] == "603000"
    drawn = flops_figure.curves(found)
    assert drawn is not None
    through = [p for p in drawn.numbers if p["lineage"].count("__") == 2 and p["seed"] == 2]
    # two teachers before it, and then a third of its own after 100 steps
    assert [p["flops"] for p in through] == [650_500, 701_000, 802_000, 903_000]
    make(tmp_path, ARMS_OF_REPORT, (1, 2))  # of a version that did not count
    assert flops_figure.curves(results_of(tmp_path)) is None
    older = csv.DictReader(io.StringIO(costs_page.to_csv(results_of(tmp_path))))
    assert {line["flops"] for line in older} == {""}
