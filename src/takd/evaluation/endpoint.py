"""An OpenAI-compatible endpoint that rates responses: requests, retries and limits of its replies."""

import json
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from takd.runtime.errors import InputError

SECONDS = (10, 300)  # timeouts: to connect, and between two bytes
REPLY_SECONDS = 600.0  # limit for one whole reply
REPLY_BYTES = 2_000_000
ATTEMPTS = 6
LONGEST_PAUSE = 60.0  # seconds before another attempt, even if the endpoint requests more
STATUSES = (429, 500, 502, 503, 504)  # after which it is asked again


def _retry(pause: float, say: Callable[[str], None]) -> Retry:
    """Return the retry policy: exponential waiting times, or those that the endpoint requests."""

    class Waiting(Retry):
        def get_retry_after(self, response: Any) -> float | None:
            asked = super().get_retry_after(response)
            if asked is None:
                return None
            # limited: otherwise the endpoint could block a job for days
            seconds = min(asked, LONGEST_PAUSE)
            say(f"the judge answers with status {response.status}; asking again in {seconds:.0f} s")
            return seconds

    return Waiting(
        ATTEMPTS - 1,
        backoff_factor=pause,
        backoff_max=LONGEST_PAUSE,
        status_forcelist=STATUSES,
        allowed_methods=None,
        raise_on_status=False,
    )


class _Bearer(AuthBase):
    """Authorization header with the key; as an `auth` object, so that requests ignores .netrc."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class Endpoint:
    """Endpoint with OpenAI's `POST /chat/completions`, such as vLLM's."""

    def __init__(
        self, settings: dict[str, Any], pause: float = 1.0, say: Callable[[str], None] = print
    ) -> None:
        """Read the key, if one is needed.

        Args:
            pause: seconds before the second attempt.
            say: prints a message before each wait.

        Raises:
            InputError: the key's environment variable is not set, or the address contains a key.
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
        key = os.environ.get(variable, "") if variable else ""
        if not (key.isascii() and key.isprintable()) or key != key.strip():
            # not valid in a header; the exception of `requests` would contain the key
            raise InputError(
                f"the environment variable {variable} (evaluation.judge.key_variable) holds a blank at an end, a line"
                " break or another character that no key has; set it to the key alone."
            )
        self._settings = settings
        self._url = settings["endpoint"].rstrip("/") + "/chat/completions"
        self._auth = _Bearer(key)
        self._session = requests.Session()
        adapter = HTTPAdapter(pool_maxsize=settings["parallel"], max_retries=_retry(pause, say))
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def reply(self, prompt: str) -> str:
        """Return the judge's reply to a prompt; called from several threads.

        Raises:
            InputError: further requests would fail too.
        """
        settings = self._settings
        body = {
            "model": settings["model"],
            "messages": [{"role": "user", "content": prompt}],
            "temperature": settings["temperature"],
            "max_tokens": settings["max_tokens"],
        }
        try:
            # a redirection could send the prompts to another server
            options: dict[str, Any] = {
                "auth": self._auth,
                "timeout": SECONDS,
                "allow_redirects": False,
            }
            with self._session.post(self._url, json=body, stream=True, **options) as answer:
                status, content = answer.status_code, self._content(answer)
        except InputError:
            raise
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            # without its text, which may repeat the key
            raise InputError(
                f"the judge at {self._url} cannot be reached ({type(error).__name__}); what it said so far is kept."
            ) from None
        if status != 200:
            raise InputError(
                f"the judge at {self._url} answers with status {status}; check evaluation.judge"
                " (endpoint, model, key_variable). What it said so far is kept."
            )
        try:
            said = str(json.loads(content)["choices"][0]["message"]["content"] or "")
        except (ValueError, LookupError, TypeError, RecursionError):
            raise InputError(
                f"the judge at {self._url} sends no chat completion; is the endpoint right (often it ends in /v1)?"
            ) from None
        # an unpaired surrogate cannot be encoded in UTF-8
        return said.encode("utf-8", "replace").decode("utf-8")

    def _content(self, answer: requests.Response) -> bytes:
        """Return the decompressed body of an answer, with limits on its size and time."""
        content, deadline = b"", time.monotonic() + REPLY_SECONDS
        while piece := answer.raw.read1(65536, decode_content=True):
            content += piece
            if len(content) > REPLY_BYTES or time.monotonic() > deadline:
                raise InputError(
                    f"the judge at {self._url} sent {len(content):,} bytes and had not ended; a reply may have"
                    f" {REPLY_BYTES:,} bytes and take {REPLY_SECONDS:.0f} s. What it said so far is kept."
                )
        return content
