"""What a dry run of Snakemake tells in addition: each model that it would train, by its chain, and why."""

import ast
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from snakemake.common import NOTHING_TO_BE_DONE_MSG as NOTHING
from snakemake.logging import logger

from takd.preflight.jobs import Job, write_if_asked
from takd.runtime.digests import leaves
from takd.watching.stages import title

LAST = "This was a dry-run"
CHANGES = 3  # changed settings that a reason names


class Listing(logging.Filter):
    """Log filter that puts the list of jobs before the last message of a dry run."""

    def __init__(self, workflow: Any) -> None:
        super().__init__()
        self.workflow = workflow

    def filter(self, record: Any) -> bool:
        """Add the list to the last message, and let every record through."""
        if isinstance(record.msg, str) and record.msg.startswith((LAST, NOTHING)):
            write_if_asked(self.workflow.dag)
        if isinstance(record.msg, str) and record.msg.startswith(LAST):
            record.msg = "\n".join([*lines(self.workflow.dag), record.msg])
        return True


def listen(workflow: Any) -> None:
    """Attach the filter to Snakemake's log, for the workflow that is being read."""
    for known in logger.filters:
        if isinstance(known, Listing):
            known.workflow = workflow
            return
    logger.addFilter(Listing(workflow))


def lines(dag: Any) -> Iterator[str]:
    """Yield a line for each training, teachers first, and one for the jobs of each other rule and reason."""
    trained: list[tuple[int, str, str]] = []
    others: Counter[tuple[str, str]] = Counter()
    looks: list[int] = []
    for each in dag.needrun_jobs(exclude_finished=False):  # a dry run has "finished" them
        names = {name: str(value) for name, value in each.wildcards_dict.items()}
        job = Job(each.rule.name, "", names)
        if job.trains:
            what = title(job.lineage, int(names["seed"]))
            trained.append((job.depth, what, reason(dag.reason(each))))
        elif each.output:
            others[job.rule, reason(dag.reason(each))] += 1
            looks += [int(names["seeds"])] if job.rule == "look" else []
    if trained:
        width = max(len(what) for _, what, _ in trained)
        yield "Models to train, and why:"
        yield from (f"  {what:{width}}  {why}" for _, what, why in sorted(trained))
    if others:
        width = max(len(rule) for rule, _ in others)
        yield "Other jobs:"
        yield from (f"  {n:5} {rule:{width}}  {why}" for (rule, why), n in sorted(others.items()))
    if looks:
        yield (
            f"After {min(looks)} training seeds the job `look` compares the models. While a question is open, one more"
            " seed is trained; its jobs are not in this list (docs/measures.md)."
        )


def reason(found: Any) -> str:
    """Say why a job would run, in the words of an experiment.

    Args:
        found: Snakemake's reason.
    """
    own = [*changes(found.params_changed)]
    if found.code_changed:
        own.append("the text of its rule changed")
    if found.input_changed:
        own.append("it reads other files than before")
    if found.updated_input:
        own.append(f"changed: {', '.join(sorted(map(str, found.updated_input))[:CHANGES])}")
    if found.forced:
        own.append("asked for by --force…")
    if found.incomplete_output:
        own.append("was cut off; resumes from its checkpoint if it has one")
    elif found.missing_output:
        own = ["is not there yet"]
    return "; ".join(own) or "what it reads is made again"


def changes(params: Any) -> Iterator[str]:
    """Name the settings that differ between the parameters of before and now."""
    if not params:
        return
    before, now = ([_value(text) for text in texts] for texts in (params.only_old, params.only_new))
    old, new = (
        [leaves(each) for each in values if isinstance(each, dict)] for values in (before, now)
    )
    if old and new:
        found = differences(old[0], new[0])
        more = f" and {len(found) - CHANGES} more" if len(found) > CHANGES else ""
        yield f"settings: {', '.join(found[:CHANGES])}{more}"
    if any(not isinstance(each, dict) for each in now):
        yield "its code changed"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name the keys in which settings, as `leaves` has them, differ, with both values."""
    return [
        f"{key.removeprefix('settings.')} {_short(old.get(key))} → {_short(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _value(text: Any) -> Any:
    """A parameter as Snakemake keeps it: the text of a Python value, here of JSON."""
    for read in (ast.literal_eval, json.loads):
        try:
            text = read(text)
        except (ValueError, SyntaxError, TypeError):
            continue
    return text


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 40 else f"{text[:40]}…"
