"""Check the available data and weights of an experiment against its settings.

Such faults would otherwise stop a stage, or waste its time, once the stages before it are done.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from takd.data import letters, sources
from takd.data.row import Row
from takd.experiment import specs
from takd.experiment.experiment import Experiment
from takd.methods.schedule import total_steps
from takd.models.weight_files import TOLERANCE, positions, safetensors_parameters
from takd.preflight import lengths
from takd.preflight.findings import Finding, error, ok, warning
from takd.preflight.jobs import SUPERVISED_RULES, TAKES_WEIGHTS, Job
from takd.preflight.plan import Planned, Planner
from takd.preflight.shapes import weights_of
from takd.runtime.errors import InputError
from takd.runtime.files import model_folder

READ_WHOLE = 2**26  # bytes up to which a source is read completely, which takes a second or two


def of_sources(experiment: Experiment, jobs: Sequence[Job]) -> Iterator[Finding]:
    """Check that local data have the rows that training and evaluation read, and that dev does not repeat train.

    Of large files and of folders, only the first row is read.
    """
    splits = [job.wildcards["split"] for job in jobs if job.rule == "data" and job.to_do]
    rows: dict[str, list[Row]] = {}
    for split in splits:
        try:
            rows[split] = list(_rows(experiment, split))
        except InputError as wrong:
            yield error("data", f"{split}: {wrong}")
    turns = [turn for row in rows.get("train", ()) for turn in row.turns()]
    train, dev = {turn.prompt for turn in turns}, [row.prompt for row in rows.get("dev", ())]
    supervised = any(job.rule in SUPERVISED_RULES and job.to_do for job in jobs)
    # of large sources, one row is not all of them
    if supervised and len(turns) > 1 and not any(turn.references for turn in turns):
        yield error(
            "data", "train: no row has an answer, from which sft learns; give rows with answers."
        )
    draws = "dev" in splits and letters.are_draws(specs.data(experiment, "dev")["source"])
    if not draws and (twice := sum(prompt in train for prompt in dev)):
        yield warning(
            "data",
            f"{twice} of the {len(dev)} rows of dev that were read stand in train too, so that dev chooses"
            " the weights that repeat training rows best: take other rows (`rows` cuts two parts of one file).",
        )
    elif splits and len(rows) == len(splits):
        yield ok("data", "the rows of local files have the columns that are read")


def _rows(experiment: Experiment, split: str) -> Iterator[Row]:
    """Rows of a split whose source is on this machine: all, or only the first. None of a corpus.

    Raises:
        InputError: it has no row, or an invalid row.
    """
    # digests and counts are checked by the stage that reads all rows
    source = lengths.here(experiment, split)
    if source is None:
        return
    if "demo" in source:
        yield from sources.rows(source)
        return
    place = Path(next(source[kind] for kind in ("json", "text", "folder") if kind in source))
    files = sources.files_below(place) if place.is_dir() else [place]
    large = sum(file.stat().st_size for file in files) > READ_WHOLE
    if place.is_dir() and large:
        return  # datasets would convert all of it first
    rows: Iterator[Any]
    if split == "corpus":
        rows = islice(sources.texts(source), 1)
    elif large or place.is_dir():
        rows = islice(sources.rows({k: v for k, v in source.items() if k != "rows"}), 1)
    else:
        rows = iter(sources.rows(source))
    found = list(rows)
    if not found:
        raise InputError(f"{sources.describe(source)} holds no row.")
    if split != "corpus":
        yield from found


def of_weights(experiment: Experiment, jobs: Sequence[Job]) -> Iterator[Finding]:
    """Check local models: declared size, positions for `max_length`, and prepared weights that are still there."""
    models = experiment.settings["models"]
    to_make = [job.wildcards["model"] for job in jobs if job.rule in TAKES_WEIGHTS and job.to_do]
    folders = {
        name: experiment.root / model_folder(experiment.root, place)
        for name in to_make
        if (place := models[name]["weights"].get("folder"))
    }
    folders = {name: folder for name, folder in folders.items() if folder.is_dir()}
    made = (
        sorted(set(models) - set(to_make)) if any(job.trains and job.to_do for job in jobs) else ()
    )
    faults = [text for name in made for text in _links(experiment, name)]
    faults += [text for name in folders for text in _model(experiment, name, folders[name])]
    yield from (error("weights", text) for text in faults)
    if folders and not faults:
        yield ok("weights", "local models are as large as declared and read max_length")


def _links(experiment: Experiment, name: str) -> Iterator[str]:
    """Find prepared weights, links to a folder or to the Hub's cache, that lead nowhere."""
    made = weights_of(experiment, name)
    for link in (made / "model").glob("*"):
        if not link.exists():
            yield (
                f"model '{name}': {link} leads to {link.readlink()}, which is gone; bring it back, or delete"
                f" {made / 'manifest.json'} and start again, which fetches the weights anew."
            )
            return


def _model(experiment: Experiment, name: str, folder: Path) -> Iterator[str]:
    most, longest = positions(folder), experiment.settings["data"]["max_length"]
    if most is not None and most < longest:
        yield f"model '{name}' has {most} positions, but data.max_length is {longest}; set at most {most}."
    if "keep_layers" in experiment.settings["models"][name]["weights"]:
        return
    counted, declared = safetensors_parameters(folder), experiment.parameters[name]
    if counted is not None and abs(counted / declared - 1) > TOLERANCE:
        yield (
            f"model '{name}' is declared with {declared:.3g} parameters, but its weights have {counted:.3g};"
            " correct `parameters`, or remove it: of a folder they are counted."
        )


def of_warmup(planner: Planner, planned: Sequence[Planned]) -> Iterator[Finding]:
    """Check that each training is longer than its warm-up."""
    trainings = {each.job.stage: each.job for each in planned if each.job.trains and each.job.to_do}
    for stage, job in trainings.items():
        settings = planner.spec(job)["settings"]
        rows = planner.rows["train"].first(settings["rows"])
        steps, warmup = total_steps(settings, rows.count), settings["warmup_steps"]
        if steps is not None and 0 < steps <= warmup:
            yield warning(
                "warm-up",
                f"{stage} ends after {steps} steps, within its warm-up of {warmup}"
                " (warmup_steps): its learning rate never gets to learning_rate.",
            )
