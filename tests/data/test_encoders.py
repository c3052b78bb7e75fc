"""The encoders' life in a run: where they are, when they are loaded and read, and which ones are the same."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from flow_factory.data.cache import ConditionCache
from flow_factory.training import encoding_timer, text_encoders
from flow_factory.training.encoding_timer import FIRST, EncodingTimer
from flow_factory.utils.errors import UserError
from tests.data.windows import SHORT, rows_in
from tests.tiny.hub import COMMIT
from tests.tiny.run import checkpoint, tiny, write_rows, write_run


def test_encoders_are_loaded_and_read_only_where_a_row_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def note(name: str) -> None:
        original = getattr(text_encoders, name)
        monkeypatch.setattr(text_encoders, name, lambda *args: made.append(name) or original(*args))

    note("load_parts")
    note("module_fingerprint")
    tiny(tmp_path, *SHORT)
    assert sorted(made) == ["load_parts", "module_fingerprint", "module_fingerprint"]
    made.clear()
    run = tiny(tmp_path, *SHORT)
    assert not made
    for shard in (tmp_path / "cache").rglob("*.shard"):
        shard.write_bytes(bytes(shard.stat().st_size))
    assert run.evaluators
    assert all(conds[k] for conds in (run.context.conds, run.evaluators[0].conds) for k in range(len(conds)))
    assert made == ["load_parts"] and run.context.adapter.pipe.text_encoder is None, "they leave again"


@pytest.mark.slow
def test_other_weights_in_the_same_files_are_other_encoders(tmp_path: Path) -> None:
    """Known by size and time of change, found out by content."""
    write_run(tmp_path)
    flux = shutil.copytree(checkpoint(), tmp_path / "flux")
    override = f"model.model_name_or_path={flux}"
    tiny(tmp_path, *SHORT, override)
    file = flux / "text_encoder" / "model.safetensors"
    bytes_of = bytearray(file.read_bytes())
    bytes_of[-1] ^= 1
    stat = file.stat()
    file.write_bytes(bytes_of)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    tiny(tmp_path, *SHORT, override)
    assert rows_in(tmp_path / "cache") == 20
    os.utime(flux / "text_encoder_2" / "model.safetensors")
    tiny(tmp_path, *SHORT, override)
    assert rows_in(tmp_path / "cache") == 20, "a file that was only touched is the same encoder"


def test_a_disk_without_room_for_the_rows_is_said_after_the_first_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what they took; and the run that goes on when there is room has them."""
    write_run(tmp_path)
    write_rows(tmp_path / "data" / "train.jsonl", [{"prompt": f"a red circle {k}"} for k in range(30)])
    free = SimpleNamespace(free=1000)
    with monkeypatch.context() as full, pytest.raises(UserError, match=r"data.cache_dir: .*: the rows .* take .* GB are missing"):
        full.setattr(shutil, "disk_usage", lambda path: free)
        tiny(tmp_path, *SHORT, "train.max_epochs=100")
    assert rows_in(tmp_path / "cache") == 1 + FIRST


def test_the_pace_counts_all_processes_and_the_rows_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 of 100 rows a second each, after a first one that takes a minute."""
    now, said = [0.0], list[str]()
    monkeypatch.setattr(encoding_timer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(encoding_timer, "note", said.append)
    cache = ConditionCache(tmp_path, "encoders")
    one = EncodingTimer(cache, 100, 2, verbose=True, later=1000)
    for k in range(100):
        one.row()
        now[0] += 0.25 if k else 60
        cache.shards.grown += 4_000_000 if k else 8_000_000
    assert said[0].startswith("182 rows are to be encoded: 23 s at 8 a second, and 0.728 GB (4 MB a row) in ")
    assert said[1:] == ["the 1000 rows that the run draws later take up to 4 GB more there"]


def test_a_start_does_not_write_or_read_the_transformer_to_know_the_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the pipeline for it saves like a tokenizer: 24 GB of FLUX.1 on each process, at each start."""
    run = tiny(tmp_path)
    saved: list[str] = []
    (transformer,) = run.context.adapter.field.bare.values()
    monkeypatch.setattr(type(transformer), "save_pretrained", lambda self, *args, **keys: saved.append(type(self).__name__))
    device = run.context.accelerator.device
    assert text_encoders.Encoders(run.context.config, run.context.adapter, device, True).known() is not None and not saved


def test_a_file_of_the_hub_s_cache_is_known_by_its_blob_wherever_the_cache_is(tmp_path: Path) -> None:
    known = []
    for cache, content, blob in (("one", "x", "a"), ("two", "x", "a"), ("three", "y", "b")):
        part = tmp_path / cache / "snapshots" / COMMIT / "text_encoder"
        blobs = tmp_path / cache / "blobs"
        part.mkdir(parents=True)
        blobs.mkdir()
        (blobs / blob).write_text(content)
        os.utime(blobs / blob, (len(known), len(known)))
        (part / "model.safetensors").symlink_to(Path("../../../blobs") / blob)
        known.append(text_encoders.stated(part / "model.safetensors"))
    assert known[0] == known[1] != known[2]
