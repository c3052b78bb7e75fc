"""Rows encoded ahead, in windows, or at the moment of need: the same training to the bit, wherever the encoders are in between."""

import signal
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from flow_factory.config import load_config
from flow_factory.data.encoding_windows import FEW, evaluated, idle_of, order_of, rows_needed, rows_of_start, rows_of_window, window_of
from flow_factory.memory.checkpoint import Model, model_of
from flow_factory.memory.encoding_plan import encoding_lines, resolve_encoding, row_size, with_data
from flow_factory.memory.parts import in_main_memory, peak
from flow_factory.train import build
from flow_factory.training.run import Run
from flow_factory.types import Cond, Row
from flow_factory.utils.errors import RowError
from flow_factory.utils.signals import Interrupted
from tests.data.windows import SHORT, WINDOW, done, rows_in
from tests.tiny.run import ROOT, ff_train, logged, read_state, tiny, write_run
from tests.tiny.several import several


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    return done(tmp_path_factory.mktemp("ahead"), "data.encode=ahead")


# -- the same bits --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
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


# -- which rows, when -----------------------------------------------------------------------------------------------------------------


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


# -- several processes ----------------------------------------------------------------------------------------------------------------


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
