"""Put the trained models of finished results into the store, from which runs take what they would train."""

import json
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from takd.experiment import specs
from takd.experiment.experiment import NAME, Experiment, file_of
from takd.experiment.lineage import Node
from takd.experiment.yaml12 import read_yaml
from takd.preflight.collect import read_experiment
from takd.preflight.planned_jobs import differences
from takd.runtime import store
from takd.runtime.code_digest import code_digest
from takd.runtime.digests import canonical_json, leaves
from takd.runtime.errors import InputError
from takd.runtime.records import DamagedError, Record, faults, read_record

KINDS = {"data": "split", "base": "model", "tokenizer": None}
"""What a training reads besides models, by the kind in its record, and the setting that says which one."""


def adopt(root: Path, options: Namespace) -> int:
    """Put each sound model below a folder of results into the store; say what becomes of each.

    Models are compared with the settings of an experiment: those that differ are named with each difference, since a
    run of that experiment trains them.

    Returns:
        1 if a model was damaged or cannot be told from others.

    Raises:
        InputError: there is no store, no folder, or no trained model in it; or no such experiment.
    """
    folder, target = options.folder, options.store or of_config(root)
    if target is None:
        right = "give --store FOLDER, or set store in config/config.yaml"
        raise InputError(f"adopt: no store is named; {right}.")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one below results/.")
    experiment = _experiment(root, folder, options.experiment)
    wrong, seen = 0, []
    for place, record, inputs in store.finished(folder):
        seen.append(Node(record["lineage"], record["seed"]))
        name = _named(seen[-1])
        fault = next(iter(_faults(place / store.MANIFEST, record)), None)
        if fault or inputs is None:
            wrong += 1
            unknown = "what it was made from does not lie there, so that it cannot be identified"
            print(f"{name}: left out: {fault or unknown}")
            continue
        now = code_digest("takd.training.train", f"takd.methods.{record['method']}")
        code = now if options.accept_code else record["code"]
        entry = store.Entry(target, store.key(record["spec"], code, inputs))
        said = "is in the store already"
        if damage := _damage(entry):
            entry.put_aside()
        if entry.fill(place):
            said = f"put into the store{f', where it was damaged ({damage})' if damage else ''}"
        if code != now:
            said += f", for the code that trained it ({code}); runs take it with that code, or after --accept-code"
        if experiment and (differing := _differing(experiment, seen[-1], record, inputs)):
            said += f"; {experiment.name} trains another: {', '.join(differing)}"
        print(f"{name}: {said}")
    if not seen:
        raise InputError(f"{folder}: holds no trained model (models/LINEAGE/seedN/manifest.json).")
    if experiment is None:
        says = "--experiment NAME says which settings are those of today"
        print(f"compared with no experiment; {says}")
    elif missing := [_named(node) for node in experiment.trainings if node not in seen]:
        print(f"{experiment.name} also trains: {', '.join(missing)}")
    return int(wrong > 0)


def of_config(root: Path) -> Path | None:
    """Return the store that config/config.yaml names; None if it names none."""
    file = "config/config.yaml"
    named = read_yaml(root / file, file).value.get("store") if (root / file).is_file() else None
    return Path(str(named)).expanduser() if named else None


def _experiment(root: Path, folder: Path, name: str | None) -> Experiment | None:
    """Read the experiment with which results are compared; None if no file has the name of their folder."""
    chosen = name or folder.resolve().name
    if name is None and not (NAME.fullmatch(chosen) and file_of(root, chosen).is_file()):
        return None
    return read_experiment(root, chosen, {})


def _named(node: Node) -> str:
    return f"{node.lineage} seed {node.seed}"


def _faults(manifest: Path, record: Record) -> list[str]:
    return faults(manifest, record, None, os.cpu_count() or 1)


def _damage(entry: store.Entry) -> str | None:
    """Say what is wrong with an entry of the store; None if it is sound or not there."""
    manifest = entry.folder / store.MANIFEST
    if not entry.folder.exists():
        return None
    try:
        return next(iter(_faults(manifest, read_record(manifest))), None)
    except (DamagedError, FileNotFoundError) as error:
        return str(error)


def _differing(
    experiment: Experiment, node: Node, record: Record, inputs: Mapping[str, Sequence[Record]]
) -> list[str]:
    """Name what an experiment says otherwise of a model and of what it was made from: `key recorded → today`."""
    if node not in experiment.trainings:
        return ["it has no such model"]
    found = _changes(record["spec"], specs.train(experiment, *node))
    for read in (each for records in inputs.values() for each in records):
        kind, spec = read.get("kind"), read.get("spec", {})
        if kind not in KINDS:
            continue
        which = [spec[KINDS[kind]]] if KINDS[kind] else []
        name = " ".join((kind, *which))
        try:
            now = getattr(specs, kind)(experiment, *which)
        except (InputError, KeyError, OSError) as error:
            found.append(f"{name} cannot be compared ({error})")
            continue
        # sources are known by their content, and are no part of the record
        found += [f"{name}: {each}" for each in _changes(spec, now, of=spec)]
    return list(dict.fromkeys(found))


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], of: Iterable[str] | None = None
) -> list[str]:
    """Name differing settings; of the keys `of`, if given."""
    kept = new if of is None else {key: new[key] for key in of if key in new}
    return differences(leaves(old), leaves(json.loads(canonical_json(kept))))  # as a record has it
