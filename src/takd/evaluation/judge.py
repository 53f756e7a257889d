"""Stage: let a language model behind an OpenAI-compatible endpoint rate answers against the first reference.

Input: `generations` of the evaluation stage. Outputs: `judgements` (one line an answer: the prompt that was sent, the
reply, the ratings), `judge` (means). Off unless the experiment asks for it.

As in MiniLLM (arXiv 2306.08543, section 3.1, "GPT-4 feedback"), the judge rates reference and answer from 1 to 10, and
the score is the ratio of both sums, x 100. Which of the two stands first is drawn by a coin of the prompt's own, since
judges favour a place (Zheng et al., 2023, arXiv 2306.05685, section 3.3). The key comes from the environment, goes into
the header of the request alone, and is written nowhere.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.util import Retry

from takd.errors import InputError
from takd.evaluation.shares import Share, Store
from takd.provenance import short_digest
from takd.stage import Interrupted, Stage, write_text
from takd.training.checkpoints import resumable
from takd.training.progress import Progress

PROMPT = """\
Two assistants answered the same task.

[Task]
{task}

[Answer 1]
{first}

[Answer 2]
{second}

Rate each answer by how helpful, relevant, accurate and detailed it is, from 1 (worst) to 10 (best). The order of the
answers means nothing. Write the two ratings, of answer 1 and of answer 2, as two numbers with a space between them,
alone on the first line; then give your reasons."""

SECONDS = (10, 300)  # to connect, and until a reply
ATTEMPTS = 6
RATING = r"(\d+(?:\.\d+)?)(?: ?/ ?10)?"
RATINGS = re.compile(rf"\s*{RATING}[ \t,;]+{RATING}[ \t]*(?:\r?\n|$)")

Row = dict[str, Any]


class Judge(Protocol):
    """Whoever rates."""

    def reply(self, prompt: str) -> str:
        """What is said to a prompt; may be called by several threads.

        Raises:
            InputError: nothing can be expected from asking on.
        """
        ...


class _Bearer(AuthBase):
    """The key in the header; as an `auth` object, so that no .netrc takes its place."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class Endpoint:
    """An endpoint that takes OpenAI's `POST /chat/completions`: the service itself, vLLM, llama.cpp, Ollama, ..."""

    def __init__(self, settings: Row, pause: float = 1.0) -> None:
        """Read the key, if there is to be one; `pause` is how many seconds pass before a second attempt.

        Raises:
            InputError: the variable that should hold the key does not, or the address holds one.
        """
        address = urlsplit(settings["endpoint"])
        if address.username or address.password or address.query:
            raise InputError(
                "evaluation.judge.endpoint holds a user name, a password or a query, which would be written into"
                " results; put the key into an environment variable and its name into evaluation.judge.key_variable."
            )
        variable = settings["key_variable"]
        if variable and not os.environ.get(variable):
            raise InputError(
                f"evaluation.judge.key_variable names the environment variable {variable}, which is not set; set it to"
                f" the key of {settings['endpoint']}, or remove the setting for an endpoint without keys."
            )
        self._settings = settings
        self._url = settings["endpoint"].rstrip("/") + "/chat/completions"
        self._auth = _Bearer(os.environ.get(variable) if variable else None)
        self._session = requests.Session()
        again = Retry(
            ATTEMPTS - 1,
            backoff_factor=pause,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=None,
            raise_on_status=False,
        )
        adapter = HTTPAdapter(pool_maxsize=settings["parallel"], max_retries=again)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def reply(self, prompt: str) -> str:
        settings = self._settings
        body = {
            "model": settings["model"],
            "messages": [{"role": "user", "content": prompt}],
            "temperature": settings["temperature"],
            "max_tokens": settings["max_tokens"],
        }
        try:
            # a redirection could take the prompts to another place
            answer = self._session.post(
                self._url, json=body, auth=self._auth, timeout=SECONDS, allow_redirects=False
            )
        except requests.RequestException as error:
            raise InputError(
                f"the judge at {self._url} cannot be reached ({type(error).__name__}); what it said so far is kept."
            ) from None
        if answer.status_code != 200:
            # its text may repeat the key
            raise InputError(
                f"the judge at {self._url} answers with status {answer.status_code}; check evaluation.judge"
                " (endpoint, model, key_variable). What it said so far is kept."
            )
        try:
            return str(answer.json()["choices"][0]["message"]["content"] or "")
        except (ValueError, LookupError, TypeError):
            raise InputError(
                f"the judge at {self._url} sends no chat completion; is the endpoint right (often it ends in /v1)?"
            ) from None


