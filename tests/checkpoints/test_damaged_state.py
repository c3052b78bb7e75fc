"""A training state that is damaged or hostile is refused in a line, and runs no code."""

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.runs.training_state import load
from flow_factory.utils.tensor_file import write_tensors
from tests.checkpoints.states import run, save, train, values

TENSORS = "part-00000.safetensors"


def damaged(folder: Path, spoil: Callable[[Path], object]) -> str:
    """What is said of a state after this; nothing of the run that it was for has changed."""
    first, second = run(), run()
    train(first, range(2))
    spoil(save(folder, first, 2) / "state")
    before = values(second)
    with pytest.raises(CheckpointError) as error:
        load(folder, *second[1:])
    assert all(torch.equal(before[k], v) for k, v in values(second).items())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("spoil", [
    lambda state: (state / TENSORS).write_bytes(b"no"),
    lambda state: (state / TENSORS).unlink(),
    lambda state: (state / "index.json").write_bytes(b"no"),
    lambda state: (state / "index.json").unlink(),
    lambda state: (state / "progress.json").write_text("{"),
    lambda state: (state / "progress.json").unlink(),
], ids=["tensors", "no tensors", "index", "no index", "progress", "no progress"])  # fmt: skip
def test_a_damaged_state_is_refused(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    assert damaged(tmp_path, spoil).startswith(f"{tmp_path} is damaged: ")


def test_a_bit_that_flipped_is_found(tmp_path: Path) -> None:
    """In a number, in a header, in the counters."""
    saved = save(tmp_path, run()) / "state"
    for name in (TENSORS, "progress.json"):
        whole = (saved / name).read_bytes()
        for place in range(0, len(whole), len(whole) // 6):
            (saved / name).write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(CheckpointError, match=f"is damaged: ValueError: the checksum of {name} is wrong"):
                load(tmp_path, *run()[1:])
        (saved / name).write_bytes(whole)
    load(tmp_path, *run()[1:])


def edited(**keys: Any) -> Callable[[Path], object]:
    """The index with other values; those of `weight` are of one tensor's place."""

    def edit(state: Path) -> None:
        index = json.loads((state / "index.json").read_text())
        index["tensors"]["weights/policy/weight"] |= keys.pop("weight", {})
        (state / "index.json").write_text(json.dumps(index | keys))

    return edit


FILE = {"size": 3, "sha256": ""}


@pytest.mark.parametrize(("spoil", "message"), [
    (edited(format=2), "format: Input should be 1"),
    (edited(files={"../../secret": FILE}), "names '../../secret', which is in another folder"),
    (edited(files={"/etc/passwd": FILE}), "names '/etc/passwd', which is in another folder"),
    (edited(files=[]), "files: Input should be an object"),
    (edited(more=1), "more: Extra inputs are not permitted"),
    (edited(weight={"rows": []}), "rows of 'weights/policy/weight' are missing"),
    (edited(weight={"rows": [{"file": TENSORS, "first": 1, "end": 3}]}), "rows of 'weights/policy/weight' are missing"),
    (edited(weight={"rows": [{"file": "x", "first": 0, "end": 3}]}), "rows of 'weights/policy/weight' are missing"),
    (edited(weight={"shape": [3, -4]}), "shape.1: Input should be greater than or equal to 0"),
    (edited(weight={"shape": [2, 4], "rows": [{"file": TENSORS, "first": 0, "end": 2}]}), "first at 'weights/policy/weight'"),
    (lambda state: (state / "index.json").write_text("[" * 100000), "recursion|nest"),
])  # fmt: skip
def test_an_index_that_lies_is_refused(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    assert re.search(message, damaged(tmp_path, spoil))


def test_a_file_that_has_something_else_than_the_index_says_is_refused(tmp_path: Path) -> None:
    """With the right checksum, as somebody who made it would write it."""
    for tensors, message in (
        ({"weights/policy/weight": torch.zeros(3, 9)}, "has another shape for 'weights/policy/weight'"),
        ({"other": torch.zeros(3)}, "does not contain tensor weights/"),
        ({"weights/policy/weight": torch.zeros(())}, "dimension|shape|slice"),
    ):

        def spoil(state: Path, tensors: dict[str, torch.Tensor] = tensors) -> None:
            index = json.loads((state / "index.json").read_text())
            everything = {k: t.clone() for k, t in load_file(state / TENSORS).items() if "other" not in tensors}
            digest = write_tensors(state / TENSORS, everything | tensors)
            index["files"][TENSORS] = {"size": (state / TENSORS).stat().st_size, "sha256": digest}
            (state / "index.json").write_text(json.dumps(index))

        assert re.search(message, damaged(tmp_path, spoil))


class Hostile:
    """As a pickle it writes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_a_strangers_state_runs_no_code(tmp_path: Path) -> None:
    """As torch's own index, which earlier versions of this program read; as a file of tensors; beside a state that is damaged."""
    mark = tmp_path / "mark"
    bad = pickle.dumps(Hostile(mark))

    def spoil(state: Path) -> None:
        for name in (".metadata", "progress.json", TENSORS, "__0_0.distcp"):
            (state / name).write_bytes(bad)

    def old(state: Path) -> None:
        spoil(state)
        (state / "index.json").unlink()

    first, second = tmp_path / "epoch_1", tmp_path / "epoch_2"
    said = damaged(first, old)
    assert re.search("a training state of an earlier version, .*model.resume_type: lora or full starts from its weights; no other in", said)
    assert "is damaged" in damaged(second, spoil)
    assert not mark.exists()
    pickle.loads(bad)
    assert mark.exists(), "it would have"
