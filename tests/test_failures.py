"""What a run says of jobs that failed: the one useful sentence, last, and no settings as JSON."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Project, make_project, small_experiment
from snakemake.logging import LogEvent

from takd.runtime.failures import Failures, sentence

NOISE = "".join(f"step {n}: loss {n / 7}\n" for n in range(400))
TRACEBACK = "Traceback (most recent call last):\n  File a.py, line 3\nKeyError: 'x'\n"
SLURM = "srun: Job step aborted\nslurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 1 DUE TO TIME LIMIT ***\n"
COMMAND = "set -euo pipefail;  python3 train.py --spec '{\"a\": \"it'\\''s\"}' 2> log"


@pytest.mark.parametrize(
    ("stage", "slurm", "expected"),
    [
        (f"{NOISE}Error: a: is not there.\n", SLURM, "Error: a: is not there."),
        (f"Error: first\n{NOISE}Stopped: at step 3\nwaiting\n\n", "", "Stopped: at step 3"),
        (NOISE + TRACEBACK, "", "KeyError: 'x'"),
        (NOISE, SLURM, "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 1 DUE TO TIME LIMIT ***"),
        (NOISE, "x\nslurmstepd: error: Exceeded job memory limit\n", "slurmstepd: error: Exceeded job memory limit"),
        (NOISE, "", "step 399: loss 57.0"),
        ("", "", "It wrote nothing: it was killed, or its log cannot be read from here yet."),
        (None, None, "It wrote nothing: it was killed, or its log cannot be read from here yet."),
        (b"\xff\xfe\nError: in other bytes \xff\n", None, "Error: in other bytes \ufffd"),
    ],
)  # fmt: skip
def test_the_sentence_of_a_job(stage: Any, slurm: Any, expected: str, tmp_path: Path) -> None:
    logs = [tmp_path / "stage.log", tmp_path / "slurm.log"]
    for path, content in zip(logs, (stage, slurm), strict=True):
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert sentence(list(map(str, logs))) == expected


def record(event: Any, **more: Any) -> Any:
    made = logging.LogRecord("snakemake", logging.ERROR, "", 0, more.pop("msg", ""), (), None)
    made.__dict__.update(event=event, **more)
    return made


def failed(number: int, log: Path, message: str | None = None) -> Any:
    more = {"rule_name": "sft", "jobid": number, "output": [f"model{number}"], "log": [str(log)]}
    return record(LogEvent.JOB_ERROR, rule_msg=message, aux={}, shellcmd=COMMAND, **more)


def test_commands_are_left_out_of_what_is_said(tmp_path: Path) -> None:
    failures = Failures()
    for how in ("returned non-zero exit status 1.", "died with <Signals.SIGKILL: 9>."):
        text = f"RuleException:\nCalledProcessError in line 3:\nCommand '{COMMAND}' {how}"
        made = record(LogEvent.ERROR, msg=text)
        assert failures.filter(made)
        assert made.msg == f"RuleException:\nCalledProcessError in line 3:\nIts command {how}"
    (tmp_path / "log").write_text("Error: why.\n")
    made = failed(1, tmp_path / "log")
    assert failures.filter(made) and made.shellcmd is None and made.aux == {"said": "Error: why."}
    assert made.log == [str(tmp_path / "log")]
    assert failures.filter(record(None, msg="any")) and failures.filter(SimpleNamespace(msg=3))


def test_jobs_that_succeed_later_are_not_told(tmp_path: Path) -> None:
    failures = Failures()
    for number in range(30):
        (tmp_path / str(number)).write_text(f"Error: {number}.\n")
        failures.filter(failed(number, tmp_path / str(number)))
        failures.filter(failed(number, tmp_path / str(number)))  # the second attempt
    for number in range(28):
        failures.filter(record(LogEvent.JOB_FINISHED, job_id=number))
    *_, first, last = failures.summary(["own.log"]).splitlines()
    assert (
        first.endswith("Error: 28.")
        and last == f"sft (model29; logs: {tmp_path / '29'}): Error: 29."
    )
    assert failures.summary(["own.log"]).startswith("2 jobs failed; Snakemake's own log: own.log\n")
    for number in range(30):
        failures.filter(failed(number, tmp_path / str(number)))
    lines = failures.summary([]).splitlines()
    assert len(lines) == 22 and "and 10 more" in lines


def test_who_cancels_a_job_reads_how_to_stop_the_run(tmp_path: Path) -> None:
    failures = Failures()
    for status, told in (
        ("CANCELLED", True),
        ("CANCELLED+", True),
        ("FAILED", False),
        ("TIMEOUT", False),
    ):
        made = failed(1, tmp_path / "none", f"SLURM-job '7' failed, SLURM status is: '{status}'.")
        failures.filter(made)
        assert ("note" in made.aux) == told
        if told:
            assert "To stop the run for good, press Ctrl-C" in made.aux["note"]
            assert f"kill -INT {os.getpid()}" in made.aux["note"]


def test_a_run_ends_with_the_sentence_of_the_job_that_failed(tmp_path: Path) -> None:
    """Through the local profile, and with all that Snakemake prints without it."""
    project = make_project(tmp_path / "project", small_experiment())
    fails = (
        'def run(stage):\n    import sys\n    if "method" in stage.spec:\n'
        '        print("noise\\n" * 400, file=sys.stderr)\n'
        "        from takd.runtime.errors import InputError\n"
        '        raise InputError("teacher: the one useful sentence.")\n'
    )
    project.replace("fakes.py", "def run(stage):\n", fails)
    target = "results/small/models/teacher-sft/seed1/manifest.json"
    for profile in (["--profile", "profiles/local", "--cores", "1"], []):
        printed = project.run(target, *profile, check=False)
        last = printed.strip().splitlines()[-1]
        assert last.endswith(
            "logs/small/models/teacher-sft/seed1.log): Error: teacher: the one useful sentence."
        )
        assert last.startswith("teacher (results/small/models/teacher-sft/seed1/model; logs: ")
        assert "--spec" not in printed and '{"' not in printed
        assert printed.count("noise") == 0 and len(printed.splitlines()) < 100
    assert not (project.folder / ".snakemake/locks").exists() or not list(
        (project.folder / ".snakemake/locks").iterdir()
    )


def test_a_run_that_ends_well_says_nothing_of_it(project: Project) -> None:
    assert " failed; " not in project.run("results/small/data/tokenizer/manifest.json")
