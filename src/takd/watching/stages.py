"""State of each stage of an experiment, read from its files: record, lock, log and metrics.jsonl.

So it is known beside Slurm and on any machine that sees the disk, whoever started the run.
"""

import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from takd.experiment.experiment import Experiment
from takd.experiment.labels import chain_text, methods_text
from takd.experiment.lineage import is_given, student_of
from takd.experiment.looks import asked_for
from takd.experiment.teacher_cache import GENERATIONS
from takd.runtime.checkpoints import LOG
from takd.runtime.failures import sentence
from takd.runtime.stage_lock import HEARTBEAT_SECONDS, MISSED, is_alive, read_lock

STATES = ("failed", "lost", "stopped", "running", "finished", "waiting")
"""What a stage can be: `lost` has no heartbeat and no process any more, `stopped` left with a checkpoint."""
HEAD = re.compile(
    r"takd\.\S+ on (?P<host>\S+), process (?P<process>\d+)(?:, Slurm job (?P<job>\S+))?"
)
STEP = re.compile(r": step (\d+)/(\d+)(?:, .*?)?, (\d+) s left")
LOCKED = ("train", "generate", "teacher_outputs", "evaluate", "likelihoods", "judge")
"""Kinds of stages that keep a lock and checkpoints beside their record."""
SILENT = 300.0  # seconds without a line in its log after which a running stage is called silent
TAIL = 20_000  # bytes at the end of a log that are searched


@dataclass(frozen=True)
class Place:
    """Where a stage leaves its files.

    Attributes:
        kind: its rule.
        name: what it makes, as people read it.
        record: the file that it writes last.
        lineage: of the model that it trains; empty for another stage.
    """

    kind: str
    name: str
    record: Path
    log: Path
    lineage: str = ""

    @property
    def checkpoints(self) -> Path:
        """Folder of its checkpoints and its lock."""
        return self.record.parent / "checkpoints"

    @property
    def lock(self) -> tuple[dict[str, Any], float | None]:
        """Owner of its lock and last heartbeat; ({}, None) if nobody holds it."""
        return read_lock(self.checkpoints / "lock") if self.kind in LOCKED else ({}, None)


@dataclass(frozen=True)
class Seen:
    """State of a stage.

    Attributes:
        note: why it ended early, or what is unusual.
        step, total: progress; None if unknown.
        left: seconds left; None if unknown.
        rate: tokens per second of a training, lately; None if unknown.
        scores: last dev evaluation; empty if none.
        heartbeat: Unix time of the lock's last heartbeat; None without a lock.
        moved: when the heartbeat was last seen to move, by the clock of this machine.
    """

    place: Place
    state: str
    note: str = ""
    step: int | None = None
    total: int | None = None
    left: float | None = None
    rate: float | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)
    heartbeat: float | None = None
    moved: float = 0.0


def places(experiment: Experiment) -> Iterator[Place]:
    """Yield the stages of an experiment, in the order of a run."""
    looks, experiment = experiment.looks, asked_for(experiment)
    results = experiment.root / "results" / experiment.name
    logs = experiment.root / "logs" / experiment.name

    def place(kind: str, name: str, record: str, log: str, lineage: str = "") -> Place:
        return Place(kind, name, results / record, logs / f"{log}.log", lineage)

    yield place("tokenizer", "", "data/tokenizer/manifest.json", "data/tokenizer")
    for name in experiment.splits:
        yield place("data", name, f"data/{name}/manifest.json", f"data/{name}")
    yield place("data_report", "", "data/report/report.json", "data/report")
    for model in dict.fromkeys(student_of(node.lineage) for node in experiment.trainings):
        yield place("base", model, f"base/{model}/manifest.json", f"base/{model}")
    for entry in experiment.teacher_cache:
        folder, what = f"teachers/{entry.folder}", f"{chain_text(entry.teacher)}, seed {entry.seed}"
        for part in range(1, (entry.parts or 0) + 1):
            piece = f"{folder}/part{part}of{entry.parts}"
            yield place("generate", f"{what}, part {part}", f"{piece}/manifest.json", piece)
        kind = GENERATIONS if entry.place == GENERATIONS else "teacher_outputs"
        yield place(kind, what, f"{folder}/manifest.json", folder)
    for node in experiment.nodes:
        what = title(*node)
        trained, scored = (f"{part}/{node.folder}" for part in ("models", "evaluations"))
        if is_given(node.lineage):
            yield place("given", what, f"{trained}/manifest.json", trained)
        else:
            yield place("train", what, f"{trained}/manifest.json", trained, node.lineage)
        for name in experiment.sets:
            at = f"{scored}/{name}"
            on = f"{what}, on {name}"
            yield place("evaluate", on, f"{at}/scores.json", at)
            likelihoods = f"{at}/likelihoods"
            yield place("likelihoods", on, f"{likelihoods}/likelihoods.json", likelihoods)
            if experiment.settings["evaluation"]["judge"]:
                yield place("judge", on, f"{at}/judge/judge.json", f"{at}/judge")
        yield place("card", what, f"{trained}/card.md", f"{trained}/card")
    for count in looks:
        if count <= len(experiment.seeds):
            name, at = f"after {count} training seeds", f"looks/seeds{count}"
            yield place("look", name, f"{at}/decision.json", at)
    yield place("report", "", "report/digests.json", "report")


