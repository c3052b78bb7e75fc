"""Data sets of the hub, which here is a server on this machine."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny.hub import COMMIT, LATER, Repo, hub
from tests.tiny.run import ROOT
from tests.tiny.tables import PICTURE, picture

ASKED = """
import json, logging, sys
from flow_factory.config.data import DataConfig
from flow_factory.data.sources import has_table, open_table
from flow_factory.utils.errors import UserError
logging.basicConfig(format="%(message)s")
for case in json.loads(sys.argv[1]):
    data = DataConfig(**case)
    try:
        found = [[(row.prompt, *row.images) for row in open_table(data, data.train_split)], has_table(data, data.test_split)]
    except UserError as error:
        found = str(error)
    print(json.dumps(found), flush=True)
"""
CARD = b"""---
configs:
- config_name: small
  data_files: small/*
- config_name: big
  data_files:
  - split: train
    path: big/train*
  - split: validation
    path: big/val*
---
"""


def table(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def repos() -> dict[str, Repo]:
    first, later = (
        {"README.md": b"#", "data/train-00000-of-00001.parquet": table(caption=texts, image=pa.array(pictures, PICTURE))}
        for texts, pictures in ((["a", "b"], [{"bytes": picture(), "path": "x.png"}, None]), (["c"], [None]))
    )
    two = {
        "README.md": CARD,
        "small/x.parquet": table(caption=["small"]),
        **{f"big/{s}.parquet": table(caption=[s]) for s in ("train", "val")},
    }
    one = table(caption=[f"prompt {k}" for k in range(100)])
    return {
        "owner/name": Repo({COMMIT: first, LATER: later}, {"main": LATER, "v1": COMMIT}), "owner/two": Repo({COMMIT: two}),
        "owner/unknown-to-us": Repo({}, gated=401), "owner/not-for-us": Repo({}, gated=403), 
        "owner/dies": Repo({COMMIT: {"x.parquet": one}}, dies=True),
        "owner/script": Repo({COMMIT: {"README.md": b"#", "script.py": b"raise SystemExit"}}),
        "owner/folder": Repo({COMMIT: {"train/metadata.jsonl": b'{"file_name": "a.png", "caption": "hi"}\n', "train/a.png": picture()}}),
    }  # fmt: skip


Case = tuple[str, dict[str, Any]]


def ask(folder: Path, cases: list[Case], environment: Mapping[str, str]) -> tuple[list[Any], str]:
    """What a process of its own finds, and what it says."""
    every = [
        {"dataset_dir": f"hf://datasets/owner/{name}", "columns": {"prompt": "caption"}, "cache_dir": str(folder / "cache")} | keys
        for name, keys in cases
    ]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    } | environment
    done = subprocess.run([sys.executable, "-c", ASKED, json.dumps(every)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


ONLINE: dict[str, tuple[Case, str]] = {
    "none": (("none", {}), "Dataset 'owner/none' doesn't exist on the Hub or cannot be accessed"),
    "revision": (("name@v9", {}), "Revision 'v9' doesn't exist for dataset 'owner/name' on the Hub"),
    "401": (("unknown-to-us", {}), "is a gated dataset on the Hub. You must be authenticated to access it"),
    "403": (("not-for-us", {}), "is a gated dataset on the Hub. Visit the dataset page"),
    "half": (("dies", {}), "peer closed connection"),
    "script": (("script", {}), "Dataset scripts are no longer supported, but found script.py"),
    "column": (("name", {"columns": {"prompt": "captoin"}}), "split train: data.columns.prompt: no column 'captoin'. Did you mean 'capt"),
    "split": (("name", {"train_split": "training"}), "has no split 'training', but train. Did you mean 'train'?"),
    "test": (("two", {"subset": "big", "test_split": "test"}), "data.test_split: hf://datasets/owner/two has no split 'test', but train"),
    "several": (("two", {}), "data.subset: hf://datasets/owner/two has several, choose one of small, big"),
    "subset": (("two", {"subset": "bigg"}), "data.subset: hf://datasets/owner/two has no 'bigg', but small, big. Did you mean 'big'?"),
}  # fmt: skip


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """A folder, what was found online, and the address that there is no more."""
    folder = tmp_path_factory.mktemp("hub")
    right: list[Case] = [
        ("name", {}), ("name@v1", {"columns": {"prompt": "caption", "image": "image"}}), (f"name@{COMMIT}", {}), ("two", {"subset": "big"}),
        ("folder", {}),
    ]  # fmt: skip
    with hub(repos()) as address:
        found, said = ask(folder, [*right, *(case for case, _ in ONLINE.values())], {"HF_ENDPOINT": address})
    assert said == "data.test_split: hf://datasets/owner/two has no split 'test', and nothing is evaluated; it has validation\n"
    yield folder, dict(zip([*(f"{name}{keys.get('subset', '')}" for name, keys in right), *ONLINE], found, strict=True)), address


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_read_by_name_revision_and_part(visited: tuple[Path, dict[str, Any], str]) -> None:
    folder, found, _ = visited
    assert found["name"] == [[["c"]], False] and found[f"name@{COMMIT}"] == found["name@v1"] and found["twobig"] == [[["train"]], False]
    (a, image), b = found["name@v1"][0]
    assert (a, b) == ("a", ["b"]) and Path(image).read_bytes() == picture() and (folder / "cache" / "media") in Path(image).parents
    ((prompt, image),) = found["folder"][0]
    assert prompt == "hi" and Path(image).read_bytes() == picture()


@pytest.mark.parametrize("name", ONLINE)
def test_what_the_hub_does_not_give_is_one_line(visited: tuple[Path, dict[str, Any], str], name: str) -> None:
    text = visited[1][name]
    assert isinstance(text, str) and ONLINE[name][1] in text and "\n" not in text and len(text) < 500, text


@pytest.mark.slow
def test_without_the_hub_the_copy_of_the_same_revision_is_used_or_none(visited: tuple[Path, dict[str, Any], str]) -> None:
    folder, online, address = visited
    cases: list[Case] = [
        ("name", {}),
        ("name@v1", {}),
        ("name@v9", {}),
        ("two", {"subset": "big"}),
        ("two", {"subset": "small"}),
        ("none", {}),
    ]
    for environment, reason in (
        ({"HF_ENDPOINT": address}, "127.0.0.1 cannot be reached (Connection refused)"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ):
        (name, v1, *refused), said = ask(folder, cases, environment)
        v9, big, small, none = refused
        assert (name, v1, big) == (online["name"], online["name@v1"], online["twobig"])
        assert {v9, small, none} == {
            f"data.dataset_dir: hf://datasets/owner/{which}: {reason}, and data.cache_dir has no copy of it"
            for which in ("name@v9", "two", "none")
        }
        assert (
            said.splitlines()[0]
            == f"data.dataset_dir: hf://datasets/owner/name: {reason}; its copy in data.cache_dir is used, of commit {LATER}"
        )


@pytest.mark.exhaustive  # the hub's client tries for 20 s
def test_where_the_hub_fails_no_copy_of_another_revision_stands_in(visited: tuple[Path, dict[str, Any], str]) -> None:
    """`datasets` itself would take the newest copy, whatever was asked for."""
    with hub({"owner/name": Repo({}, gated=500)}) as address:
        (found,), _ = ask(visited[0], [("name@v9", {})], {"HF_ENDPOINT": address})
    assert found == "data.dataset_dir: hf://datasets/owner/name@v9: the hub does not answer, and data.cache_dir has no copy of it"
