"""Write results in the formats of other programs."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from takd.analysis import harness
from takd.commands.found import results_of


def export(root: Path, options: Namespace, variables: Mapping[str, str]) -> int:
    """Write the results of an experiment of the repository `root`, or below any folder; print the files.

    Args:
        variables: of the experiment, as `--config` gives them.

    Raises:
        InputError: there are no such results, or they are unfinished or damaged; or variables for a folder.
    """
    found, folder = results_of(root, options.results, variables)
    target = options.output or Path("results/lm-eval") / found.spec["experiment"]
    for path in harness.write(found, folder, target, options.samples):
        print(path)
    return 0