def title(lineage: str, seed: int) -> str:
    """Name a model: `minillm: teacher → student, seed 1`."""
    return f"{methods_text(lineage)}: {chain_text(lineage)}, seed {seed}"


def look(experiment: Experiment, before: Mapping[Path, Seen] | None = None) -> dict[Path, Seen]:
    """Return the state of each stage by its record.

    Args:
        before: what was seen at an earlier look; a heartbeat that has moved since shows that an
            owner elsewhere is alive, whatever the clocks of the two machines say.
    """
    return {
        place.record: see(place, (before or {}).get(place.record)) for place in places(experiment)
    }


def see(place: Place, before: Seen | None = None) -> Seen:
    """Return the state of one stage."""
    owner, heartbeat = place.lock
    text, age = _tail(place.log)
    head = HEAD.search(_head(place.log))
    if heartbeat is not None:
        here = owner.get("host") == socket.gethostname()
        moved = before.moved if before else 0.0
        if before and before.heartbeat not in (None, heartbeat):
            moved = time.time()
        late = time.time() - max(heartbeat, moved)
        gone = not is_alive(owner["process"]) if here else late > MISSED * HEARTBEAT_SECONDS
        beats: dict[str, Any] = {"heartbeat": heartbeat, "moved": moved}
        who = _who(owner.get("process"), owner.get("host"), owner.get("job"))
        if gone:
            what = " is gone" if here else f": no heartbeat for {duration(late)}"
            note = f"{who}{what}; the next run resumes it"
            return Seen(place, "lost", note, **_progress(place, text, None), **beats)
        return Seen(place, "running", _silent(who, age), **_progress(place, text, age), **beats)
    if place.record.exists():
        return Seen(place, "finished", **_progress(place, "", None))
    if head is None:
        return Seen(place, "waiting")
    who = _who(head["process"], head["host"], head["job"])
    said = sentence([str(place.log)])
    for start, state in (("Stopped: ", "stopped"), ("Error: ", "failed")):
        if said.startswith(start):
            return Seen(place, state, said.removeprefix(start), **_progress(place, text, None))
    here = head["host"] == socket.gethostname()
    if is_alive(int(head["process"])) if here else (age or 0.0) < SILENT:
        return Seen(place, "running", _silent(who, age), **_progress(place, text, age))
    missing = "its log ends without an error, and its result is not there"
    note = f"{who} is gone: {missing}" if here else f"{who}: silent for {duration(age or 0.0)}"
    return Seen(place, "lost", note, **_progress(place, text, None))


def _who(process: Any, host: Any, job: Any) -> str:
    return f"process {process} on {host}{f' (Slurm job {job})' if job else ''}"


def _silent(who: str, age: float | None) -> str:
    return f"{who}: nothing in its log for {duration(age)}" if age and age > SILENT else ""


def _progress(place: Place, text: str, age: float | None) -> dict[str, Any]:
    """Progress of a stage; `age` is that of its log's last line, None if it does not run."""
    found: dict[str, Any] = {}
    if steps := STEP.findall(text):
        found["step"], found["total"], left = map(int, steps[-1])
        if age is not None:
            found["left"] = max(left - age, 0.0)
    if not place.lineage:
        return found
    lines = metrics(place)
    trained = [line for line in lines if line["kind"] == "train"]
    # under a budget, the number of steps is expected anew at each of them
    if known := [line["steps"] for line in lines if "steps" in line]:
        found["total"] = known[-1]
        found["step"] = max(found.get("step", 0), lines[-1]["step"])
    if age is not None and len(trained) > 1:
        first, last = trained[-min(len(trained), 5)], trained[-1]
        seconds = last["seconds"] - first["seconds"]
        if seconds > 0:
            found["rate"] = (last["tokens"] - first["tokens"]) / seconds
            each = seconds / (last["step"] - first["step"])
            found["left"] = each * (found["total"] - found["step"])
    if dev := [line for line in lines if line["kind"] == "dev"]:
        best = max(line["rougeL"] for line in dev if line["step"] or len(dev) == 1)
        found["scores"] = {**dev[-1], "best": best}
    return found


def metrics(place: Place) -> list[dict[str, Any]]:
    """Lines of the log of a training that runs or has ended; a line that is still being written is left out."""
    return read_lines(metrics_file(place))


def metrics_file(place: Place) -> Path:
    """Path of the newest log of a training: beside its record, or in its checkpoints while it runs."""
    final = place.record.parent / LOG
    live = list(place.checkpoints.glob(f"*/{LOG}"))
    if not live or (final.exists() and place.record.exists()):
        return final
    return max(live, key=lambda path: path.stat().st_mtime)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read complete lines of JSON; none if the file is not there."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError:
        return []  # it is being cut off: the next look reads it


def _tail(log: Path) -> tuple[str, float | None]:
    """Return the end of a log, and the seconds since its last line."""
    try:
        with open(log, "rb") as file:
            status = os.fstat(file.fileno())
            file.seek(max(status.st_size - TAIL, 0))
            return file.read().decode("utf-8", "replace"), time.time() - status.st_mtime
    except OSError:
        return "", None


def _head(log: Path) -> str:
    try:
        with open(log, "rb") as file:
            return file.readline(1000).decode("utf-8", "replace")
    except OSError:
        return ""


def duration(seconds: float) -> str:
    """Format seconds: `42 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes, hours = round(seconds / 60), seconds / 3600
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{int(hours // 24)} d {int(hours % 24)} h"
