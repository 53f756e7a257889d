"""A stand-in for the Hugging Face Hub on this machine, which speaks the protocol of `huggingface_hub`.

Small files come from the hub itself, large ones (as git-lfs has them) by a redirect to a second server,
as from the content network of the real one.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

LARGE = (".safetensors", ".bin", ".h5", ".msgpack", ".pt")
SIGNATURE = "Signature=secret-of-the-address"

Files = dict[str, bytes]


def files_of(folder: Path) -> Files:
    """All files below a folder, by their path from it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Hub:
    """Repositories, and faults to be had.

    Attributes:
        address: of the hub, for `HF_ENDPOINT`.
        asked: `METHOD path` of each request so far, without queries; `CDN` is the method of the second server.
        tokens: value of the header `Authorization` of each request, for the hub and its second server.
        gated: names of repositories that need the token.
        lost: files that are listed, and not there when they are asked for.
        cuts: by file, after how many bytes its next connections break.
        damaged: by file, what is sent in its place.
    """

    def __init__(self) -> None:
        self.address = self.content_address = ""
        self.commits: dict[tuple[str, str], dict[str, Files]] = {}
        self.branches: dict[tuple[str, str], dict[str, str]] = {}
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.tokens: dict[str, set[str | None]] = {"hub": set(), "content": set()}
        self.gated: dict[str, str] = {}
        self.lost: set[str] = set()
        self.cuts: dict[str, list[int]] = {}
        self.damaged: dict[str, bytes] = {}

    def publish(
        self, name: str, files: Mapping[str, bytes] | Path, kind: str = "models", commit: str = ""
    ) -> str:
        """Add a commit, to which `main` then points; return it."""
        files = files_of(files) if isinstance(files, Path) else dict(files)
        commit = commit or hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits.setdefault((kind, name), {})[commit] = files
        self.branches.setdefault((kind, name), {})["main"] = commit
        return commit

    def forget(self) -> None:
        """Forget what was asked."""
        self.asked.clear()
        self.ranges.clear()
        for tokens in self.tokens.values():
            tokens.clear()

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, each once."""
        paths = (path.split(" ")[1] for path in self.asked if path.startswith(("GET", "CDN")))
        found = (re.match(r"/(?:.*/resolve/\w+|content/\w+)/(.+)", path) for path in paths)
        return sorted({match[1] for match in found if match})


class Answer(Exception):
    """An answer without content."""

    def __init__(self, code: int, error: str = "") -> None:
        super().__init__(code, error)
        self.code, self.error = code, error


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def send(self, code: int, body: bytes, cut: int | None = None, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True

    def send_file(self, name: str, body: bytes, **headers: str) -> None:
        """Send a file or the part that is asked for, or only as much as a fault lets through."""
        body, code = self.hub.damaged.get(name, body), 200
        if (asked := self.headers["Range"]) and self.command == "GET":
            self.hub.ranges.append(asked)
            start = int(re.match(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
            headers["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body, code = body[start:], 206
        cuts = self.hub.cuts.get(name, [])
        cut = cuts.pop(0) if cuts and self.command == "GET" else None
        self.send(code, body, cut, **headers)

    def do_HEAD(self) -> None:
        self.do_GET()


class _Content(_Handler):
    """The second server: content of large files by their sha256."""

    def do_GET(self) -> None:
        path = urlsplit(self.path)
        self.hub.asked.append(f"CDN {path.path}")
        self.hub.tokens["content"].add(self.headers["Authorization"])
        _, _, digest, name = path.path.split("/", 3)
        every = (files for commits in self.hub.commits.values() for files in commits.values())
        found = next((f[name] for f in every if name in f and _sha256(f[name]) == digest), None)
        if found is None or path.query != SIGNATURE:
            self.send(403, b"")
        else:
            self.send_file(name, found)


class _Pages(_Handler):
    """The hub: lists of files, and the files themselves."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        asked = json.loads(body) if body.startswith("{") else parse_qs(body)
        self.reply(asked.get("paths", []))

    def do_GET(self) -> None:
        self.reply([])

    def reply(self, paths: list[str]) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append(f"{self.command} {path}")
        self.hub.tokens["hub"].add(self.headers["Authorization"])
        try:
            if path.startswith("/api/"):
                found = self.api(path, paths)
                self.send(200, json.dumps(found).encode(), Content_Type="application/json")
            elif match := re.fullmatch(
                r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path
            ):
                self.resolve("datasets" if match[1] else "models", *match.groups()[1:])
            else:
                self.send(200, b"")  # the page of the hub
        except Answer as answer:
            self.send(answer.code, b"", **({"X_Error_Code": answer.error} if answer.error else {}))

    def repository(self, kind: str, name: str, revision: str) -> tuple[str, Files]:
        commits = self.hub.commits.get((kind, name))
        if commits is None:
            raise Answer(401, "RepoNotFound")
        token = self.hub.gated.get(name)
        if token is not None and self.headers["Authorization"] != f"Bearer {token}":
            raise Answer(401, "GatedRepo")
        commit = self.hub.branches[kind, name].get(revision, revision)
        if commit not in commits:
            raise Answer(404, "RevisionNotFound")
        return commit, commits[commit]

    def api(self, path: str, paths: list[str]) -> Any:
        match = re.fullmatch(
            r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(revision|tree|paths-info)/([^/]+))?(?:/(.*))?",
            path,
        )
        if not match:
            raise Answer(404)
        kind, name, what, revision, below = match.groups()
        commit, files = self.repository(kind, name, revision or "main")
        if what == "tree":
            below = f"{below}/" if below else ""
            if below and not any(file.startswith(below) for file in files):
                raise Answer(404, "EntryNotFound")
            return [_entry(file, body) for file, body in files.items() if file.startswith(below)]
        if what == "paths-info":
            return [_entry(file, files[file]) for file in paths if file in files]
        siblings = []
        for file, body in files.items():
            entry = _entry(file, body)
            siblings.append({"rfilename": file, "size": entry["size"], "blobId": entry["oid"]})
        return {
            "id": name,
            "sha": commit,
            "private": False,
            "tags": [],
            "downloads": 0,
            "siblings": siblings,
        }

    def resolve(self, kind: str, name: str, revision: str, file: str) -> None:
        commit, files = self.repository(kind, name, revision)
        if file not in files or file in self.hub.lost:
            raise Answer(404, "EntryNotFound")
        body = files[file]
        entry = _entry(file, body)
        if "lfs" not in entry:
            self.send_file(file, body, X_Repo_Commit=commit, ETag=f'"{entry["oid"]}"')
            return
        digest = entry["lfs"]["oid"]
        self.send(
            *(302, b""),
            X_Repo_Commit=commit,
            X_Linked_Etag=f'"{digest}"',
            X_Linked_Size=str(len(body)),
            Location=f"{self.hub.content_address}/content/{digest}/{file}?{SIGNATURE}",
        )


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _entry(file: str, body: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": file, "oid": oid, "size": len(body)}
    if file.endswith(LARGE):
        entry["lfs"] = {"oid": _sha256(body), "size": len(body), "pointerSize": 130}
    return entry


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub without repositories."""
    hub = Hub()
    servers = [
        ThreadingHTTPServer(("127.0.0.1", 0), type(each.__name__, (each,), {"hub": hub}))
        for each in (_Pages, _Content)
    ]
    hub.address, hub.content_address = (f"http://127.0.0.1:{each.server_port}" for each in servers)
    threads = [threading.Thread(target=each.serve_forever, args=(0.05,)) for each in servers]
    for server, thread in zip(servers, threads, strict=True):
        server.daemon_threads = True
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def use(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process take a hub for the real one, with a cache of its own."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.address)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
