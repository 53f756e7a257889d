"""Files fetched by address or from the hub: resumed, checked, kept once, refused in a sentence."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from takd.data import downloads, sources
from takd.runtime.errors import InputError

ROWS = [{"instruction": f"Say {i}.", "output": str(i)} for i in range(400)]
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A repository of its own, and no waiting."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "WAIT", 0.0)
    return tmp_path


class Server:
    """Serves `content`; breaks the next connections after so many bytes, or answers with a code."""

    def __init__(self):
        self.content = CONTENT
        self.breaks: list[int] = []
        self.code = 0
        self.ranges: list[str | None] = []
        self.knows_ranges = True

    def handler(server):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers["Range"]
                server.ranges.append(asked)
                if server.code:
                    self.send_error(server.code)
                    return
                start = 0
                if asked and server.knows_ranges:
                    start = int(asked.removeprefix("bytes=").removesuffix("-"))
                    if start >= len(server.content):
                        self.send_error(416)
                        return
                body = server.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)

            def log_message(self, *args):
                pass

        return Handler


@pytest.fixture
def server(monkeypatch):
    """The server and its address; without a certificate, so http is let through."""
    monkeypatch.setattr(downloads, "SCHEMES", ("https", "file", "http"))
    server = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), server.handler())
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/rows.jsonl"
    yield server
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_file_is_fetched_once_and_kept_by_its_digest(place):
    (place / "there.jsonl").write_bytes(CONTENT)
    source = {"url": f"file://{place}/there.jsonl", "sha256": DIGEST}
    rows = [(row.instruction, row.references[0]) for row in sources.rows(source)]
    assert rows == [(row["instruction"], row["output"]) for row in ROWS]
    (place / "there.jsonl").unlink()
    assert len(list(sources.rows(source))) == 400
    assert (place / "resources/downloads" / DIGEST).read_bytes() == CONTENT


def test_a_connection_that_breaks_is_gone_on_with(server, place):
    server.breaks = [1000, 50]
    path = downloads.fetch({"url": server.url, "sha256": DIGEST})
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=1050-"]
    assert [p.name for p in path.parent.iterdir() if p.suffix != ".lock"] == [DIGEST]


def test_a_server_without_ranges_sends_all_again(server):
    server.breaks, server.knows_ranges = [1000], False
    assert downloads.fetch({"url": server.url, "sha256": DIGEST}).read_bytes() == CONTENT


def test_what_an_earlier_start_had_fetched_is_not_fetched_again(server, place):
    server.breaks = [700] + [0] * (downloads.ATTEMPTS - 1)
    with pytest.raises(InputError, match=r"cannot be fetched after 6 attempts.*resumes where it"):
        downloads.fetch({"url": server.url, "sha256": DIGEST})
    server.ranges.clear()
    downloads.fetch({"url": server.url, "sha256": DIGEST})
    assert server.ranges == ["bytes=700-"]
    # also where all was there and only the name was not
    folder = place / "resources/downloads"
    (folder / DIGEST).rename(folder / f"{DIGEST}.partial")
    assert downloads.fetch({"url": server.url, "sha256": DIGEST}).read_bytes() == CONTENT


def test_a_file_with_another_digest_is_refused_and_not_kept(server, place):
    server.content = CONTENT + b"more"
    with pytest.raises(InputError) as refusal:
        downloads.fetch({"url": server.url, "sha256": DIGEST})
    found = hashlib.sha256(server.content).hexdigest()
    assert f"{server.url} has the sha256 {found}, but the experiment says {DIGEST}" in str(
        refusal.value
    )
    assert [p.suffix for p in (place / "resources/downloads").iterdir()] in ([".lock"], [])


def test_an_address_that_is_not_there_is_not_tried_again(server, place):
    server.code = 404
    with pytest.raises(InputError, match=r"rows\.jsonl cannot be fetched: HTTP 404 Not Found;"):
        downloads.fetch({"url": server.url, "sha256": DIGEST})
    assert len(server.ranges) == 1
    with pytest.raises(InputError, match=r"none\.jsonl cannot be fetched: .*No such file"):
        downloads.fetch({"url": f"file://{place}/none.jsonl", "sha256": DIGEST})


def test_other_schemes_are_refused():
    with pytest.raises(InputError, match="begins with ftp; it has to begin with https://"):
        downloads.fetch({"url": "ftp://host/rows.jsonl", "sha256": DIGEST})


def test_splits_that_start_together_fetch_one_file_once(server):
    done = []
    threads = [
        threading.Thread(
            target=lambda: done.append(downloads.fetch({"url": server.url, "sha256": DIGEST}))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4 and len(server.ranges) == 1


HUB = {"hub": "some/data", "revision": "1" * 40, "file": "raw.jsonl"}


@pytest.fixture
def hub(monkeypatch, place):
    """Puts one file in the place of the hub; what it was asked for."""
    asked = {}
    (place / "cached.jsonl").write_bytes(CONTENT)

    def hf_hub_download(name, file, **options):
        asked.update(options, name=name, file=file)
        return str(place / "cached.jsonl")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return asked


def test_a_file_of_the_hub_is_asked_for_at_its_revision(hub):
    rows = list(sources.rows({**HUB, "rows": [10, 12]}))
    assert [(row.number, row.instruction) for row in rows] == [(10, "Say 10."), (11, "Say 11.")]
    assert hub == {
        "name": "some/data",
        "file": "raw.jsonl",
        "repo_type": "dataset",
        "revision": "1" * 40,
    }
    assert (
        sources.describe({**HUB, "rows": [10, 12]})
        == "hub some/data, file raw.jsonl, rows 10 to 11"
    )


def test_a_file_of_the_hub_with_another_digest_is_refused(hub):
    assert len(list(sources.rows({**HUB, "sha256": DIGEST}))) == 400
    with pytest.raises(InputError, match=r"raw\.jsonl of the data set some/data has the sha256"):
        list(sources.rows({**HUB, "sha256": "0" * 64}))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (LocalEntryNotFoundError("x"), "the hub cannot be reached and its cache .* lacks it"),
        (EntryNotFoundError("x"), "it has no such file at 1111"),
        (OSError("disk full\nmore"), "OSError: disk full; start again"),
    ],
)
def test_why_the_hub_gives_nothing_is_told_in_a_sentence(monkeypatch, error, says):
    def hf_hub_download(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    with pytest.raises(InputError, match=says) as refusal:
        list(sources.rows(HUB))
    assert "\n" not in str(refusal.value)


def test_rows_are_a_part_of_any_source(place):
    (place / "rows.jsonl").write_bytes(CONTENT)
    source = {"json": "rows.jsonl"}
    assert [row.number for row in sources.rows({**source, "rows": [398, None]})] == [398, 399]
    assert len(list(sources.rows({**source, "rows": [0, 400]}))) == 400
    for asked in ([0, 401], [400, None]):
        with pytest.raises(InputError, match=r"rows\.jsonl.* has 400 rows, fewer than `rows` asks"):
            list(sources.rows({**source, "rows": asked}))


def test_a_part_is_read_without_looking_at_the_rest(place):
    (place / "rows.jsonl").write_bytes(CONTENT + b"not a row\n")
    assert len(list(sources.rows({"json": "rows.jsonl", "rows": [0, 400]}))) == 400
    with pytest.raises(InputError, match="line 401: not valid JSON"):
        list(sources.rows({"json": "rows.jsonl"}))


def test_columns_of_other_names(place):
    lines = [
        {"question": "q", "context": None, "answer": ["a", "b"]},
        {"question": "r", "answer": "c"},
    ]
    (place / "other.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {"instruction": "question", "output": "answer"}
    source = {"json": "other.jsonl", "columns": columns}
    found = [row[:4] for row in sources.rows(source)]
    assert found == [(0, "q", "", ("a", "b")), (1, "r", "", ("c",))]
    source["columns"] = {**columns, "input": "context"}
    with pytest.raises(
        InputError, match="line 2: no key 'context'; its keys are 'question', 'answer'"
    ):
        list(sources.rows(source))
