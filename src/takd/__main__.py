"""Check an experiment before it runs, and its results afterwards; evaluate a model without one.

    python -m takd new [NAME] [--models TEACHER ... STUDENT] [--data FOLDER] [--methods ...]
    python -m takd plan [--experiment NAME] [--profile profiles/slurm] [--gpu v100l] [--config data=FOLDER]
    python -m takd doctor                           the same options
    python -m takd data [--experiment NAME] [--config data=FOLDER]
    python -m takd verify [--experiment NAME | FOLDER]
    python -m takd watch [NAME] [--once]
    python -m takd track [NAME] [--trackers ...] [--follow]
    python -m takd evaluate --model FOLDER --data FILE [--output FOLDER]
    python -m takd adopt FOLDER [--store FOLDER] [--accept-code]
    python -m takd export EXPERIMENT|FOLDER [--output FOLDER] [--samples]
    python -m takd power EXPERIMENT|FOLDER [--difference 1.0]

`new` writes an experiment for your own models and data. `plan` estimates time and resources of each stage, `doctor`
lists what would prevent a run (docs/preflight.md). `data` prints row counts and digests of the data, to be copied into
the experiment file (docs/data.md). `verify` compares results with the digests in their records (docs/faults.md).
`watch` shows the stages of a run in a terminal, `track` gives its curves to TensorBoard, trackio or wandb
(docs/watching.md). `evaluate` scores one model on files of one's own, `export` writes results as the
lm-evaluation-harness does, `adopt` puts trained models into the store (docs/workflow.md). `power` says how many
training seeds and prompts tell a difference (docs/measures.md).
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from takd.commands import parsers
from takd.runtime.errors import InputError

# a user's folder that declares the workflow as a module, else the repository
HERE, REPOSITORY = Path.cwd(), Path(__file__).resolve().parents[2]
SNAKEFILES = "Snakefile", "workflow/Snakefile"
ROOT = HERE if any((HERE / name).is_file() for name in SNAKEFILES) else REPOSITORY
EXPECTED = ("expect_rows", "rows_sha256")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    The code is 1 where `doctor` finds an error, `verify` finds a fault, or an argument is wrong.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def new(options: argparse.Namespace) -> int:
    """Write an experiment file from options, and from answers to questions in a terminal."""
    from takd.commands import new

    path = new.write(ROOT, vars(options), new.in_terminal())
    print(new.said(path, ROOT))
    return 0


def plan(options: argparse.Namespace) -> int:
    """Print the table of planned stages."""
    from takd.experiment.experiment import SEEDS
    from takd.experiment.looks import asked_for
    from takd.preflight import table
    from takd.preflight.collect import prepare
    from takd.preflight.schedule import headline

    asked = _asked(options)
    planner, planned, profile = prepare(ROOT, **asked)
    first, more = headline(planner, planned, profile), {}
    if planner.experiment.looks:
        most, least = (
            len(each.seeds) for each in (planner.experiment, asked_for(planner.experiment))
        )
        variables = {**asked["variables"], SEEDS: str(least)}
        of_least = prepare(ROOT, **{**asked, "variables": variables})
        more = {"at_least": {"seeds": least, "headline": headline(*of_least)}}
        first = (
            f"At least, with {least} training seeds: {headline(*of_least)}\n\n"
            f"At most, with {most}, and in the table: {first}"
        )
    if options.json:
        found = {"headline": first, **more, **table.as_json(planner, planned)}
        print(json.dumps(found, indent=1))
    else:
        print(f"{first}\n\n{table.text(planner, planned)}")
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Print the problems that would prevent or disturb a run."""
    from takd.preflight import doctor
    from takd.preflight.collect import facts, prepare

    prepared = prepare(ROOT, **_asked(options))
    findings = doctor.examine(facts(*prepared), prepared.planner, prepared.planned)
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        print("\n".join(map(str, findings)))
    return int(any(finding.level == "error" for finding in findings))


def data(options: argparse.Namespace) -> int:
    """Print `expect_rows` and `rows_sha256` of each split, ready for the experiment file."""
    from takd.data.filters import Digest
    from takd.data.sources import rows
    from takd.data.tally import Unused
    from takd.experiment import specs
    from takd.preflight.collect import read_experiment

    read = read_experiment(ROOT, options.experiment, _pairs(options.config, "--config"))
    wrong = 0
    for split in read.splits:
        if split == "corpus":
            continue
        source = {k: v for k, v in specs.data(read, split)["source"].items() if k not in EXPECTED}
        found, unused, without_input = Digest(), Unused(), 0
        try:
            for row in rows(source, unused=unused):
                found.add(row)
                without_input += not row.input
        except InputError as error:  # other splits may still be readable
            print(f"{split}: {error}", file=sys.stderr)
            wrong = 1
        else:
            print(f"{split}: {{expect_rows: {found.count}, rows_sha256: {found.sha256}}}")
            for sentence in unused.sentences(found.count, without_input):
                print(f"{split}: {sentence}", file=sys.stderr)
    return wrong


def verify(options: argparse.Namespace) -> int:
    """Print each fault in the results on its own line, then a summary."""
    from takd.preflight.collect import experiment_name
    from takd.runtime.verify import verify

    results = options.folder or ROOT / "results" / experiment_name(ROOT, options.experiment)
    found = verify(results, threads=os.cpu_count() or 1)
    for fault in found.faults:
        print(fault)
    count = len(found.faults)
    said = f"{count} fault{'s' if count > 1 else ''}" if count else "no fault"
    print(f"{results}: {found.files} files, {found.bytes:,} bytes compared, {said}")
    return int(count > 0)


