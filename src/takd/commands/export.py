"""Write results in the formats of other programs."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from takd.analysis import harness
from takd.analysis.folder import inner, read_folder
from takd.analysis.results import read
from takd.experiment import specs
from takd.experiment.experiment import NAME, file_of
from takd.preflight.collect import read_experiment
from takd.runtime.errors import InputError


def export(root: Path, options: Namespace, variables: Mapping[str, str]) -> int:
    """Write the results of an experiment of the repository `root`, or below any folder; print the files.

    Args:
        variables: of the experiment, as `--config` gives them.

    Raises:
        InputError: there are no such results, or they are unfinished or damaged; or variables for a folder.
    """
    name = options.results
    if NAME.fullmatch(name) and file_of(root, name).is_file():
        folder = root / "results" / name
        if not folder.is_dir():
            raise InputError(f"experiment '{name}' has no results yet ({folder}); run it first.")
        spec = specs.report(read_experiment(root, name, variables))
        found = read(spec, *(folder / part for part in ("models", "evaluations", "teachers")))
    elif variables:
        raise InputError(f"--config goes with an experiment, and {name} is none; remove it.")
    else:
        folder = inner(Path(name))
        found = read_folder(folder)
    target = options.output or Path("results/lm-eval") / found.spec["experiment"]
    for path in harness.write(found, folder, target, options.samples):
        print(path)
    return 0
