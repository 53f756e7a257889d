"""Results in the form of EleutherAI's lm-evaluation-harness: one results_DATE.json for each model.

Tasks are the evaluation sets, and metrics are the measures of the table under their names there, with the filter
`none`. Values are those of the table, so scores of single answers are × 100 (`metadata` of each task says so). A
standard error is over prompts, of this checkpoint; `N/A`, as in the harness, where a measure has none. With samples,
there is one samples_TASK_DATE.jsonl for each task. The date is that of the evaluation, so that a second export writes
the same files again.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from takd.analysis.measures import Measure, measured
from takd.analysis.result_files import folder_of, responses
from takd.analysis.results import Evaluation, Results
from takd.analysis.statistics import standard_error
from takd.experiment.labels import full_text
from takd.experiment.lineage import Node, is_given
from takd.runtime.files import write_json, write_lines

FILTER = "none"
SCALE = "rougeL, exact_match and answer_accuracy are × 100"


def write(results: Results, folder: Path, target: Path, samples: bool) -> list[Path]:
    """Write the files of all models, in a folder for each, and return them.

    Args:
        folder: results, above `models` and `evaluations`.
        target: folder to write to.
        samples: whether to write the responses, too.
    """
    written = []
    for node in results.nodes:
        name = _sanitized(node)
        places = (folder_of(folder / "evaluations", node, task) for task in results.spec["sets"])
        date = max((place / "scores.json").stat().st_mtime for place in places)
        stamp = datetime.fromtimestamp(date).isoformat().replace(":", "-")
        written.append(target / name / f"results_{stamp}.json")
        write_json(written[-1], of_model(results, node, folder, date))
        for task in results.spec["sets"] if samples else ():
            written.append(target / name / f"samples_{task}_{stamp}.jsonl")
            lines = list(_samples(results.evaluations[node, task], folder))
            write_lines(written[-1], lines, ensure_ascii=False)
    return written


def of_model(results: Results, node: Node, folder: Path, date: float) -> dict[str, Any]:
    """Results of one model, as the harness's `results_*.json` has them."""
    model, tasks = results.models[node], results.spec["sets"]
    evaluations = {task: results.evaluations[node, task] for task in tasks}
    first = evaluations[tasks[0]]
    end = first.end
    seconds = sum(float(each.end.get("seconds", 0)) for each in evaluations.values())
    shown = measured(results)
    higher = {measure.name: _higher(measure) for measure in shown}
    counts = {task: len(each.ids) for task, each in evaluations.items()}
    versions = model.manifest.get("versions") or {}
    return {
        "results": {task: _metrics(task, each, shown) for task, each in evaluations.items()},
        "group_subtasks": {task: [] for task in tasks},
        "configs": {task: _config(task, each, higher) for task, each in evaluations.items()},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {task: dict(higher) for task in tasks},
        "n-samples": {task: {"original": n, "effective": n} for task, n in counts.items()},
        "config": {
            "model": "hf",
            "model_args": f"pretrained={folder_of(folder / 'models', node, 'model')}",
            "model_num_parameters": model.parameters,
            "model_dtype": end.get("precision"),
            "model_sha": model.manifest["digest"],
            "batch_size": None,
            "device": end.get("device"),
            "limit": None,
            "bootstrap_iters": 0,
            "gen_kwargs": first.scores["decoding"],
            "random_seed": results.spec["decoding_seeds"][0],
            "training_seed": None if is_given(node.lineage) else node.seed,
        },
        "git_hash": end.get("commit"),
        "date": date,
        "transformers_version": versions.get("transformers"),
        "lm_eval_version": None,
        "model_source": "hf",
        "model_name": full_text(node.lineage),
        "model_name_sanitized": _sanitized(node),
        "total_evaluation_time_seconds": f"{seconds:.1f}",
    }


def _metrics(task: str, evaluation: Evaluation, shown: list[Measure]) -> dict[str, Any]:
    found: dict[str, Any] = {"alias": task}
    for measure in shown:
        value, error = measure.of(evaluation), None
        if measure.name in evaluation.by_draw:
            error = standard_error(evaluation.by_draw[measure.name].mean(axis=1))
        if value is not None:
            found[f"{measure.name},{FILTER}"] = value
            found[f"{measure.name}_stderr,{FILTER}"] = "N/A" if error is None else error
    return found


def _config(task: str, evaluation: Evaluation, higher: dict[str, bool | None]) -> dict[str, Any]:
    scores = evaluation.scores
    return {
        "task": task,
        "output_type": "generate_until",
        "num_fewshot": 0,
        "repeats": len(scores["decoding_seeds"]),
        "generation_kwargs": scores["decoding"],
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": which}
            for name, which in higher.items()
        ],
        "metadata": {
            "version": 1.0,
            "scale": SCALE,
            "decoding_seeds": scores["decoding_seeds"],
            "rouge_tokenizer": scores["rouge_tokenizer"],
        },
    }


def _higher(measure: Measure) -> bool | None:
    return {"higher": True, "lower": False}.get(measure.better)


def _samples(evaluation: Evaluation, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield one line per prompt, with its responses by decoding seed; scores are means over these."""
    gen = evaluation.scores["decoding"]
    for row in responses(folder / "evaluations", evaluation.node, evaluation.set):
        doc = {key: row[key] for key in ("id", "instruction", "input", "references") if key in row}
        texts = [output["text"] for output in row["outputs"]]
        target = row["references"][0]
        # before the experiment's template is filled with it
        asked = "\n".join(filter(None, (row["instruction"], row.get("input"))))
        yield {
            "doc_id": row["id"],
            "doc": doc,
            "target": target,
            "arguments": {"gen_args_0": {"arg_0": asked, "arg_1": gen}},
            "resps": [texts],
            "filtered_resps": texts,
            "filter": FILTER,
            "metrics": list(evaluation.by_draw),
            "doc_hash": _digest(json.dumps(doc, ensure_ascii=False)),
            "prompt_hash": _digest(asked),
            "target_hash": _digest(target),
            **{
                name: float(sum(output[name] for output in row["outputs"]) / len(texts))
                for name in evaluation.by_draw
            },
        }


def _sanitized(node: Node) -> str:
    """Name of a model as a folder."""
    seed = "" if is_given(node.lineage) else f"__seed{node.seed}"
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{node.lineage}{seed}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
