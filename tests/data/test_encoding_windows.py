"""Rows encoded ahead, in windows, or at the moment of need: the same training to the bit, wherever the encoders are in between."""

import os
import shutil
import signal
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from flow_factory.config import load_config
from flow_factory.data.cache import ConditionCache
from flow_factory.data.cache_folder import cached_rows
from flow_factory.data.encoding_windows import FEW, evaluated, idle_of, order_of, rows_needed, rows_of_start, rows_of_window, window_of
from flow_factory.memory.checkpoint import Model, model_of
from flow_factory.memory.encoding_plan import encoding_lines, resolve_encoding, row_size, with_data
from flow_factory.memory.parts import in_main_memory, peak
from flow_factory.train import build
from flow_factory.training import encoding_timer, text_encoders
from flow_factory.training.encoding_timer import FIRST, EncodingTimer
from flow_factory.training.run import Run
from flow_factory.types import Cond, Row
from flow_factory.utils.errors import RowError, UserError
from flow_factory.utils.signals import Interrupted
from tests.tiny.hub import COMMIT
from tests.tiny.run import ROOT, checkpoint, ff_train, logged, read_state, tiny, trained, write_rows, write_run
from tests.tiny.several import several

SHORT = ("train.max_epochs=3", "eval.eval_freq=3", "eval.num_inference_steps=1", "mixed_precision=bf16")
WINDOW = ("data.encode=window", "data.encode_epochs=1")


def rows_in(cache: Path) -> int:
    return sum(stock.rows for stock in cached_rows(cache))


def done(folder: Path, *overrides: str) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """What a run has learned and said."""
    run = tiny(folder, *SHORT, *overrides)
    run()
    return trained(run), logged(run.folder)


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    return done(tmp_path_factory.mktemp("ahead"), "data.encode=ahead")


# -- the same bits ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((*WINDOW, "data.idle_encoders=drop"), id="dropped"),
        pytest.param((*WINDOW, "data.idle_encoders=offload"), id="offloaded", marks=pytest.mark.exhaustive),
        pytest.param(("data.enable_preprocess=false",), id="never kept", marks=pytest.mark.slow),
        pytest.param(("data.encode=window", "data.encode_epochs=2", "data.idle_encoders=keep"), id="kept", marks=pytest.mark.exhaustive),
    ],
)
def test_when_rows_are_encoded_changes_no_bit(
    overrides: tuple[str, ...], ahead: tuple[dict[str, Tensor], list[dict[str, Any]]], tmp_path: Path
) -> None:
    weights, said = done(tmp_path, *overrides)
    assert said == ahead[1]
    assert all(torch.equal(weights[name], x) for name, x in ahead[0].items())
    assert rows_in(tmp_path / "cache") == (0 if "data.enable_preprocess=false" in overrides else 10)


