"""`ff-data`: what is kept of encoded rows is listed and removed; nothing else is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flow_factory.commands.data import main
from flow_factory.data.cache import ConditionCache
from flow_factory.data.cache_folder import cached_rows, require_space
from flow_factory.types import Row
from flow_factory.utils.errors import UserError
from tests.data.encoded import encode_rows
from tests.tiny.run import ROOT

DAY = 86400


def filled(folder: Path) -> None:
    """Two data sets of one model, and one of another; the first was last used 40 days ago."""
    for k, (data, model) in enumerate((("/data/a", "org/small"), ("/data/b", "org/small"), ("/data/b", "org/large"))):
        cache = ConditionCache(folder, model, {"dataset_dir": data, "model": model, "model_type": "flux1"})
        rows = [Row(n, f"{data} {n}") for n in range(k + 1)]
        encode_rows(rows, lambda row: {"x": torch.zeros(9), "y": torch.full((20_000,), row.id)}, cache, progress=False)
    (note,) = (stock.folder / f"{stock.family}.json" for stock in cached_rows(folder) if stock.about["dataset_dir"] == "/data/a")
    os.utime(note, (time.time() - 40 * DAY,) * 2)
    (folder / "ab").mkdir()
    (folder / "ab" / f"{'ab' * 32}.safetensors").write_bytes(b"old")
    (folder / "ab" / "mine.txt").touch()
    (folder / "media.jsonl").touch()


def left(folder: Path) -> set[tuple[str, str, int]]:
    return {(stock.about["dataset_dir"], stock.about["model"], stock.rows) for stock in cached_rows(folder)}


ALL = {("/data/a", "org/small", 1), ("/data/b", "org/small", 2), ("/data/b", "org/large", 3)}


def test_the_list_has_rows_sizes_and_last_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path)
    assert main(["cache", "--cache-dir", str(tmp_path)]) == 0
    head, *lines, old, total, beside = capsys.readouterr().out.splitlines()
    assert head.split() == ["data", "set", "model", "rows", "size", "last", "use"]
    assert {(*line.split()[:2], int(line.split()[3])) for line in lines} == ALL
    assert [line for line in lines if "40 days ago" in line] == [line for line in lines if "/data/a" in line]
    assert old.startswith("1 rows of an earlier version") and total.startswith(f"{tmp_path}: ")
    assert beside == "beside them, which is not pruned: media.jsonl 0 B"


@pytest.mark.parametrize(("asked", "gone"), [
    (["--older-than", "30d"], {"/data/a"}), (["--dataset", "a"], {"/data/a"}), (["--dataset", "/data/a/"], {"/data/a"}),
    (["--model", "org/large"], {"org/large"}), (["--model", "large", "--dataset", "b"], {"org/large"}),
    (["--model", "large", "--older-than", "1h"], set()), (["--older-than", "50d"], set()), (["--dataset", "data"], set()),
    (["--old"], set()), (["--all"], {"/data/a", "/data/b"}),
])  # fmt: skip
def test_prune_removes_what_is_asked(tmp_path: Path, asked: list[str], gone: set[str]) -> None:
    filled(tmp_path)
    here = ["cache", "prune", "--cache-dir", str(tmp_path), *asked]
    assert main([*here, "--dry-run"]) == 0 and left(tmp_path) == ALL
    assert main([*here, "--yes"]) == 0
    assert left(tmp_path) == {entry for entry in ALL if not gone & {*entry}}
    assert (tmp_path / "ab" / f"{'ab' * 32}.safetensors").exists() == (asked[0] not in ("--old", "--all"))
    assert (tmp_path / "ab" / "mine.txt").exists() and (tmp_path / "media.jsonl").exists()
    if asked == ["--all"]:
        assert not list((tmp_path / "rows").iterdir())


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "choose what to remove: --older-than 30d"), (["--all"], "no terminal to ask on"), (["--older-than", "soon"], "not an age"),
])  # fmt: skip
def test_prune_does_not_guess(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    filled(tmp_path)
    try:
        code = main(["cache", "prune", "--cache-dir", str(tmp_path), *arguments])
    except SystemExit as end:  # of argparse
        code = int(str(end.code))
    assert code == 2 and said in capsys.readouterr().err and left(tmp_path) == ALL


def test_rows_that_are_pruned_while_a_run_goes_on_are_encoded_again(tmp_path: Path) -> None:
    calls, rows = [], [Row(k, str(k)) for k in range(3)]

    def encode(row: Row) -> dict[str, torch.Tensor]:
        calls.append(row.id)
        return {"y": torch.full((20_000,), row.id)}

    conds = encode_rows(rows, encode, ConditionCache(tmp_path, "v1"), progress=False)
    held = conds[0]["y"]
    assert main(["cache", "prune", "--all", "--yes", "--cache-dir", str(tmp_path)]) == 0
    assert held.eq(0).all(), "what is mapped stays"
    assert [int(cond["y"][-1]) for cond in (*conds, *conds)] == [0, 1, 2] * 2 and calls == [0, 1, 2] * 2
    assert list(encode_rows(rows, encode, ConditionCache(tmp_path, "v1"), progress=False)[1]["y"][:1]) == [1] and len(calls) == 6


def test_a_start_notes_the_use_of_all_that_it_finds(tmp_path: Path) -> None:
    """Also rows that another data set has brought."""
    filled(tmp_path)
    (before,) = (stock.used for stock in cached_rows(tmp_path) if stock.about["dataset_dir"] == "/data/a")
    other = ConditionCache(tmp_path, "org/small", {"dataset_dir": "/data/c", "model": "org/small", "model_type": "flux1"})
    encode_rows([Row(0, "/data/a 0")], lambda row: {}, other, progress=False)
    (after,) = (stock.used for stock in cached_rows(tmp_path) if stock.about["dataset_dir"] == "/data/a")
    assert after - before > 30 * DAY and left(tmp_path) == ALL


def test_room_is_asked_for_before(tmp_path: Path) -> None:
    require_space(tmp_path / "new" / "folder", 1000)
    with pytest.raises(UserError, match=r"^data.cache_dir: .*: the rows .* take 1000000000.0 GB, but .* GB are free: .* are missing; "):
        require_space(tmp_path / "new", 10**18)


def test_help_needs_no_torch() -> None:
    code = "import sys, flow_factory.commands.data as d; d.parser(); print([m for m in ('torch', 'PIL', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    module = [sys.executable, "-m", "flow_factory.commands.data", "--help"]
    assert subprocess.run(module, cwd=ROOT, capture_output=True, text=True, check=True).stdout.startswith("usage: ff-data")
