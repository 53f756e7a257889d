"""Which experiments are compared, which files are read, and whether they exist. Read while Snakemake plans.

The first experiment (`experiment=`) is run and brought up to date, as for its report. The others (`with=`) are only
read and must be finished.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from takd.experiment import specs
from takd.experiment.captions import escape, numbered
from takd.experiment.experiment import SEEDS, Experiment, file_of, load
from takd.experiment.lineage import GIVEN, student_of
from takd.models.starting_weights import KNOWN_BY_CONTENT
from takd.runtime.digests import canonical_json, short_digest
from takd.runtime.errors import InputError

KEY = "with"
"""Key of `--config` for the names of the experiments to compare with, separated by commas."""
MOST = 10
"""Maximum number of experiments: a page has only so many columns, a figure so many colours."""
LONGEST = 80  # characters of a folder's name that come from names of experiments
JUDGE = "judge/judge.json"


class Part(NamedTuple):
    """A file of the comparison, and what Snakemake's report says of it; `workflow/report/<stem>.rst` is its caption."""

    file: str
    about: str
    form: str


DIFFERENCES, CURVES = "What differs, in settings and in scores", "ROUGE-L on dev"
PARTS = {
    "page": Part("comparison.html", DIFFERENCES, "page"),
    "table": Part("comparison.csv", "All numbers side by side", "table (CSV)"),
    "curves": Part("comparison-curves.svg", CURVES, "figure"),
    "curves_csv": Part("comparison-curves.csv", CURVES, "numbers (CSV)"),
}
"""Files of a comparison, by the names of the stage's outputs."""

NOTHING_NAMED = (
    "compare needs the experiments to compare with: snakemake --profile profiles/local compare"
    " --config experiment=NAME with=OTHER,ANOTHER"
)


def others(value: Any, first: str) -> list[str]:
    """Parse the names in `with=`, in the order given: a text with commas, or a list.

    Raises InputError for an invalid name, a repeated one, that of the first experiment, and for too many names.
    """
    if value is None:
        return []
    words = value if isinstance(value, list) else str(value).split(",")
    names = [str(word).strip() for word in words]

    def error(text: str) -> InputError:
        return InputError(f"--config {KEY}={value}: {text}")

    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9._+-]+", name):
            right = "a name has letters, digits and . _ + - only, and commas stand between names."
            raise error(f"{name!r} cannot be compared; {right}")
    for place, name in enumerate(names):
        if name == first or name in names[:place]:
            again = "is the experiment itself" if name == first else "stands there twice"
            raise error(f"'{name}' {again}; name each other experiment once.")
    if len(names) >= MOST:
        raise error(f"names {len(names)} experiments; at most {MOST - 1} can be compared with one.")
    return names


def load_all(
    root: Path, first_name: str, named: Any, variables: Mapping[str, str]
) -> list[Experiment]:
    """Load the experiment to run and those to compare it with (the value of `with=`).

    Each variable is passed to the experiments whose file uses it in a path, and the number of seeds to all. A variable
    that no file uses is passed to the first experiment, whose loading then fails with an error.
    """
    paths = [file_of(root, str(name)) for name in (first_name, *others(named, first_name))]
    used = [_variables(path) | {SEEDS} for path in paths]
    used[0] |= set(variables) - set().union(*used)
    return [
        load(path, root, {name: value for name, value in variables.items() if name in names})
        for path, names in zip(paths, used, strict=True)
    ]


def _variables(file: Path) -> set[str]:
    """Names in braces in an experiment file; empty for a missing file, which `load` reports."""
    text = file.read_bytes().decode(errors="replace") if file.is_file() else ""
    return set(re.findall(r"\{(\w+)\}", text))


def results(experiment: Experiment) -> str:
    """Folder of an experiment's results."""
    return f"results/{experiment.name}"


def files(experiment: Experiment, measured: Sequence[str]) -> list[str]:
    """List the files that are read of an experiment.

    Args:
        measured: names of the files of each evaluation; they depend on whether the experiment has a judge.
    """
    models = dict.fromkeys(student_of(node.lineage) for node in experiment.trainings)
    judged = bool(experiment.settings["evaluation"]["judge"])
    scores = [*(file for file in measured if file != JUDGE), *([JUDGE] if judged else [])]
    nodes = [node.folder for node in experiment.nodes]
    found = [
        *(f"data/{name}/manifest.json" for name in (*experiment.splits, "tokenizer")),
        *(f"base/{model}/manifest.json" for model in models),
        *(f"models/{node}/manifest.json" for node in nodes),
        *(f"models/{node.folder}/metrics.jsonl" for node in experiment.trainings),
        *(f"teachers/{f}" for e in experiment.teacher_cache for f in (e.manifest, *e.logs)),
        *(f"evaluations/{n}/{name}/{f}" for n in nodes for name in experiment.sets for f in scores),
    ]
    return [f"{results(experiment)}/{file}" for file in found]


