"""Put the trained models of finished results into the store, from which runs take what they would train."""

import os
from argparse import Namespace
from pathlib import Path

from takd.experiment.yaml12 import read_yaml
from takd.runtime import store
from takd.runtime.code_digest import code_digest
from takd.runtime.errors import InputError
from takd.runtime.records import faults


def adopt(root: Path, options: Namespace) -> int:
    """Put each sound model below a folder of results into the store; say what becomes of each.

    Returns:
        1 if a model was damaged or cannot be told from others.

    Raises:
        InputError: there is no store, no folder, or no trained model in it.
    """
    folder, target = options.folder, options.store or of_config(root)
    if target is None:
        right = "give --store FOLDER, or set store in config/config.yaml"
        raise InputError(f"adopt: no store is named; {right}.")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one below results/.")
    wrong = count = 0
    for place, record, inputs in store.finished(folder):
        count += 1
        name = f"{record['lineage']} seed {record['seed']}"
        found = faults(place / store.MANIFEST, record, None, os.cpu_count() or 1)
        if inputs is None:
            found.append(
                "what it was made from does not lie there, so that it cannot be identified"
            )
        if found:
            wrong += 1
            print(f"{name}: left out: {found[0]}")
            continue
        assert inputs is not None
        now = code_digest("takd.training.train", f"takd.methods.{record['method']}")
        code = now if options.accept_code else record["code"]
        entry = store.Entry(target, store.key(record["spec"], code, inputs))
        said = "put into the store" if entry.fill(place) else "is in the store already"
        if code != now:
            said += f", for the code that trained it ({code}); runs take it with that code, or after --accept-code"
        print(f"{name}: {said}")
    if not count:
        raise InputError(f"{folder}: holds no trained model (models/LINEAGE/seedN/manifest.json).")
    return int(wrong > 0)


def of_config(root: Path) -> Path | None:
    """Return the store that config/config.yaml names; None if it names none."""
    file = "config/config.yaml"
    named = read_yaml(root / file, file).value.get("store") if (root / file).is_file() else None
    return Path(str(named)).expanduser() if named else None
