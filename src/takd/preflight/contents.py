"""Check the available data and weights of an experiment against its settings.

Such faults would otherwise stop a stage, or waste its time, once the stages before it are done.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from takd.data import sources
from takd.experiment import specs
from takd.experiment.experiment import Experiment
from takd.experiment.schema import ROW_FILTERS
from takd.models.headers import TOLERANCE, positions, safetensors_parameters
from takd.preflight.findings import Finding
from takd.preflight.flops import total_steps
from takd.preflight.jobs import Job
from takd.preflight.plan import Planned, Planner
from takd.runtime.errors import InputError

READ_WHOLE = 2**26  # bytes up to which a source is read completely, which takes a second or two
DOWNLOADS = Path("resources/downloads")


def of_sources(experiment: Experiment, jobs: Sequence[Job]) -> Iterator[Finding]:
    """Check that local data have the rows that training and evaluation read, and that dev does not repeat train.

    Of large files and of folders, only the first row is read.
    """
    splits = [job.wildcards["split"] for job in jobs if job.rule == "data" and job.to_do]
    prompts: dict[str, list[tuple[str, str]]] = {}
    fine = True
    for split in splits:
        try:
            prompts[split] = list(_prompts(experiment, split))
        except InputError as error:
            fine = False
            yield Finding("error", "data", f"{split}: {error}")
    train = set(prompts.get("train", ()))
    twice = sum(prompt in train for prompt in prompts.get("dev", ()))
    if twice:
        text = (
            f"{twice} of the {len(prompts['dev'])} rows of dev that were read stand in train too, so that dev chooses"
            " the weights that repeat training rows best: take other rows (`rows` cuts two parts of one file)."
        )
        yield Finding("warning", "data", text)
    elif fine and splits:
        yield Finding("ok", "data", "the rows of local files have the columns that are read")


def _prompts(experiment: Experiment, split: str) -> Iterator[tuple[str, str]]:
    """Prompts of a split whose source is on this machine: all, or only the first. None of a corpus.

    Raises:
        InputError: it has no row, or an invalid row.
    """
    spec = specs.data(experiment, split)["source"]
    # digests and counts are checked by the stage that reads all rows
    source = {key: value for key, value in spec.items() if key not in (*ROW_FILTERS, "sha256")}
    if "url" in source:
        place = experiment.root / DOWNLOADS / spec["sha256"]
        source = {**source, "json": str(place)}
    elif kind := next((kind for kind in ("json", "text", "folder") if kind in source), None):
        place = experiment.root / source[kind]
        source = {**source, kind: str(place)}
    elif "demo" in source:
        yield from (row.prompt for row in sources.rows(source))
        return
    else:
        return
    if not place.exists():
        return
    large = place.is_dir() or place.stat().st_size > READ_WHOLE
    if place.is_dir() and sum(f.stat().st_size for f in sources.files_below(place)) > READ_WHOLE:
        return  # datasets would convert all of it first
    if split == "corpus":
        found: list[Any] = list(islice(sources.texts(source), 1))
    elif large:
        found = list(islice(sources.rows({k: v for k, v in source.items() if k != "rows"}), 1))
    else:
        found = list(sources.rows(source))
    if not found:
        raise InputError(f"{sources.describe(source)} holds no row.")
    if split != "corpus":
        yield from (row.prompt for row in found)


def of_weights(experiment: Experiment, jobs: Sequence[Job]) -> Iterator[Finding]:
    """Check that local models have the declared size and enough positions for `max_length`."""
    names = [job.wildcards["model"] for job in jobs if job.rule == "base" and job.to_do]
    longest = experiment.settings["data"]["max_length"]
    fine, looked = True, False
    # prepared weights are links to a folder or to the Hub's cache
    before = (
        set(experiment.settings["models"]) - set(names)
        if any(job.trains and job.to_do for job in jobs)
        else ()
    )
    for name in sorted(before):
        record = experiment.root / "results" / experiment.name / "base" / name / "manifest.json"
        gone = [link for link in (record.parent / "model").glob("*") if not link.exists()]
        if gone:
            fine = False
            text = (
                f"model '{name}': {gone[0]} leads to {gone[0].readlink()}, which is gone; bring it back, or delete"
                f" {record} and start again, which fetches the weights anew."
            )
            yield Finding("error", "weights", text)
    for name in names:
        weights = experiment.settings["models"][name]["weights"]
        if "folder" not in weights or not (folder := experiment.root / weights["folder"]).is_dir():
            continue
        looked = True
        most = positions(folder)
        if most is not None and most < longest:
            fine = False
            text = f"model '{name}' has {most} positions, but data.max_length is {longest}; set at most {most}."
            yield Finding("error", "weights", text)
        counted = None if "keep_layers" in weights else safetensors_parameters(folder)
        declared = experiment.parameters[name]
        if counted is not None and abs(counted / declared - 1) > TOLERANCE:
            fine = False
            text = (
                f"model '{name}' is declared with {declared:.3g} parameters, but its weights have {counted:.3g};"
                " correct `parameters`, or remove it: of a folder they are counted."
            )
            yield Finding("error", "weights", text)
    if fine and looked:
        yield Finding("ok", "weights", "local models are as large as declared and read max_length")


def of_warmup(planner: Planner, planned: Sequence[Planned]) -> Iterator[Finding]:
    """Check that each training is longer than its warm-up."""
    seen: set[str] = set()
    for each in planned:
        if not (each.job.trains and each.job.to_do) or each.stage in seen:
            continue
        seen.add(each.stage)
        settings: Mapping[str, Any] = planner.spec(each.job)["settings"]
        steps = total_steps(
            settings, planner.rows["train"].first(settings["rows"]), each.job.method
        )
        if steps is not None and 0 < steps <= settings["warmup_steps"]:
            text = (
                f"{each.stage} ends after {steps} steps, within its warm-up of {settings['warmup_steps']}"
                " (warmup_steps): its learning rate never gets to learning_rate."
            )
            yield Finding("warning", "warm-up", text)
