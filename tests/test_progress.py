"""The training log over restarts, and what a run tells without a terminal."""

import json
import math
import multiprocessing
import os
import time

from takd.runtime import metrics_log
from takd.runtime.metrics_log import Journal, Progress


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = Journal(path, active=True)
    first.restart()
    first.tokens, first.skipped = 100, 3
    first.write("train", 1, loss=2.0)
    state = first.state()
    first.tokens, first.skipped = 250, 4
    first.write("train", 2, loss=1.0)
    second = Journal(path, active=True)
    second.resume({**state, "seconds": 1000.0})
    assert second.skipped == 3
    second.write("train", 2, loss=1.5)
    assert [(line["step"], line["loss"]) for line in lines(path)] == [(1, 2.0), (2, 1.5)]
    assert lines(path)[1]["tokens"] == 100
    assert 1000 <= lines(path)[1]["seconds"] < 1010


def test_a_number_that_is_not_finite_is_null(tmp_path):
    """NaN is no JSON, though Python writes and reads it."""
    journal = Journal(tmp_path / "metrics.jsonl", active=True)
    journal.write("train", 1, loss=math.nan, norm=math.inf, rate=0.5)
    (line,) = lines(journal.path)
    assert (line["loss"], line["norm"], line["rate"]) == (None, None, 0.5)


def test_processes_other_than_the_first_write_nothing(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl", active=False)
    journal.restart()
    journal.write("train", 1)
    assert not (tmp_path / "metrics.jsonl").exists()


def be_killed(folder):
    """Work until the time is noted, and leave without a last word."""
    metrics_log.SECONDS_BETWEEN_NOTES = 0.05
    with metrics_log.timed(folder):
        while not (folder / metrics_log.SPENT).exists():
            time.sleep(0.01)
        os._exit(9)


def test_time_of_a_killed_attempt_is_counted(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=be_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    with metrics_log.timed(tmp_path) as journal:
        assert journal.seconds > 0.05


def test_cpu_time_is_counted_over_attempts_and_stands_in_the_last_line(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl", active=True)
    journal.resume(journal.state() | {"cpu_seconds": 500.0, "seconds": 900.0})
    spent = time.process_time() + 0.1  # more than the bound: the system may count in steps of 0.01
    while time.process_time() < spent:
        pass
    journal.close(1)
    (line,) = lines(journal.path)
    assert 500.05 <= line["cpu_seconds"] < 510
    # a checkpoint of before has no such count
    state = {key: value for key, value in journal.state().items() if key != "cpu_seconds"}
    journal.resume(state)
    assert journal.cpu_seconds < 5


def test_plain_lines_without_a_terminal(capsys):
    progress = Progress("student-sft seed 1", total=3, done=1, active=True)
    progress.step(2, {"loss": 1.23456})
    progress.step(3, {"loss": 1.0})
    progress.close()
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("student-sft seed 1: step 2/3, loss 1.235, ")
    assert told[-1].startswith("student-sft seed 1: step 3/3, loss 1, ")
    assert "\r" not in "".join(told)
