"""What is wrong with a file that a user brings, and the remedy."""

import json
from pathlib import Path
from typing import Any

from takd.runtime.errors import InputError

POINTER = b"version https://git-lfs"


# what a file with a wrong suffix (.safetensors or .json) really is, by its first bytes
OTHERS = {
    POINTER: "is a pointer of git-lfs and not the file itself; fetch the file (git lfs pull)",
    b"PK\x03\x04": "is a pickled or zipped file under this name; convert it (save_pretrained does so)",
    b"\x80": "is a pickled file under this name; convert it (save_pretrained does so)",
    b"<": "is a web page, such as an error or a login; fetch the file again",
}


AGAIN = "fetch or copy it again, all of it"


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: the file.
        what: whose file it is, such as "model 'm'", for the message.

    Raises:
        InputError: the file is missing, is not JSON, or holds no object.
    """
    try:
        content = path.read_bytes()
        found = json.loads(content)
    except OSError as error:
        raise InputError(f"{what}: {path} cannot be read: {error.strerror}; {AGAIN}.") from None
    except (ValueError, RecursionError) as error:
        wrong = foreign(content) or f"is not JSON ({_first_line(error)}); {AGAIN}"
        raise InputError(f"{what}: {path} {wrong}.") from None
    if not isinstance(found, dict):
        raise InputError(f"{what}: {path} has to hold one JSON object; {AGAIN}.")
    return found


def reason(error: Exception) -> str:
    """Summarise an exception of a library: its class and the first sentence of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    # validation errors of configurations have the reason in the second line
    said = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {said.partition('. ')[0].rstrip('.')}"


def foreign(content: bytes) -> str:
    """Describe what a file really is, by its first bytes, and the remedy; empty if unknown."""
    if not content.strip():
        return f"is empty; {AGAIN}"
    return next((what for start, what in OTHERS.items() if content.startswith(start)), "")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
