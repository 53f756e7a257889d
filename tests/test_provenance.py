"""Digests: what changes them and what does not."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from takd.data.tokenizer import folder_digest
from takd.runtime import code_digest as code_digests
from takd.runtime import digests
from takd.runtime.code_digest import code_digest, git_commit
from takd.runtime.digests import canonical_json, file_digest, short_digest, source_digest
from takd.runtime.errors import InputError

SOURCES = {
    "kit/__init__.py": "",
    "kit/train.py": '"""Train."""\n\nimport json\n\nfrom kit import loop\n\nRATE = 1\n',
    "kit/loop.py": "from .parts import step\n\n\ndef run():\n    return step()\n",
    "kit/parts/__init__.py": '"""Parts."""\n',
    "kit/parts/step.py": 'def step():\n    """Once."""\n    return "a"\n',
    "kit/report.py": "import kit.train\n",
}


@pytest.fixture
def digest_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Digest of an entry of a small package after files were replaced."""
    monkeypatch.setattr(code_digests, "SOURCE", tmp_path)

    def digest(changes: dict[str, str], *entries: str) -> str:
        for name, text in {**SOURCES, **changes}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        code_digest.cache_clear()
        return code_digest(*(entries or ("kit.train",)))

    yield digest
    code_digest.cache_clear()


@pytest.mark.parametrize(
    "changes",
    [
        {"kit/train.py": '"""Trains."""\n\nimport json\nfrom kit import loop\n\n# now\nRATE = 1\n'},
        {"kit/parts/step.py": "def step():\n    return 'a'  # the letter\n"},
        {"kit/parts/__init__.py": ""},
        {"kit/report.py": "import kit.train\n\nTITLE = 'x'\n"},
        {"kit/unused.py": "x = 1\n"},
    ],
    ids=["comment and docstring", "quotes", "docstring of a package", "importer", "not imported"],
)
def test_digest_stays(digest_after: Callable[..., str], changes: dict[str, str]) -> None:
    assert digest_after(changes) == digest_after({})


@pytest.mark.parametrize(
    "changes",
    [
        {"kit/train.py": SOURCES["kit/train.py"].replace("RATE = 1", "RATE = 2")},
        {"kit/train.py": SOURCES["kit/train.py"].replace("RATE = 1", "RATE = 1.0")},
        {"kit/train.py": SOURCES["kit/train.py"].replace("RATE = 1", "RATE = True")},
        {"kit/train.py": SOURCES["kit/train.py"].replace("RATE = 1", 'RATE = "1"')},
        {"kit/parts/step.py": SOURCES["kit/parts/step.py"].replace('"a"', '"b"')},
        {"kit/parts/__init__.py": "import os\n"},
        {"kit/__init__.py": "import os\n"},
    ],
    ids=["number", "float", "bool", "text", "two imports below", "package", "top package"],
)
def test_digest_changes(digest_after: Callable[..., str], changes: dict[str, str]) -> None:
    assert digest_after(changes) != digest_after({})


def test_digest_of_entries(digest_after: Callable[..., str]) -> None:
    """Their order is nothing, and each counts."""
    both = digest_after({}, "kit.train", "kit.report")
    assert both == digest_after({}, "kit.report", "kit.train") != digest_after({}, "kit.train")
    with pytest.raises(ModuleNotFoundError, match=r"kit\.absent"):
        digest_after({}, "kit.absent")


