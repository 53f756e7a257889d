"""Store of trained models that several experiments, users and machines share.

A model is known by a digest of all that determines it: the settings of its training, the code, and the contents of what
the training read. Names of models and experiments are no part of it. A training that finds its model there takes it,
verified by the digests in its record; one that does not puts it there when it ends. The folder is named by the
environment variable `TAKD_STORE`, so that it is part of no settings and no command.

An entry is a folder named by the digest that appears whole, by renaming. Whoever begins to train a model claims it
with a lock; others wait for that one, and train it themselves if it ends without a result.
"""

import contextlib
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from takd.runtime.digests import canonical_json, file_digest
from takd.runtime.records import DamagedError, Record, digests, read_log, read_record
from takd.runtime.stage import Interrupted, Stage
from takd.runtime.stage_lock import InUseError, Lock

VARIABLE = "TAKD_STORE"
MANIFEST, LOG = "manifest.json", "metrics.jsonl"
SECONDS_BETWEEN_TRIES = 2.0
OLD = 7 * 24 * 3600.0
"""Age in seconds of a partial or damaged entry that is removed."""
NAMES = ("lineage", "model", "teacher", "init")
"""Settings of a training that only name what it reads and makes."""
CONTENT = ("files", "kind", "rouge_tokenizer")
"""What a record says of the content of a stage's result, as far as trainings read it."""
OF_THE_RUN = ("digest", "inputs", "files", "log", *NAMES)


def key(spec: Mapping[str, Any], code: str, inputs: Mapping[str, Sequence[Record]]) -> str:
    """Return the digest of all that determines a trained model, with the records of what it reads by name."""
    settings = {name: value for name, value in spec.items() if name not in NAMES}
    content = {
        name: [{part: record.get(part) for part in CONTENT} for record in records]
        for name, records in inputs.items()
    }
    return hashlib.sha256(canonical_json([settings, code, content]).encode()).hexdigest()


def of(stage: Stage) -> "Entry | None":
    """Return the place of a stage's result in the store; None without a store, or if the stage trains no model."""
    folder = os.environ.get(VARIABLE)
    if not folder or "model" not in stage.outputs or "settings" not in stage.spec:
        return None
    inputs = {name: [read_record(path) for path in paths] for name, paths in stage.inputs.items()}
    return Entry(Path(folder), key(stage.spec, stage.code, inputs))


