"""A data folder whose own files would have others read that lie elsewhere."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from takd.data.folders import check_within
from takd.data.sources import rows, texts
from takd.runtime.errors import InputError

ROW = {"instruction": "a", "input": "", "output": "b"}


def card(yaml: str) -> str:
    return f"---\nlicense: mit\n{yaml}\n---\n# Rows\n\n---\nno front matter\n---\n"


OUTSIDE = {
    "one file": "configs: [{config_name: default, data_files: ../secret.jsonl}]",
    "a list": "configs: [{config_name: default, data_files: [train.jsonl, ../secret.jsonl]}]",
    "of a split": "configs: [{config_name: default, data_files: [{split: train, path: ../secret.jsonl}]}]",
    "of splits": "configs: [{config_name: default, data_files: [{split: train, path: [train.jsonl, /etc/passwd]}]}]",
    "an address": "configs: [{config_name: default, data_files: 'https://example.org/x.jsonl'}]",
    "the hub": "configs: [{config_name: default, data_files: 'hf://datasets/some/data/x.jsonl'}]",
    "an archive": "configs: [{config_name: default, data_files: 'zip://x.jsonl::a.zip'}]",
    "a folder": "configs: [{config_name: default, data_dir: ..}]",
    "through a folder": "configs: [{config_name: default, data_files: sub/../../secret.jsonl}]",
    "another configuration": "configs: [{config_name: a, data_files: train.jsonl}, {config_name: b, data_files: ../*}]",
    "hidden": "configs: [{config_name: default, data_files: .cache/x.jsonl}]",
    "home": "configs: [{config_name: default, data_files: ~/secret.jsonl}]",
    "backslashes": r"configs: [{config_name: default, data_files: '..\secret.jsonl'}]",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for path in (tmp_path / "secret.jsonl", tmp_path / "data/train.jsonl"):
        path.write_text(json.dumps({**ROW, "output": path.stem}) + "\n")
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("case", OUTSIDE)
def test_files_outside_are_refused_in_one_sentence(case: str, name: str, folder: Path) -> None:
    yaml = OUTSIDE[case]
    (folder / name).write_text(card(yaml) if name == "README.md" else yaml)
    with pytest.raises(InputError) as caught:
        check_within(folder)
    said = str(caught.value)
    assert said.startswith(f"{folder / name}: names the data file ")
    assert said.endswith("copy it into the folder and name it there.") and "\n" not in said


def test_a_loader_never_reads_them(folder: Path) -> None:
    (folder / "README.md").write_text(card(OUTSIDE["one file"]))
    for read in (rows, texts):
        with pytest.raises(
            InputError, match=r"README\.md: names the data file '\.\./secret\.jsonl'"
        ):
            list(read({"folder": str(folder)}))


@pytest.mark.parametrize(
    "yaml",
    [
        "configs: [{config_name: default, data_files: train.jsonl}]",
        "configs: [{config_name: default, data_files: [{split: train, path: 'tr*.jsonl'}]}]",
        "tags: [../x, 'https://example.org']\nhomepage: /a",  # of no data file
    ],
)
def test_files_in_the_folder_are_read(yaml: str, folder: Path) -> None:
    (folder / "README.md").write_text(card(yaml))
    (found,) = rows({"folder": str(folder)})
    assert found.references == ("train",)


@pytest.mark.parametrize(
    "text", ["", "# Rows\n\nno front matter", "---\n---\n", "\ufeff---\na: 1\n---\n"]
)
def test_cards_without_data_files(text: str, folder: Path) -> None:
    (folder / "README.md").write_text(text)
    check_within(folder)


@pytest.mark.parametrize(
    "text", ["---\na: [\n---\n", "---\na: &a [*a]\nb: !!python/object:os.system {}\n---\n"]
)
def test_cards_that_cannot_be_read(text: str, folder: Path) -> None:
    (folder / "README.md").write_text(text)
    with pytest.raises(InputError, match=r"README\.md: cannot be read"):
        check_within(folder)


def test_saved_data_sets_name_their_own_files(folder: Path) -> None:
    saved = folder / "saved"
    Dataset.from_list([ROW]).save_to_disk(saved)
    check_within(saved)
    state = json.loads((saved / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../other/data-00000-of-00001.arrow"
    (saved / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="which lies outside of the folder"):
        list(rows({"folder": str(saved)}))
    (saved / "state.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        check_within(saved)
