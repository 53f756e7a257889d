"""Give the curves of an experiment's trainings to trackers, once or while they run.

What a tracker has is kept in `logs/<experiment>/trackers.json`: a training that resumes from a checkpoint writes
some steps a second time, and these are not given again.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from takd.experiment import specs
from takd.experiment.experiment import Experiment
from takd.runtime.checkpoints import key_of
from takd.runtime.errors import InputError
from takd.runtime.files import read_json, write_json
from takd.runtime.records import DamagedError, read_record
from takd.runtime.stage_lock import Lock
from takd.watching.stages import Place, metrics_file, places, read_lines
from takd.watching.trackers import TRACKERS, Curve, OpenCurve, missing

SECONDS = 10.0  # between two looks
PATIENCE = 60.0  # seconds that the end of a run waits for its trackers
STATE = "trackers.json"
NO_CURVE = ("kind", "step", "steps", "seconds", "n")


class Tracking:
    """The trackers of an experiment, and what each already has."""

    def __init__(self, experiment: Experiment, names: Sequence[str]) -> None:
        if absent := missing(names):
            raise InputError(f"report.trackers: {absent}")
        self.experiment, self.names = experiment, list(names)
        self.folder = experiment.root / "logs" / experiment.name
        self.failed: dict[str, str] = {}
        self._open: dict[tuple[str, str], OpenCurve] = {}
        self._state: dict[str, dict[str, Any]] = self._read()
        self._read_before: dict[Path, tuple[int, int]] = {}

    def _read(self) -> dict[str, dict[str, Any]]:
        path = self.folder / STATE
        try:
            return dict(read_json(path)) if path.exists() else {}
        except (ValueError, TypeError):
            raise InputError(
                f"{path}: is damaged; remove it, and what the trackers have of this experiment, and track it again."
            ) from None

    def look(self) -> None:
        """Give every tracker what the logs hold by now and it does not have."""
        for place in places(self.experiment):
            if not place.lineage:
                continue
            path = metrics_file(place)
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                mark = status.st_mtime_ns, status.st_size
                if self._read_before.get(path) == mark:
                    continue
                if curve := curve_of(self.experiment, place, path):
                    self._give(curve, read_lines(path), status.st_mtime)
                    self._read_before[path] = mark

    def _give(self, curve: Curve, lines: Sequence[Mapping[str, Any]], written: float) -> None:
        for name in self.names:
            has = self._state.setdefault(name, {}).setdefault(curve.id, {})
            new = [line for line in lines if line["step"] > has.get(line["kind"], -1)]
            if not new or name in self.failed:
                continue
            try:
                self._log(name, curve, new, has, written)
            except Exception as error:  # of a library, a disk or a network: others go on
                self.failed[name] = f"{type(error).__name__}: {error}"
                text = f"{name}: {self.failed[name]}; it gets no more in this run"
                print(text, file=sys.stderr, flush=True)

    def _log(
        self,
        name: str,
        curve: Curve,
        new: Sequence[Mapping[str, Any]],
        has: dict[str, Any],
        written: float,
    ) -> None:
        """Write lines to a tracker, then note that it has them."""
        began = has.setdefault("began", written - new[-1]["seconds"])
        key = name, curve.id
        if key not in self._open:
            self._open[key] = TRACKERS[name](curve, self.folder, began, len(has) == 1)
        for line in new:
            if values := numbers(line):
                self._open[key].log(line["step"], values, line["seconds"])
        self._open[key].flush()
        if new[-1]["kind"] == "end":
            self._open.pop(key).close()
        has.update({line["kind"]: line["step"] for line in new})
        write_json(self.folder / STATE, self._state)

    def close(self) -> None:
        """End the runs that are still open."""
        for (name, _), run in self._open.items():
            try:
                run.close()
            except Exception as error:
                self.failed.setdefault(name, f"{type(error).__name__}: {error}")
        self._open.clear()


def curve_of(experiment: Experiment, place: Place, path: Path) -> Curve | None:
    """Describe the training whose log is at `path`; None while its result is being replaced."""
    seed = place.record.parent.name
    if path.parent == place.record.parent:
        try:
            record = read_record(place.record)
        except DamagedError:
            return None
        spec, key = record["spec"], key_of(record["spec"], record["code"], record["inputs"])
    else:  # it runs: its folder has the name of the key
        spec = specs.train(experiment, place.lineage, int(seed.removeprefix("seed")))
        key = path.parent.name
    return Curve(experiment.name, place.lineage, f"{place.lineage}/{seed}", key, spec)


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of a line that are curves: `train/loss`, `dev/rougeL`."""
    kind = line["kind"]
    if kind not in ("train", "dev"):
        return {}
    return {
        f"{kind}/{name}": value
        for name, value in line.items()
        if name not in NO_CURVE and isinstance(value, int | float) and not isinstance(value, bool)
    }


def run(experiment: Experiment, names: Sequence[str], follow: bool, parent: int | None) -> int:
    """Track an experiment; return 1 if a tracker failed.

    Args:
        follow: look again until Ctrl-C or SIGTERM, or until `parent` has ended.
        parent: process that started this one.
    """
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    # `start` blocks it: a run that ends before this line is reached still gets all of its curves
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if parent:
        os.nice(10)  # on the machine of the trainings, these come first
    tracking = Tracking(experiment, names)
    with Lock(tracking.folder / "trackers.lock"):
        while follow and not ended.is_set() and parent in (None, os.getppid()):
            tracking.look()
            ended.wait(SECONDS)
        tracking.look()
        tracking.close()
    return int(bool(tracking.failed))


_follower: list[tuple["subprocess.Popen[bytes]", Path, str]] = []


def start(experiment: Experiment, variables: Mapping[str, str]) -> None:
    """Start to track a run of Snakemake, from within it, in a process of its own.

    Without a terminal: it asks for nothing, and Ctrl-C does not reach it.
    """
    if not experiment.settings["report"]["trackers"]:
        return
    log = experiment.root / "logs" / experiment.name / "trackers.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "takd", "track", experiment.name, "--follow"]
    command += ["--config", *(f"{k}={v}" for k, v in variables.items())] if variables else []
    source = Path(os.environ["TAKD_HOME"]) / "src"
    path = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")]))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [*command, "--parent", str(os.getpid())],
                env={**os.environ, "PYTHONPATH": path},
                cwd=experiment.root,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    _follower.append((process, log, experiment.name))


def end() -> None:
    """End what `start` started, once trackers have everything; say so if one failed."""
    while _follower:
        process, log, name = _follower.pop()
        process.terminate()
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            continue  # it goes on by itself, as when a network is slow
        if code:
            print(
                f"Warning: report.trackers: a tracker failed (log: {log});"
                f" what it lacks: python -m takd track {name}.",
                file=sys.stderr,
            )
