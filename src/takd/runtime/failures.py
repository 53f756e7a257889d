"""Summary of failed jobs: one useful sentence for each, at the end, and the paths of its logs.

By default Snakemake prints the whole command of a failed job several times, with its settings as
JSON, and its logs in full.
"""

import logging
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake.logging import LogEvent, logger

COMMAND = re.compile(r"Command '.*' (?=returned non-zero|died with)", re.S)
SAID = ("Error: ", "Stopped: ")  # prefixes of the last sentence of a stage
SLURM = re.compile(r"slurmstepd: error: .*|error: .*(?:Exceeded|CANCELLED|TIME LIMIT|oom).*", re.I)
READ = 100_000  # bytes at the end of a log that are searched
LISTED = 20  # failed jobs that the summary shows


@dataclass(frozen=True)
class Failure:
    """A failed job.

    Attributes:
        logs: logs of the stage, then Slurm's.
        message: Slurm's message; empty without Slurm.
    """

    rule: str
    output: str
    logs: Sequence[str]
    message: str = ""


class Failures(logging.Filter):
    """Log filter that removes commands from Snakemake's messages and collects failed jobs.

    A job that succeeds in a later attempt is removed again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left: dict[Any, Failure] = {}

    def filter(self, record: Any) -> bool:
        """Record failed and finished jobs, shorten the message, and let it through."""
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_ERROR:
            output, message = (getattr(record, name, None) for name in ("output", "rule_msg"))
            failure = Failure(
                record.rule_name,
                next(iter(output or ()), ""),
                list(record.log or ()),
                str(message or ""),
            )
            self.left[record.jobid] = failure
            record.shellcmd = None
            record.aux = {**record.aux, **({"note": note} if (note := _note(failure)) else {})}
            record.aux["said"] = sentence(failure.logs)
        elif event == LogEvent.JOB_FINISHED:
            self.left.pop(record.job_id, None)
        elif isinstance(record.msg, str):
            record.msg = COMMAND.sub("Its command ", record.msg)
        return True

    def summary(self, logs: Sequence[str]) -> str:
        """Return the summary of a failed run, one line per job.

        Args:
            logs: paths of Snakemake's own logs.
        """
        head = f"{len(self.left)} job{'s' * (len(self.left) != 1)} failed; Snakemake's own log: {', '.join(logs)}"
        lines = [
            f"{each.rule} ({each.output}; logs: {', '.join(each.logs) or 'none'}): {sentence(each.logs)}"
            f"{' ' + note if (note := _note(each)) else ''}"
            for each in self.left.values()
        ]
        more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        return "\n".join([head, *more, *lines[:LISTED]])


def _note(failure: Failure) -> str:
    """Advice for a job that somebody cancelled; else empty."""
    if "CANCELLED" not in failure.message:
        return ""
    return (
        "Somebody cancelled this job; it is tried again as often as `retries` says. To stop the run for good, press"
        f" Ctrl-C where it was started, or `kill -INT {os.getpid()}` on {socket.gethostname()}."
    )


def sentence(logs: Sequence[str]) -> str:
    """Return the last sentence of a stage; else Slurm's error; else the last line of its log."""
    ends = [_end(Path(log)) for log in logs]
    for lines in ends:
        for line in reversed(lines):
            if line.startswith(SAID):
                return line
    for lines in ends:
        for line in reversed(lines):
            if found := SLURM.search(line):
                return found[0]
    last = next((lines[-1] for lines in ends if lines), "")
    return (
        last[:1000] or "It wrote nothing: it was killed, or its log cannot be read from here yet."
    )


def _end(path: Path) -> list[str]:
    """Non-empty lines at the end of a log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(path.stat().st_size - READ, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def listen() -> Failures:
    """Attach the filter to Snakemake's log, once per process, and return it."""
    for known in logger.filters:
        if isinstance(known, Failures):
            return known
    failures = Failures()
    logger.addFilter(failures)
    return failures
