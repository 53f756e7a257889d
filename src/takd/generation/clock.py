"""The time of a stage that goes on from what it wrote down: all attempts together, killed ones too."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from takd.stage import read_json, write_json
from takd.training.progress import Journal

SECONDS_BETWEEN_NOTES = 5.0  # the most that a kill takes from the time
SPENT = "spent.json"


@contextlib.contextmanager
def timed(folder: Path) -> Iterator[Journal]:
    """A journal in the folder that the next attempt goes on from; its seconds go on, too.

    A thread notes them now and then, since a process that is killed has no last word.
    """
    journal, note = Journal(folder / "metrics.jsonl", active=True), folder / SPENT
    if note.exists():
        journal.resume(read_json(note))
    # the lines of an attempt whose success was not noted are told anew
    journal.restart()
    ended = threading.Event()

    def take_notes() -> None:
        while not ended.wait(SECONDS_BETWEEN_NOTES):
            write_json(note, journal.state())

    thread = threading.Thread(target=take_notes, daemon=True)
    thread.start()
    try:
        yield journal
    finally:
        ended.set()
        thread.join()
        write_json(note, journal.state())
