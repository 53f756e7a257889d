"""The states of an experiment's stages as lines of text, and as a table that renews itself in a terminal."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from takd.experiment.experiment import Experiment
from takd.watching.stages import STATES, Seen, duration, look

SECONDS = 2.0  # between two looks in a terminal
LISTED = 12  # stages of one state that are listed in a terminal, the last ones
BAR = 16  # characters of a bar of progress
COLORS = {"failed": "bold red", "lost": "red", "stopped": "yellow", "running": "green"}
MEANING = {
    "lost": "lost: the heartbeat or the process ended without a message",
    "stopped": "stopped with a checkpoint: the next run resumes",
}


def headline(experiment: Experiment, seen: Iterable[Seen]) -> str:
    """Count the stages by state: `demo: 82 stages, 40 finished, 2 running, 40 waiting`."""
    counts = Counter(each.state for each in seen)
    parts = [f"{counts[state]} {state}" for state in reversed(STATES) if counts[state]]
    return f"{experiment.name}: {counts.total()} stages, {', '.join(parts)}"


def progress(seen: Seen) -> str:
    """Format how far a stage is: `120/320`."""
    return f"{seen.step}/{seen.total}" if seen.total else ""


def speed(seen: Seen) -> str:
    """Format what a stage does per second and what it has left."""
    rate = f"{seen.rate:,.0f} tokens/s" if seen.rate else ""
    left = f"{duration(seen.left)} left" if seen.left is not None else ""
    return ", ".join(filter(None, (rate, left)))


def scores(seen: Seen) -> str:
    """Format the last dev evaluation of a training."""
    dev = seen.scores
    if not dev:
        return ""
    loss = "not finite" if dev["loss"] is None else f"{dev['loss']:.3f}"
    return f"dev ROUGE-L {dev['rougeL']:.1f} (best {dev['best']:.1f}), loss {loss}"


def reason(seen: Seen, root: Path) -> str:
    """What is known of a stage's state, with the path of its log where it ended early."""
    ended = seen.state in ("failed", "lost", "stopped")
    return f"{seen.note} (log: {_short(seen.place.log, root)})" if ended else seen.note


def _short(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def begun(seen: Iterable[Seen], state: str) -> list[Seen]:
    """List the stages of a state; of those that are finished the trainings, in the order in which they ended."""
    found = [each for each in seen if each.state == state]
    if state != "finished":
        return found
    trained = (each for each in found if each.place.kind == "train")
    return sorted(trained, key=lambda each: each.place.record.stat().st_mtime)


def said(seen: Seen) -> list[str]:
    """Say what a stage is, and how far it is."""
    name = f"{seen.place.kind} {seen.place.name}".rstrip()
    return [name, *filter(None, (progress(seen), speed(seen), scores(seen)))]


def lines(experiment: Experiment, seen: Sequence[Seen]) -> Iterator[str]:
    """Yield a headline, then a line for each stage that has begun, and one for all that wait."""
    yield headline(experiment, seen)
    for state in STATES[:-1]:
        for each in begun(seen, state):
            why = reason(each, experiment.root)
            yield "  ".join([f"{state:8}", *said(each), *filter(None, [why])])
    if waiting := Counter(each.place.kind for each in seen if each.state == "waiting"):
        yield f"waiting   {', '.join(f'{count} {kind}' for kind, count in waiting.items())}"


def show(experiment: Experiment, seen: Sequence[Seen]) -> Any:
    """Build what a terminal shows: stages by state, what went wrong first, and counts by rule."""
    from rich.text import Text

    text = Text()
    text.append(f"{headline(experiment, seen)}    {time.strftime('%H:%M:%S')}\n", "bold")
    for state in STATES[:-1]:
        found = begun(seen, state)
        text.append(f"\n{MEANING.get(state, state)}\n" if found else "", COLORS.get(state))
        if len(found) > LISTED:
            text.append(f"  {len(found) - LISTED} more, and\n")
        for each in found[-LISTED:]:
            bar = [_bar(each)] if state == "running" else []
            text.append(f"  {'  '.join([*bar, *said(each)])}\n")
            if why := reason(each, experiment.root):
                text.append(f"      {why}\n", "dim")
    return text.append(f"\n{_by_rule(seen)}\nCtrl-C ends this view; the run goes on.", "dim")


def _bar(seen: Seen) -> str:
    done = round(BAR * min((seen.step or 0) / seen.total, 1)) if seen.total else 0
    return "━" * done + "─" * (BAR - done)


def _by_rule(seen: Iterable[Seen]) -> str:
    """Count finished stages of each rule: `finished: data 3/3, train 5/19`."""
    total: Counter[str] = Counter()
    done: Counter[str] = Counter()
    for each in seen:
        total[each.place.kind] += 1
        done[each.place.kind] += each.state == "finished"
    return f"finished: {', '.join(f'{kind} {done[kind]}/{count}' for kind, count in total.items())}"


def watch(experiment: Experiment, once: bool) -> int:
    """Show the stages until Ctrl-C; without a terminal, or with `once`, print them once."""
    from rich.console import Console
    from rich.live import Live

    console, seen = Console(), look(experiment)
    if once or not console.is_terminal:
        if any(each.state == "lost" and each.heartbeat for each in seen.values()):
            seen = look_again(experiment, seen)
        print("\n".join(lines(experiment, list(seen.values()))))
        return 0
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(show(experiment, list(seen.values())), refresh=True)
                time.sleep(SECONDS)
                seen = look(experiment, seen)
    except KeyboardInterrupt:
        return 0


def look_again(experiment: Experiment, seen: Mapping[Path, Seen]) -> dict[Path, Seen]:
    """Look again after the time of a heartbeat: with clocks that differ, only a change of it says who is alive."""
    from takd.runtime.stage_lock import HEARTBEAT_SECONDS

    time.sleep(HEARTBEAT_SECONDS + 1)
    return look(experiment, seen)