class Entry:
    """One model of the store, in its `folder`, which may be there or not."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.folder = root, root / name
        self._lock = Lock(root / f".{name}.lock", say=lambda text: None)

    def take_or_claim(self, stage: Stage) -> bool:
        """Take the model if it is there, else claim it; return whether it was taken.

        Waits while another process trains it.

        Raises:
            Interrupted: the stage has to stop before that one has ended.
        """
        told = False
        while not self.take(stage):
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                self._lock.keep()
            except InUseError as error:
                if not told:
                    stage.say(
                        f"{stage.spec['lineage']}: waiting to take it from the store ({error})"
                    )
                told = True
                if stage.should_stop():
                    raise Interrupted(f"{self.folder}: is still being trained elsewhere.") from None
                time.sleep(SECONDS_BETWEEN_TRIES)
            except OSError:  # a store that this user may only read
                return False
            else:
                return self.take(stage)  # it may have been put there in between
        return True

    def take(self, stage: Stage) -> bool:
        """Copy the model to the outputs of a stage, and verify it; return whether it is there and sound."""
        record = self.folder / MANIFEST
        manifest = stage.outputs["manifest"]
        folders = {p.name: p for n, p in stage.outputs.items() if n not in ("manifest", "metrics")}
        try:
            if not record.is_file():
                return False
            found = read_record(record)
            read_log(self.folder / LOG)
            work = {name: stage.temporary(path) for name, path in folders.items()}
            for file in found["files"]:
                part, _, rest = file.partition("/")
                _copy(self.folder / file, work[part] / rest)
            copied = {
                f"{name}/{file}": digest
                for name, path in work.items()
                for file, digest in digests([path], path, stage.threads).items()
            }
            if wrong := sorted({name for name, _ in copied.items() ^ found["files"].items()}):
                raise DamagedError(f"{self.folder / wrong[0]}: is not what was put there")
        except PermissionError as error:
            stage.say(f"{error.filename}: may not be read by this user; the model is trained")
            return False
        except (DamagedError, KeyError, FileNotFoundError) as error:
            stage.say(f"{error}; this entry of the store is not used, the model is trained")
            self.put_aside()
            return False
        for path in folders.values():
            stage.commit(path)
        # not linked: Snakemake compares its time stamp with those of the inputs
        shutil.copyfile(self.folder / LOG, stage.outputs["metrics"])
        kept = {name: value for name, value in found.items() if name not in OF_THE_RUN}
        own = {name: stage.spec[name] for name in ("lineage", "model")}
        stage.write_record(manifest, found["files"], **kept | own | {"spec": stage.spec})
        stage.say(f"{stage.spec['lineage']} seed {stage.spec['seed']}: taken from the store")
        return True

    def put(self, stage: Stage) -> None:
        """Put the model that a stage has trained into the store; if another was faster, take that one.

        A store that is full or cannot be written to is reported, and does not fail the stage.
        """
        try:
            if not self.fill(stage.outputs["manifest"].parent) and self._differs(stage):
                self.take(stage)
        except OSError as error:
            said = f"could not be put into the store {self.root} ({error.strerror})"
            stage.say(f"{stage.spec['lineage']}: {said}; here it is complete")

    def put_aside(self) -> None:
        """Rename a damaged entry, so that the model can be put there anew; it is removed after a week."""
        with contextlib.suppress(OSError):
            aside = self.root / f".{self.folder.name}.damaged-{os.getpid()}"
            self.folder.rename(aside)
            os.utime(aside)  # its age counts from now

    def _differs(self, stage: Stage) -> bool:
        here, there = (path / MANIFEST for path in (stage.outputs["manifest"].parent, self.folder))
        return read_record(here)["files"] != read_record(there)["files"]

    def fill(self, folder: Path) -> bool:
        """Copy a finished model from its folder of results; return False if the store has it already."""
        if self.folder.exists():
            return False
        self.root.mkdir(parents=True, exist_ok=True)
        self._sweep()
        mark = f"{socket.gethostname()}-{os.getpid()}"
        partial = self.root / f".{self.folder.name}-{mark}.partial"
        try:
            files = [*read_record(folder / MANIFEST)["files"], LOG, MANIFEST]
            for file in files:
                _copy(folder / file, partial / file)
            for path in (partial, *partial.rglob("*")):
                path.chmod(path.stat().st_mode | (0o50 if path.is_dir() else 0o40))
            partial.rename(self.folder)  # fails if another process has just done so
        except OSError:
            if not self.folder.exists():
                raise
            return False
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return True

    def _sweep(self) -> None:
        """Remove what killed processes have left, and damaged entries that were put aside."""
        for path in (*self.root.glob(".*.partial"), *self.root.glob(".*.damaged-*")):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > OLD:
                    shutil.rmtree(path, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """Link a file where that changes neither owner nor group, else copy it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    status = source.stat()
    if (status.st_uid, status.st_gid) == (os.getuid(), target.parent.stat().st_gid):
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def finished(results: Path) -> Iterator[tuple[Path, Record, dict[str, list[Record]] | None]]:
    """Yield each trained model below a folder of results, with its record and those of what it was made from.

    The last is None where a record that it was made from does not lie there.

    Raises:
        DamagedError: a record is damaged.
    """
    records = {file_digest(path): read_record(path) for path in sorted(results.rglob(MANIFEST))}
    for path in sorted((results / "models").glob(f"*/seed*/{MANIFEST}")):
        record = read_record(path)
        if "settings" not in record.get("spec", {}):
            continue
        try:
            made_from = {
                name: [records[digest] for digest in found]
                for name, found in record["inputs"].items()
            }
        except KeyError:
            made_from = None
        yield path.parent, record, made_from