@pytest.mark.slow
def test_a_run_stopped_in_a_window_goes_on_to_the_same_weights(
    ahead: tuple[dict[str, Tensor], list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes while the second window's first row is encoded."""
    run = tiny(tmp_path, *SHORT, *WINDOW)
    first, adapter = rows_in(tmp_path / "cache"), run.context.adapter

    def interrupted(row: Row, call: Mapping[str, Any]) -> Cond:
        run.context.interrupt.signal = signal.SIGTERM
        return type(adapter).encode(adapter, row, call)

    monkeypatch.setattr(adapter, "encode", interrupted)
    with pytest.raises(Interrupted):
        run()
    assert rows_in(tmp_path / "cache") == first + 1 and run.context.progress.epoch == 1
    weights, said = done(tmp_path, *WINDOW, f"model.resume_path={run.folder}")
    assert said == ahead[1]
    assert all(torch.equal(weights[name], x) for name, x in ahead[0].items())


@pytest.mark.slow
def test_a_row_that_fails_in_a_window_is_named_and_the_epochs_before_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny(tmp_path, *SHORT, *WINDOW, "eval.eval_freq=0")

    def fail(*_: Any, **__: Any) -> Any:
        raise AttributeError("no such token")

    monkeypatch.setattr(run.context.adapter, "embed", fail)
    with pytest.raises(RowError, match=r"train.jsonl:\d: FluxPipeline cannot encode this row: "):
        run()
    assert read_state(run.folder / "checkpoints" / "epoch_1")


# -- the encoders' life -----------------------------------------------------------------------------------------------------------


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


# -- which rows, when -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "per_epoch", "size", "epochs"), [(10, 3, 2, 7), (10, 3, 4, None), (4, 6, 2, 3), (50, 8, None, 9)])
def test_windows_have_what_their_epochs_draw_wherever_a_run_goes_on(
    tmp_path: Path, rows: int, per_epoch: int, size: int | None, epochs: int | None
) -> None:
    override = [f"train.unique_sample_num_per_epoch={per_epoch}", f"train.max_epochs={'null' if epochs is None else epochs}"]
    config = load_config(write_run(tmp_path), [*override, *WINDOW, f"data.encode_epochs={'null' if size is None else size}"])
    last = 9 if epochs is None else epochs
    for start in range(last):
        there, until = set(rows_of_start(config, (rows,), start)), window_of(config, start).stop
        for epoch in range(start, last):
            if epoch >= until:
                there, until = set(rows_of_window(config, (rows,), epoch)), window_of(config, epoch).stop
            assert {group.row for group in order_of(config, (rows,)).epoch(epoch)} <= there <= set(rows_needed(config, (rows,)))
        assert window_of(config, start).stop in {window_of(config, epoch).stop for epoch in range(last)}


def test_a_run_that_never_evaluates_encodes_no_test_rows(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    assert len(evaluated(load_config(file), 4)) == 4 and not len(evaluated(load_config(file, ["eval.eval_freq=0"]), 4))


FLUX = ROOT / "examples/grpo/lora/flux1.yaml"


@lru_cache
def flux() -> Model:
    """Of the published sizes."""
    model = model_of(load_config(FLUX))
    assert model is not None
    return model


@pytest.mark.parametrize(
    ("rows", "gpu", "overrides", "expected"),
    [
        (25_000, 80, ["train.max_epochs=20"], ("ahead", "offload")),
        (25_000, 80, ["train.max_epochs=null"], ("window", "offload")),
        (FEW, 80, ["train.max_epochs=null"], ("ahead", "offload")),
        (25_000, 80, ["train.max_epochs=1000", "model.compile=true"], ("ahead", "offload")),
        (25_000, 40, ["train.max_epochs=1000"], ("ahead", "offload")),
        (25_000, 40, ["train.max_epochs=1000", "data.encode=window", "data.idle_encoders=drop"], ("window", "drop")),
    ],
)  # fmt: skip
def test_auto_takes_windows_where_rows_are_many_and_the_encoders_fit_beside_the_training(
    rows: int, gpu: float, overrides: list[str], expected: tuple[str, str]
) -> None:
    data = resolve_encoding(load_config(FLUX, overrides), (rows,), flux(), gpu).data
    assert (data.encode, data.idle_encoders) == expected


def test_the_plan_has_the_encoders_where_they_are() -> None:
    config = load_config(FLUX, ["train.max_epochs=1000"])
    encoders = 2e-9 * (0.123e9 + 4.762e9)
    ahead, window, dropped, kept = (
        flux().parts(with_data(config, *how)) for how in (("ahead", "drop"), ("window", "offload"), ("window", "drop"), ("window", "keep"))
    )
    assert peak(kept) == pytest.approx(peak(ahead) + encoders)
    always = sum(part.gb for part in ahead if part.phase == "always" and not part.host)
    assert peak(window) == peak(dropped) == pytest.approx(always + encoders) != peak(ahead), "more than a step of FLUX.1's LoRA"
    waits = [[part for part in parts if part.name.startswith("text encoders between")] for parts in (ahead, window, dropped, kept)]
    assert [len(parts) for parts in waits] == [0, 1, 0, 0] and waits[1][0].gb == pytest.approx(encoders)
    assert waits[1][0].host and waits[1][0].shared, "all processes of a machine have the file's pages"
    assert in_main_memory(window) == in_main_memory(dropped) == in_main_memory(kept) == in_main_memory(ahead)
    assert idle_of(load_config(FLUX, ["data.enable_preprocess=false"])) == "keep"


def test_a_check_says_which_rows_are_encoded_when() -> None:
    config = with_data(load_config(FLUX, ["train.max_epochs=null", "train.unique_sample_num_per_epoch=48"]), "window", "offload")
    first, later, much = encoding_lines(config, (25_000,), {"": 8}, row_size(config, flux()))
    assert "the 241 training rows that the first epochs draw and all test rows" in first
    assert "the rows of 5 epochs at a time, 24759 more" in later and "data.idle_encoders: offload" in later
    assert much.startswith("up to 2.1 MB a row, 52.4 GB for all, condition pictures not counted; ")


# -- several processes ------------------------------------------------------------------------------------------------------------

TWO = ("log.save_freq=1", "log.save_model_only=false", "train.max_epochs=3", "eval.eval_freq=3", "eval.num_inference_steps=1")
FSDP = (f"config_file={ROOT}/examples/launch/fsdp2.yaml",)
FRESH = ("data.enable_preprocess=false",)


def stopping(run: Run) -> dict[str, Any]:
    """Does a run; in one of the name `stopped`, the second process alone gets a signal while it encodes the second window, and goes on."""
    trainer, config = run.trainer, run.context.config
    if run.folder.name != "stopped":
        run()
        return {}

    def interrupted(row: Row, call: Mapping[str, Any]) -> Cond:
        if trainer.context.accelerator.process_index == 1:
            trainer.context.interrupt.signal = signal.SIGTERM
        return type(trainer.context.adapter).encode(trainer.context.adapter, row, call)

    trainer.context.adapter.encode = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        run()
    AcceleratorState._reset_state(reset_partial_state=True)
    again = build(config.model_copy(update={"model": config.model.model_copy(update={"resume_path": str(run.folder)})}))
    again()
    return {"stopped after": trainer.context.progress.epoch}


@pytest.mark.slow
def test_two_processes_learn_the_same_whenever_rows_are_encoded(tmp_path: Path) -> None:
    runs = {"ahead": (), "window": WINDOW, "fresh": FRESH, "stopped": WINDOW, "fsdp_ahead": FSDP, "fsdp_window": (*FSDP, *WINDOW)}
    own = {name: [*TWO, *keys, f"data.cache_dir={tmp_path}/{name}"] for name, keys in runs.items()}
    said = several(tmp_path, 2, own, stopping)
    assert said["stopped"] == [{"stopped after": 1}] * 2
    for name, other in {"window": "ahead", "fresh": "ahead", "stopped": "ahead", "fsdp_window": "fsdp_ahead"}.items():
        for epoch in (1, 2, 3):
            here, there = (read_state(tmp_path / "save" / run / "checkpoints" / f"epoch_{epoch}") for run in (name, other))
            assert here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in there), (name, epoch)
        assert logged(tmp_path / "save" / name) == logged(tmp_path / "save" / other)
    assert {name: rows_in(tmp_path / name) for name in runs} == dict.fromkeys(runs, 10) | {"fresh": 0}


@pytest.mark.slow
def test_a_run_killed_while_it_encodes_a_window_goes_on_to_the_same_weights(
    ahead: tuple[dict[str, Tensor], list[dict[str, Any]]], tmp_path: Path
) -> None:
    write_run(tmp_path)
    often = (*SHORT, *WINDOW, "log.save_freq=1", "log.save_model_only=false", "model.resume_path=auto")
    killed = "flow_factory.training.text_encoders:Encoders.encode 8 SIGKILL"  # the first of the second window
    assert ff_train("tiny.yaml", *often, cwd=tmp_path, killed=killed).returncode == -signal.SIGKILL
    there = rows_in(tmp_path / "cache")
    done = ff_train("tiny.yaml", *often, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 7 <= there < rows_in(tmp_path / "cache") == 10
    state = read_state(tmp_path / "save" / "run" / "checkpoints" / "epoch_3")
    assert logged(tmp_path / "save" / "run") == ahead[1]
    assert all(torch.equal(state[f"weights/policy/{name}"], x) for name, x in ahead[0].items())


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