def watch(options: argparse.Namespace) -> int:
    """Show the stages of a run, their progress and the last dev scores."""
    from takd.preflight.collect import read_experiment
    from takd.watching import screen

    read = read_experiment(ROOT, options.experiment, _pairs(options.config, "--config"))
    return screen.watch(read, options.once)


def track(options: argparse.Namespace) -> int:
    """Give the learning curves of a run to its trackers."""
    from takd.preflight.collect import read_experiment
    from takd.watching import track
    from takd.watching.trackers import TRACKERS

    read = read_experiment(ROOT, options.experiment, _pairs(options.config, "--config"))
    names = options.trackers or read.settings["report"]["trackers"]
    known = ", ".join(TRACKERS)
    if not names:
        raise InputError(
            f"{read.name} has no report.trackers; name one of {known} with --trackers."
        )
    return track.run(read, names, options.follow, options.parent)


def evaluate(options: argparse.Namespace) -> int:
    """Score one model on the rows of some files."""
    from takd.commands.evaluate import evaluate

    return evaluate(options)


def export(options: argparse.Namespace) -> int:
    """Write the results of an experiment, or below a folder, for other programs."""
    from takd.commands.export import export

    return export(ROOT, options, _pairs(options.config, "--config"))


def power(options: argparse.Namespace) -> int:
    """Say how many training seeds and prompts tell a difference, from the results that are there."""
    from takd.commands.power import power

    return power(ROOT, options, _pairs(options.config, "--config"))


def adopt(options: argparse.Namespace) -> int:
    """Put the trained models of finished results into the store."""
    from takd.commands.adopt import adopt

    return adopt(ROOT, options)


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    if options.card:
        raise InputError(f"--card is called --gpu: --gpu {options.card}")
    counts = _pairs(options.rows, "--rows")
    for name, text in counts.items():
        if not text.isdecimal() or int(text) < 1:
            right = f"must end in a number of rows, such as {name}=1000."
            raise InputError(f"--rows {name}={text} {right}")
    return {
        "name": options.experiment,
        "profile": options.profile,
        "gpu": options.gpu,
        "variables": _pairs(options.config, "--config"),
        "counts": {name: int(text) for name, text in counts.items()},
    }


def _pairs(words: list[str], option: str) -> dict[str, str]:
    found = dict(word.partition("=")[::2] for word in words)
    for name, value in found.items():
        if not value:
            raise InputError(f"{option} {name} must be NAME=VALUE.")
    return found


def _parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m takd", description=about)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    text = "write an experiment file for your own models and data"
    command = commands.add_parser("new", help=text, description=text)
    command.set_defaults(run=new)
    command.add_argument("name", nargs="?", metavar="NAME", help="of the experiment")
    models = "teacher, assistants, student: folders, .gguf files, or SIZE=NAME@COMMIT of the hub"
    command.add_argument("--models", nargs="+", metavar="MODEL", help=models)
    rows = "folder with train.jsonl, and dev.jsonl and eval/*.jsonl if there are any"
    command.add_argument("--data", metavar="FOLDER", help=rows)
    command.add_argument("--methods", nargs="+", metavar="METHOD", help="of each hop")
    command.add_argument("--tokenizer", metavar="MODEL", help="default: the teacher's")
    for run, text in (
        (plan, "estimate time, memory and disk of each stage"),
        (doctor, "list what would prevent a run"),
        (data, "print row counts and digests of the data"),
        (verify, "compare results with their digests"),
        (watch, "show the stages of a run and their progress"),
        (track, "give learning curves to TensorBoard, trackio or wandb"),
    ):
        command = commands.add_parser(run.__name__, help=text, description=text)
        command.set_defaults(run=run)
        add = command.add_argument
        watches = run in (watch, track)
        name = "experiment" if watches else "--experiment"
        nargs: dict[str, Any] = {"nargs": "?"} if watches else {}
        add(name, metavar="NAME", help="default: the one in config/config.yaml", **nargs)
        if run is verify:
            text = "folder of results (default: those of the experiment)"
            add("folder", nargs="?", type=Path, metavar="FOLDER", help=text)
            continue
        pairs: dict[str, Any] = {"nargs": "+", "default": []}
        add("--config", metavar="NAME=VALUE", help="variables of the experiment", **pairs)
        if run is watch:
            add("--once", action="store_true", help="print lines once, as without a terminal")
        if run is track:
            known = ("tensorboard", "trackio", "wandb")
            text = "default: report.trackers of the experiment"
            add("--trackers", nargs="+", choices=known, help=text)
            add("--follow", action="store_true", help="go on while the run does, until Ctrl-C")
            add("--parent", type=int, help=argparse.SUPPRESS)  # ends with this process
        if run in (data, watch, track):
            continue
        add("--profile", metavar="FOLDER", help="Snakemake profile, such as profiles/slurm")
        add("--gpu", metavar="NAME", help="such as v100l (default: of the profile or machine)")
        add("--card", help=argparse.SUPPRESS)  # the former name of --gpu
        add("--rows", metavar="SPLIT=COUNT", help="row counts of missing data", **pairs)
        add("--json", action="store_true", help="print JSON")
    for run, add_options, text in (
        (evaluate, parsers.evaluate, "score one model"),
        (adopt, parsers.adopt, "put models into the store"),
        (export, parsers.export, "write results for others"),
        (power, parsers.power, "say how many seeds and prompts tell a difference"),
    ):
        command = commands.add_parser(run.__name__, help=text, description=run.__doc__)
        command.set_defaults(run=run)
        add_options(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
