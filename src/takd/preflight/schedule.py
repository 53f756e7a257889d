"""Duration of a run: its jobs in the order of their inputs, as many at once as the profile allows."""

import functools
import heapq
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from takd.experiment.lineage import split
from takd.preflight.flops import Lengths
from takd.preflight.plan import Planned, Planner


@dataclass(frozen=True)
class Schedule:
    """Hours of what is left to do.

    Attributes:
        busy: of all GPUs, or CPU cores, together.
        elapsed: from start to end, with `at_once` places (jobs, cores or GPUs) at a time.
        path: the longest chain of jobs, each of which needs the one before.
        at_least: whether hours of some jobs are unknown.
    """

    jobs: int
    busy: float
    elapsed: float
    at_once: int
    places: str
    path: Sequence[Planned]
    at_least: bool

    @property
    def longest(self) -> float:
        """Hours of the longest chain of jobs: no number of GPUs makes the run shorter."""
        return sum(each.hours or 0.0 for each in self.path)


def schedule(planned: Sequence[Planned], profile: Mapping[str, Any]) -> Schedule:
    """Order the jobs that are left to do, those with the longest chains behind them first."""
    left = [each for each in planned if each.job.to_do]
    maker = {file: at for at, each in enumerate(left) for file in each.job.outputs}
    above = [{maker[file] for file in each.job.inputs if file in maker} for each in left]
    below: list[list[int]] = [[] for _ in left]
    for at, needed in enumerate(above):
        for other in needed:
            below[other].append(at)
    hours = [each.hours or 0.0 for each in left]

    @functools.cache
    def behind(at: int) -> float:
        """Hours of a job and of the longest chain of jobs that wait for it."""
        return hours[at] + max(map(behind, below[at]), default=0.0)

    path, next_ones = [], [at for at, needed in enumerate(above) if not needed]
    while next_ones:
        at = max(next_ones, key=behind)
        path.append(left[at])
        next_ones = below[at]
    at_once, places, weight = _places(profile)
    weights = [min(weight(each), at_once) for each in left]
    return Schedule(
        len(left),
        sum(each.busy or 0.0 for each in left if each.job.computes),
        _elapsed(above, below, behind, hours, weights, at_once),
        at_once,
        places if at_once > 1 else places.removesuffix("s"),
        path,
        any(each.job.computes and each.estimate is None for each in left),
    )


def _elapsed(
    above: Sequence[set[int]],
    below: Sequence[Sequence[int]],
    behind: Callable[[int], float],
    hours: Sequence[float],
    weights: Sequence[int],
    at_once: int,
) -> float:
    """Hours from start to end, where a job starts as soon as its inputs and enough places are there."""
    missing = [len(needed) for needed in above]
    waiting = [at for at, needed in enumerate(missing) if not needed]
    running: list[tuple[float, int]] = []
    now, free = 0.0, at_once
    while waiting or running:
        waiting.sort(key=behind, reverse=True)
        for at in list(waiting):
            if weights[at] <= free:
                waiting.remove(at)
                free -= weights[at]
                heapq.heappush(running, (now + hours[at], at))
        now, ended = heapq.heappop(running)
        free += weights[ended]
        for other in below[ended]:
            missing[other] -= 1
            if not missing[other]:
                waiting.append(other)
    return now


def _places(profile: Mapping[str, Any]) -> tuple[int, str, Callable[[Planned], int]]:
    """Number of places that jobs share, what they are, and a function for how many of them a job takes."""
    if profile.get("executor", "local") != "local":
        return int(profile.get("jobs") or 1), "jobs", lambda each: 1
    if gpus := _resources(profile).get("processes"):
        return int(gpus), "GPUs", lambda each: each.job.allotted.world if each.job.computes else 0
    cores = profile.get("cores", 1)
    count = (os.cpu_count() or 1) if str(cores) == "all" else int(cores)
    return count, "cores", lambda each: each.job.threads or 1


def _resources(profile: Mapping[str, Any]) -> dict[str, str]:
    """Global resources of a profile, which Snakemake reads as `name=value` or as a mapping."""
    given = profile.get("resources") or {}
    if isinstance(given, Mapping):
        return {str(name): str(value) for name, value in given.items()}
    words = given if isinstance(given, list) else str(given).split()
    return dict(str(word).partition("=")[::2] for word in words)


def headline(planner: Planner, planned: Sequence[Planned], profile: Mapping[str, Any]) -> str:
    """Say in a line what is left to do, how long it takes, and which chain of jobs is the longest."""
    found = schedule(planned, profile)
    name = planner.experiment.name
    if not found.jobs:
        return f"{name}: nothing is left to do"
    more = "up to " if any(r.lengths is Lengths.LONGEST for r in planner.rows.values()) else ""
    more = "at least " if found.at_least else more
    busy = f"{found.busy:.{0 if found.busy >= 9.95 else 1}f} GPU hours ({planner.gpu.name})"
    if planner.gpu.on_cpu:
        busy = f"{_hours(found.busy)} of CPU cores"
    steps = [
        f"{_name(each)} {_hours(each.hours)}"
        for each in found.path
        if each.job.computes and each.hours
    ]
    chain = f"; the longest chain of jobs takes {_hours(found.longest)}: " if steps else ""
    return (
        f"{name}: {found.jobs} jobs, {more}{busy}; {more}{_hours(found.elapsed)} with {found.at_once}"
        f" {found.places} at once{chain}{' → '.join(steps)}"
    )


def _name(each: Planned) -> str:
    job = each.job
    return f"{job.method} {split(job.lineage)[-1].model}" if job.trains else job.rule


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1.995:
        return f"{hours * 60:.0f} min"
    return f"{hours:.0f} h" if hours >= 9.95 else f"{hours:.1f} h"