def reference_first(key: int, seed: int) -> bool:
    """Whether the reference stands before the answer: a coin that belongs to the prompt and the seed."""
    return int(short_digest(f"{key} {seed}"), 16) % 2 == 0


def prompt_of(row: Row, output: Row) -> str:
    """What the judge is asked about an answer."""
    pair = [row["references"][0], output["text"]]
    if not reference_first(row["id"], output["seed"]):
        pair.reverse()
    task = "\n\n".join(text for text in (row["instruction"], row["input"]) if text)
    return PROMPT.format(task=task, first=pair[0], second=pair[1])


def ratings(reply: str) -> tuple[float, float] | None:
    """The two numbers of 1 to 10 of a reply's first line; None where there are none, which counts as unreadable."""
    found = RATINGS.match(reply)
    if not found:
        return None
    first, second = float(found[1]), float(found[2])
    return (first, second) if min(first, second) >= 1 and max(first, second) <= 10 else None


def run(stage: Stage) -> None:
    """Ask for what has not been judged, write."""
    with resumable(stage, stage.outputs["judge"]) as folder:
        judge(stage, folder, Endpoint(stage.spec["judge"]))


def judge(stage: Stage, folder: Path, by: Judge) -> None:
    """Judge the answers with the wanted decoding seeds; every reply is kept as it comes.

    Raises:
        InputError: the judge cannot be asked.
        Interrupted: asked to stop or out of time.
    """
    spec, settings = stage.spec, stage.spec["judge"]
    title = f"{settings['model']} judges {spec['lineage']} seed {spec['seed']} on {spec['set']}"
    with open(stage.input("generations"), encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, settings["rows"])]
    asked = {
        (row["id"], output["seed"]): prompt_of(row, output)
        for row in rows
        for output in row["outputs"]
        if output["seed"] in settings["seeds"]
    }
    store = Store(folder, "replies", Share(), stage.say)
    replies = {(record["id"], record["seed"]): record["reply"] for record in store.read()}
    left = [key for key in asked if key not in replies]
    progress = Progress(title, len(asked), len(asked) - len(left), active=True)
    with store.appending():
        for key, reply in _ask(by, {key: asked[key] for key in left}, settings["parallel"]):
            replies[key] = reply
            store.add({"id": key[0], "seed": key[1], "reply": reply})
            progress.step(len(replies), {})
            if stage.should_stop() and len(replies) < len(asked):
                raise Interrupted(f"{title}: {len(replies)} of {len(asked)} replies are kept.")
    progress.close()
    lines = [_judgement(key, prompt, replies[key]) for key, prompt in asked.items()]
    text = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
    write_text(stage.outputs["judgements"], text)
    kept = {name: spec[name] for name in ("lineage", "seed", "set", "judge")}
    found = summary(lines)
    stage.write_record(stage.outputs["judge"], **kept, **found)
    stage.say(f"{title}: {found['score']} (n = {found['n']}, {found['unreadable']} unreadable)")


def _ask(
    by: Judge, prompts: dict[tuple[int, int], str], parallel: int
) -> Iterator[tuple[tuple[int, int], str]]:
    """Replies as they come; no more are asked for at once than may be lost."""
    waiting = iter(prompts.items())
    with ThreadPoolExecutor(parallel) as pool:
        running: dict[Future[str], tuple[int, int]] = {}
        while True:
            for key, prompt in islice(waiting, parallel - len(running)):
                running[pool.submit(by.reply, prompt)] = key
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()


def _judgement(key: tuple[int, int], prompt: str, reply: str) -> Row:
    found = ratings(reply)
    if found and not reference_first(*key):
        found = found[1], found[0]
    reference, answer = found or (None, None)
    return {
        **{"id": key[0], "seed": key[1], "prompt": prompt, "reply": reply},
        **{"reference_rating": reference, "rating": answer},
    }


def summary(lines: Sequence[Row]) -> Row:
    """Ratio of the sums of ratings, x 100, and the means, over the answers whose ratings can be read."""
    read = [line for line in lines if line["rating"] is not None]
    answers, references = ([line[name] for line in read] for name in ("rating", "reference_rating"))
    return {
        "score": round(100 * sum(answers) / sum(references), 4) if read else None,
        "rating": fmean(answers) if read else None,
        "reference_rating": fmean(references) if read else None,
        "n": len(read),
        "unreadable": len(lines) - len(read),
    }
