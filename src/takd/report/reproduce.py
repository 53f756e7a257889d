"""Commands that reproduce each number, and BibTeX entries.

Names from the experiment's file may hold any character: values are quoted for the shell, comments stay on one line,
and BibTeX is escaped.
"""

import shlex
from typing import Any

from takd.analysis.results import Results
from takd.analysis.statistics import number
from takd.analysis.text import PAPERS
from takd.experiment.labels import full_text
from takd.experiment.lineage import SUPERVISED, is_given, split
from takd.pages.tables import tex
from takd.runtime.digests import canonical_json, short_digest

PROFILE = "profiles/local"


def whole(results: Results) -> str:
    """Commands that run the whole experiment and its report."""
    run = _snakemake(results)
    commands = {f"{run} -n": "which stages would run, and why", run: "all of them"}
    commands[f"{run} --report report.zip"] = "this report"
    width = max(map(len, commands))
    return "\n".join(f"{command:{width}}  # {what}" for command, what in commands.items())


def numbers(results: Results) -> dict[str, str]:
    """For each evaluation set, a command for each model's scores, with the number in a comment."""
    found: dict[str, list[str]] = {}
    for (node, name), evaluation in results.evaluations.items():
        place = f"evaluations/{node.folder}/{name}/scores.json"
        score = number(evaluation.mean("rougeL"), digits=2)
        seed = "" if is_given(node.lineage) else f", training seed {node.seed}"
        said = _one_line(f"{full_text(node.lineage)}{seed}: ROUGE-L {score}")
        command = _snakemake(results, f"{_folder(results)}/{place}")
        found.setdefault(name, []).extend([f"# {said}", command])
    return {name: "\n".join(lines) for name, lines in found.items()}


def digests(results: Results) -> str:
    """Digests of the weights of all models, in the format of `sha256sum --check`."""
    return "\n".join(
        f"{digest}  {_folder(results)}/models/{node.folder}/{name}"
        for node, model in results.models.items()
        for name, digest in sorted(model.weights.items())
    )


def code(results: Results) -> str:
    """Commands that print the code digest of each method, to compare with the recorded one."""
    recorded: dict[str, set[str]] = {}
    for model in results.trained_here.values():
        method = split(model.node.lineage)[-1].method
        recorded.setdefault(method, set()).add(model.manifest["code"])
    lines = []
    for method in sorted(recorded, key=lambda method: (method != SUPERVISED, method)):
        program = (
            "from takd.runtime.code_digest import code_digest as digest;"
            f' print(digest("takd.training.train", "takd.methods.{method}"))'
        )
        lines.append("# " + _one_line(f"{method}: {' or '.join(sorted(recorded[method]))}"))
        lines.append(f"PYTHONPATH=src python3 -c {shlex.quote(program)}")
    return "\n".join(lines)


def identity(results: Results, data_report: dict[str, Any]) -> dict[str, str]:
    """Digests that identify this run: of its settings, its data, and all its weights."""
    rows = {name: found["sha256"] for name, found in data_report["splits"].items()}
    models = results.models.items()
    weights = {f"{n.lineage}/{n.seed}": m.manifest.get("weights", m.weights) for n, m in models}
    # the number of parts of a teacher's generations does not change them
    settings = {key: value for key, value in results.spec.items() if key != "teacher_cache"}
    return {
        "settings": short_digest(canonical_json(settings)),
        "data": short_digest(canonical_json(rows)),
        "weights": short_digest(canonical_json(weights)),
    }


def bibtex(results: Results, data_report: dict[str, Any]) -> str:
    """BibTeX entries of the two papers and of this run, whose author and date no file holds."""
    spec = results.spec
    found = identity(results, data_report)
    note = ", ".join(f"{key} {digest}" for key, digest in found.items())
    seeds = f"training seeds {', '.join(map(str, spec['seeds']))}"
    draws = f"decoding seeds {', '.join(map(str, spec['decoding_seeds']))}"
    key = "".join(c for c in spec["experiment"] if c.isascii() and (c.isalnum() or c in "-."))
    entry = (
        f"@misc{{takd-{key}-{found['settings']},\n"
        f"  title = {{{tex(_one_line(spec['title']))}}},\n"
        f"  note  = {{Experiment {tex(_one_line(spec['experiment']))} of the workflow takd; digests: {note};\n"
        f"           {seeds}; {draws}}}\n"
        "}\n"
    )
    return f"{entry}\n{PAPERS}"


def _folder(results: Results) -> str:
    return f"results/{results.spec['experiment']}"


def _snakemake(results: Results, *targets: str) -> str:
    # targets first: --config takes all arguments after it as settings
    settings = f"experiment={results.spec['experiment']}"
    return shlex.join(["snakemake", *targets, "--profile", PROFILE, "--config", settings])


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