def test_digest_is_the_same_in_every_process() -> None:
    command = "from takd.runtime.code_digest import code_digest; print(code_digest('takd.experiment.experiment'))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", command],
            env={"PYTHONPATH": str(ROOT / "src"), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(printed) == 1


def test_parsing_needs_no_heavy_packages() -> None:
    """Snakemake imports these on every start and in every job."""
    command = (
        "import sys, takd.experiment.lineage, takd.experiment.experiment, takd.runtime.digests;"
        "import takd.runtime.errors, takd.runtime.command_line;"
        "print({'torch', 'transformers', 'datasets', 'pandas', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"


def test_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "src"
    source.mkdir()
    monkeypatch.setattr(code_digests, "SOURCE", source)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    module = source / "module.py"
    module.write_text("x = 1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "src"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert git_commit() == head.stdout.strip() and len(head.stdout) == 41
    subprocess.run([*git, "tag", "v1"], check=True)
    (tmp_path / "results.txt").write_text("not tracked")
    assert git_commit() == head.stdout.strip()
    module.write_text("x = 2\n")
    assert git_commit() == f"{head.stdout.strip()}-dirty"
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read for their digest; of more than two bytes, digests are kept."""
    read: list[Path] = []

    def digest(path: Path) -> str:
        read.append(path)
        return file_digest(path)

    monkeypatch.setattr(digests, "file_digest", digest)
    monkeypatch.setattr(digests, "SMALL", 2)
    monkeypatch.setattr(digests, "KNOWN", tmp_path / "known")
    return read


def settled(path: Path, content: str, age: float = 60) -> Path:
    """A file that was written a while ago."""
    path.write_text(content)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_a_large_source_is_read_once(tmp_path: Path, hashed: list[Path]) -> None:
    path = settled(tmp_path / "weights", "12345")
    for _ in range(3):
        digests._source_digest.cache_clear()  # as in another process
        assert source_digest(path) == file_digest(path)
    assert hashed == [path]
    settled(path, "12346", age=50)  # of the same size
    assert source_digest(path) == file_digest(path)
    # the same file by another name; another file under the first name, with its size and time
    link = tmp_path / "link"
    link.symlink_to(path)
    assert source_digest(link) == file_digest(path) and len(hashed) == 2
    other, status = settled(tmp_path / "other", "12347"), path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert source_digest(path) == file_digest(path) and len(hashed) == 3


def test_what_may_still_change_is_read_again(tmp_path: Path, hashed: list[Path]) -> None:
    fresh, small = settled(tmp_path / "fresh", "12345", age=0), settled(tmp_path / "small", "12")
    for _ in range(2):
        digests._source_digest.cache_clear()
        for path in (fresh, small):
            source_digest(path)
    assert hashed == [fresh, small] * 2


@pytest.mark.parametrize("damage", ["", "0" * 63, "no digest", "folder"])
def test_a_damaged_digest_is_not_believed(tmp_path: Path, hashed: list[Path], damage: str) -> None:
    path = settled(tmp_path / "weights", "12345")
    source_digest(path)
    (entry,) = (tmp_path / "known").iterdir()
    if damage == "folder":
        entry.unlink()
        entry.mkdir()
    else:
        entry.write_text(damage)
    digests._source_digest.cache_clear()
    assert source_digest(path) == file_digest(path) and len(hashed) == 2


def test_no_room_for_digests_is_no_obstacle(tmp_path: Path, hashed: list[Path]) -> None:
    (tmp_path / "known").write_text("a file where the folder would be")
    path = settled(tmp_path / "weights", "12345")
    assert source_digest(path) == file_digest(path)


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone: No such file.*has to be a readable file"):
        source_digest(tmp_path / "gone")
    with pytest.raises(InputError, match=r"Is a directory"):
        source_digest(tmp_path)


def test_canonical_json() -> None:
    one = {"b": [1, {"d": 1, "c": None}], "a": 1e-5}
    other = {"a": 0.00001, "b": [1, {"c": None, "d": 1}]}
    assert canonical_json(one) == canonical_json(other)
    assert json.loads(canonical_json(one)) == one
    assert canonical_json({"a": 1, "b": 2}) != canonical_json({"a": 2, "b": 1})
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})


def test_short_digest_keeps_parts_apart() -> None:
    assert short_digest("ab", "c") != short_digest("a", "bc")


def test_folder_digest(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/weights").write_text("1")
    before = folder_digest(tmp_path)
    (tmp_path / "sub/weights").touch()
    # Snakemake puts its stamp into an output folder after the job has described it
    (tmp_path / ".snakemake_timestamp").touch()
    assert folder_digest(tmp_path) == before
    (tmp_path / "sub/weights").rename(tmp_path / "sub/other")
    assert folder_digest(tmp_path) != before
    assert file_digest(tmp_path / "sub/other").startswith("6b86b273ff34fce1")
