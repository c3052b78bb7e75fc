"""A file of tensors depends on the tensors alone, and whom the umask lets may read it."""

import hashlib
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flow_factory.utils.tensor_file import NAMES, read_header, write_tensors

TENSORS = {f"{name}.ü": torch.arange(6).reshape(2, 3).to(dtype) for dtype, name in NAMES.items()} | {
    "scalar": torch.tensor(2.5, dtype=torch.bfloat16), "none": torch.zeros(0, 4), "turned": torch.arange(6.0).reshape(2, 3).T,
}  # fmt: skip
METADATA = {"format": "pt", "b": "1", "a": "ü\n"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    digest = write_tensors(tmp_path / "a", TENSORS, METADATA)
    read = load_file(tmp_path / "a")
    assert read.keys() == TENSORS.keys()
    assert all(read[k].dtype == t.dtype and torch.equal(read[k].double(), t.double()) for k, t in TENSORS.items())
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == METADATA
    assert digest == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


def test_equal_tensors_are_equal_files(tmp_path: Path) -> None:
    """In whatever order they come."""
    first = write_tensors(tmp_path / "a", TENSORS, METADATA)
    assert write_tensors(tmp_path / "b", dict(reversed(TENSORS.items())), dict(reversed(METADATA.items()))) == first
    assert write_tensors(tmp_path / "c", TENSORS | {"scalar": torch.tensor(2.0)}, METADATA) != first


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_umask_says_who_may_read_it(tmp_path: Path, umask: int) -> None:
    former = os.umask(umask)
    try:
        write_tensors(tmp_path / "a", TENSORS)
    finally:
        os.umask(former)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_header_says_where_the_tensors_are_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    write_tensors(path := tmp_path / "a", TENSORS, METADATA)
    whole = path.read_bytes()
    found = read_header(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        stored = found[name]
        assert (NAMES[tensor.dtype], list(tensor.shape)) == (stored.dtype, stored.shape)
        assert whole[stored.begin : stored.end] == tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    text = whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]].replace(b":[0,", b":[1e999,")  # infinite, to Python
    infinite = struct.pack("<Q", len(text)) + text
    renamed, below = whole.replace(b"data_offsets", b"data_offset_"), whole.replace(b":[0,", b":[-8")
    for cut in (b"", whole[:4], whole[:40], b"\xff" * 40, renamed, below, infinite):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match="is damaged: its header cannot be read"):
            read_header(path)
    for cut in (whole[:-1], whole + b"x"):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match=f"is truncated or damaged: {len(cut):,} bytes, and its header says {len(whole):,}"):
            read_header(path)


@pytest.mark.parametrize("length", [0, 1, 10**8, 2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_header_that_says_a_wrong_length_is_damaged(tmp_path: Path, length: int) -> None:
    file = tmp_path / "x.safetensors"
    write_tensors(file, {"a": torch.zeros(2)}, {})
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    with pytest.raises(ValueError, match="damaged"):
        read_header(file)
