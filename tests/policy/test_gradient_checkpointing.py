"""`train.enable_gradient_checkpointing`: how it is written, what `auto` takes, and when it steps back."""

import logging
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from flow_factory.config import ConfigError, dump_config, load_config
from flow_factory.config.base import show
from flow_factory.config.recompute import chosen_blocks
from flow_factory.memory.auto import recomputing, resolve_auto
from flow_factory.memory.checkpoint import Model, model_of
from flow_factory.memory.parts import peak
from flow_factory.memory.room import ROOM
from flow_factory.policy.gradient_checkpointing import LEVELS, CheckpointedBlock, RecomputeFallback, blocks_of, checkpoint_blocks
from flow_factory.runs.preflight import ready
from flow_factory.training.banner import aligned, banner
from tests.conftest import flux
from tests.tiny.run import ROOT, tiny, write_run

KEY = "train.enable_gradient_checkpointing"


@pytest.mark.parametrize(("written", "read"), [
    ("true", True), ("false", False), ("auto", "auto"), ("{fraction: 0.5}", {"fraction": 0.5}), ("0.5", {"fraction": 0.5}),
    ("{every: 2}", {"every": 2}), ("{layers: [3, 0, 3]}", {"layers": [0, 3]}), ("{mode: full}", True), ("{mode: none}", False),
    ("{mode: fraction, fraction: 0.25}", {"fraction": 0.25}), ("{mode: every_n, every_n: 3}", {"every": 3}), ("{every_n: 1}", True),
    ("{mode: layers, layers: [1]}", {"layers": [1]}), ("{fraction: 1}", True), ("{fraction: 0}", False),
    ("{mode: full, fraction: null}", True),
])  # fmt: skip
def test_every_spelling_is_read_and_written_back(written: str, read: Any, tmp_path: Path) -> None:
    config = load_config(write_run(tmp_path), [f"{KEY}={written}"])
    assert config.train.enable_gradient_checkpointing == read
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml").train == config.train


@pytest.mark.parametrize(("written", "said"), [
    ("1", "wants true, false, auto,"), ("some", 'got "some"'), ("{}", "got {}"), ("{mode: half}", "or one of them as"),
    ("{fraction: 1.5}", "a share of the blocks from 0 to 1, got 1.5"), ("{fraction: true}", "from 0 to 1, got true"), ("1.5", "got 1.5"),
    ("{every: 0}", "from 1, got 0"), ("{layers: []}", "numbers of blocks from 0"), ("{layers: [-1]}", "numbers of blocks from 0"),
    ("{mode: fraction, every_n: 2}", "or one of them as"), ("{mode: full, fraction: 0.5}", "or one of them as"),
])  # fmt: skip
def test_what_is_written_wrongly_is_one_line(written: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write_run(tmp_path), [f"{KEY}={written}"])
    assert said in str(error.value) and f"{KEY}: " in str(error.value) and "\n" not in str(error.value)


def test_a_block_that_is_not_there_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=rf"{KEY}: layers: 4: the transformer has 4 blocks, from 0 to 3"):
        ready(load_config(write_run(tmp_path), [f"{KEY}={{layers: [0, 4]}}"]))


def test_a_share_is_of_the_first_blocks_and_every_nth_is_spread() -> None:
    assert chosen_blocks({"fraction": 0.5}, 5) == [0, 1, 2] and chosen_blocks({"every": 2}, 5) == [0, 2, 4]
    assert chosen_blocks(True, 3) == chosen_blocks("auto", 3) == [0, 1, 2] and chosen_blocks(False, 3) == []


def test_a_setting_takes_the_place_of_the_one_before() -> None:
    (model,) = flux().field.bare.values()
    forwards = [block.forward for block in blocks_of(model)]
    for setting in (*LEVELS, *reversed(LEVELS)):
        checkpoint_blocks([model], setting)
        wrapped = [isinstance(block.forward, CheckpointedBlock) for block in blocks_of(model)]
        assert wrapped == [k in chosen_blocks(setting, 4) for k in range(4)]
    assert [block.forward for block in blocks_of(model)] == forwards


WHOLE = ("model.vae_slicing=false", "model.vae_tiling=false")


@pytest.mark.slow
def test_auto_takes_the_fewest_blocks_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "examples/grpo/lora/flux1.yaml", [f"{KEY}=auto", "num_processes=1", "config_file=null", *WHOLE])
    model = model_of(config)
    assert model is not None
    parts = [model.parts(recomputing(config, level)) for level in LEVELS]  # each takes a while
    known = Mock(spec=Model, module=model.module)
    known.parts.side_effect = lambda found: parts[LEVELS.index(found.train.enable_gradient_checkpointing)]
    sizes = [peak(of) for of in parts]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] > 5
    for k, size in enumerate(sizes):
        found, (line,) = resolve_auto(config, known, size / ROOM + 0.01)
        assert found.train.enable_gradient_checkpointing == LEVELS[k]
        assert f"auto takes {show(LEVELS[k])} for a {size / ROOM:.0f} GB GPU: {round(57 * k / 4 + 0.3)} of 57 blocks" in line
    assert resolve_auto(config, known, 1.0)[0].train.enable_gradient_checkpointing is True


def test_auto_without_an_estimate_or_with_copies_of_the_weights_takes_all_blocks(tmp_path: Path) -> None:
    config = load_config(write_run(tmp_path), [f"{KEY}=auto", "model.layerwise_casting=fp8_e4m3"])
    assert resolve_auto(config, model_of(config))[0].train.enable_gradient_checkpointing is True
    config = load_config(write_run(tmp_path), [f"{KEY}=auto"])
    assert resolve_auto(config, None)[0].train.enable_gradient_checkpointing is True


def test_it_steps_back_once_when_the_card_is_nearly_full(caplog: pytest.LogCaptureFixture) -> None:
    (model,) = flux().field.bare.values()
    back = RecomputeFallback([model], {"fraction": 0.5})
    with caplog.at_level(logging.WARNING):
        back.look(0.97, bool)
        back.look(0.97, bool)
    assert back.setting == {"fraction": 0.75} and "the first epoch took 97 % of the GPU's memory; now 3 of 4 blocks" in caplog.text
    assert [isinstance(block.forward, CheckpointedBlock) for block in blocks_of(model)] == [True, True, True, False]
    for share, setting in ((0.5, False), (0.97, True)):
        calm = RecomputeFallback([model], setting)
        calm.look(share, bool)
        assert calm.setting == setting


@pytest.mark.slow
def test_a_run_says_what_auto_chose_and_steps_back_by_its_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("flow_factory.training.peak_memory.PeakMemory.share_of_card", lambda self: 0.95)
    run = tiny(tmp_path, f"{KEY}=auto", "train.max_epochs=2")
    assert f"note: {KEY}: auto takes false for this machine: 0 of 4 blocks are recomputed" in capsys.readouterr().err
    assert "memory   0 of 4 blocks are recomputed in the backward pass (auto)" in aligned(banner(run))
    run()
    assert run.recompute_fallback is not None and run.recompute_fallback.setting == {"fraction": 0.25}
    assert f"{KEY.partition('.')[2]}: auto" in (run.folder / "config.yaml").read_text()