def check(
    first: Experiment,
    rest: Sequence[Experiment],
    measured: Sequence[str],
    variables: Mapping[str, str],
) -> None:
    """Raise InputError if the experiment cannot be compared with the `rest`, which may be empty."""
    for each in rest:
        require_finished(each, measured, variables)
    if rest:
        require_shared([first, *rest])


def require_finished(
    experiment: Experiment, measured: Sequence[str], variables: Mapping[str, str]
) -> None:
    """Raise InputError for an unfinished experiment, naming the missing files and how to make them."""
    missing = [path for path in files(experiment, measured) if not Path(path).is_file()]
    if missing:
        used = _variables(file_of(experiment.root, experiment.name)) | {SEEDS}
        words = [f"{name}={value}" for name, value in variables.items() if name in used]
        command = " ".join([f"--config experiment={experiment.name}", *words])
        more = f" and {len(missing) - 1} more of its files" if len(missing) > 1 else ""
        raise InputError(
            f"Experiment '{experiment.name}' is not finished, so nothing can be compared with it: it lacks"
            f" {missing[0]}{more}; run it first: snakemake --profile profiles/local {command}"
        )


def require_shared(experiments: Sequence[Experiment]) -> None:
    """Raise InputError for an experiment that has no model in common with any other."""
    for experiment in experiments:
        rest = [other for other in experiments if other is not experiment]
        if not {node.lineage for node in experiment.nodes} & {
            n.lineage for e in rest for n in e.nodes
        }:
            raise InputError(
                f"Experiment '{experiment.name}' has no model in common with"
                f" {', '.join(other.name for other in rest)}: models are the same where their chains have the same"
                " model names and methods. Name an experiment with at least one such chain."
            )


def folder(names: Sequence[str]) -> str:
    """Name the folder of a comparison with the experiments `names`."""
    joined = "+".join(names)
    return joined if len(joined) <= LONGEST else f"{joined[:LONGEST]}-{short_digest(*names)}"


def spec(first: Experiment, rest: Sequence[Experiment], measured: Sequence[str]) -> dict[str, Any]:
    """Settings of the comparison stage.

    `made` holds digests of the settings that each training would have now, which show whether the models were trained
    with other settings. `content` changes with the results of the experiments that are only read, whatever their time
    stamps; the results of the first experiment are inputs that Snakemake itself keeps up to date.
    """
    return {
        "experiments": [
            {
                "name": each.name,
                "report": specs.report(each) | {"samples": 0},
                "settings": each.settings,
                "made": {node.folder: made(specs.made_with(each, node)) for node in each.nodes},
                "content": None if each is first else content(each, measured),
            }
            for each in (first, *rest)
        ]
    }


def made(settings: Mapping[str, Any]) -> str:
    """Digest of the settings of one training; weights that are taken as they are count by their files alone."""
    content = {k: v for k, v in settings.items() if k not in KNOWN_BY_CONTENT}
    return short_digest(canonical_json(content if settings.get("method") == GIVEN else settings))


def content(experiment: Experiment, measured: Sequence[str]) -> str:
    """Digest of all small files of an experiment's results; these name the large files or determine them."""
    small = [path for path in files(experiment, measured) if path.endswith(".json")]
    return short_digest(*(part for path in small for part in (path, Path(path).read_text("utf-8"))))


def facts(experiments: Sequence[Experiment]) -> dict[str, str]:
    """Build the texts for the captions."""
    first, *rest = experiments
    seeds = [
        f"{each.name}: {numbered(each.seeds, 'training seed')},"
        f" {numbered(each.settings['evaluation']['seeds'], 'decoding seed')}"
        for each in experiments
    ]
    return {
        "first": escape(first.name),
        "others": escape(", ".join(each.name for each in rest)),
        "seeds": escape("; ".join(seeds)),
    }
