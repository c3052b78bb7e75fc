"""Groups are trained on while the rewards of later ones are still asked: the same result, to the bit, and nothing is saved half-way."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from flow_factory.config import load_config
from flow_factory.train import build
from flow_factory.training.run import Run
from flow_factory.utils.errors import RewardError, UserError
from flow_factory.utils.signals import Interrupted
from tests.tiny.reward_server import entry as served
from tests.tiny.reward_server import service
from tests.tiny.run import ROOT, logged, tiny, trained, write_run
from tests.tiny.side_by_side import side_by_side
from tests.tiny.two_datasets import REWARDS, write_two
from tests.training.overlapping import KEYS, OVERLAP, Light, entries, opens_after, prepared


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Light, "gate", threading.Event())
    monkeypatch.setattr(Light, "after", 0)
    monkeypatch.setattr(Light, "calls", 0)
    monkeypatch.setattr(Light, "fails", False)


SETS: dict[str, tuple[str, ...]] = {
    "grpo": ("train.kl_beta=0.1",),
    "grpo-guard": (),
    "nft": ("train.num_train_timesteps=2",),
    "awm": ("train.num_train_timesteps=2",),
    "dgpo": ("train.num_train_timesteps=2",),
    "crd": ("train.num_train_timesteps=2", "train.kl_cfg=1.0"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SETS)
def test_groups_are_trained_on_in_time_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The last of four groups is scored when two were trained on."""
    keys = (f"train.trainer_type={name}", *SETS[name], "train.max_epochs=1")
    write_run(tmp_path)
    whole = prepared(tmp_path, "whole", *keys, rewards=entries("Light", "Order", transform="{rank: true}"))
    whole()
    overlap = prepared(tmp_path, "overlap", *keys, OVERLAP, rewards=entries("Light", "Order", transform="{rank: true}"))
    monkeypatch.setattr(Light, "after", 1)
    monkeypatch.setattr(Light, "calls", 0)
    opens_after(overlap, 2, monkeypatch)
    overlap()
    assert logged(tmp_path / "save" / "whole") == logged(tmp_path / "save" / "overlap")
    assert all(torch.equal(trained(whole)[key], p) for key, p in trained(overlap).items())
    assert [(s.prompt, s.rewards) for s in whole.trainer.shown] == [(s.prompt, s.rewards) for s in overlap.trainer.shown]


@pytest.mark.exhaustive
def test_rewards_of_data_sets_of_their_own_come_in_time_too(tmp_path: Path) -> None:
    """Whose calls of three samples do not end where a group does."""
    write_two(tmp_path, rewards=[reward | {"async_reward": True} for reward in REWARDS])
    runs = []
    for name, more in {"whole": (), "overlap": (OVERLAP,)}.items():
        keys = [key for key in KEYS if not key.startswith("train.unique")]
        run = tiny(tmp_path, *keys, "train.unique_sample_num_per_epoch=6", "train.gradient_step_per_epoch=6", f"run_name={name}", *more)
        runs.append({"metrics": run.trainer.epoch(), "weights": trained(run)})
    whole, overlap = runs
    timed = ("time/", "perf/", "train/seconds")
    assert all(overlap["metrics"][k] == v for k, v in whole["metrics"].items() if not k.startswith(timed))
    assert all(torch.equal(whole["weights"][key], p) for key, p in overlap["weights"].items())


@pytest.mark.exhaustive
def test_a_reward_that_fails_after_a_step_saves_no_state_of_half_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = prepared(tmp_path, "run", OVERLAP, "log.save_freq=0")
    monkeypatch.setattr(Light, "after", 1)
    opens_after(run, 5, monkeypatch, lambda: setattr(Light, "fails", True))
    Light.gate.set()  # in the first epoch
    ends = run.report
    monkeypatch.setattr(run, "report", lambda metrics: (Light.gate.clear(), ends(metrics)))
    with pytest.raises(RewardError, match="reward 'light' failed on 4 samples .* the server is gone"):
        run()
    assert not (run.folder / "checkpoints").exists() and "some groups of this epoch were trained on already" in caplog.text


@pytest.mark.exhaustive
def test_a_signal_after_a_step_is_heard_when_the_epoch_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one before it at once; then the run goes on as the unbroken one."""
    whole = prepared(tmp_path, "whole")
    whole()
    for updates in (1, 4):  # in the middle of the first epoch, and before any of the second
        run = prepared(tmp_path, f"cut_{updates}", OVERLAP)
        monkeypatch.setattr(Light, "after", 1)
        monkeypatch.setattr(Light, "calls", 0)
        monkeypatch.setattr(Light, "gate", threading.Event())
        if updates == 1:
            opens_after(run, 1, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        else:
            Light.gate.set()
            look = run.trainer.learner.compute_kept_velocities

            def stop(*args: Any, run: Run = run, look: Any = look) -> None:
                if run.context.progress.epoch == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                look(*args)

            monkeypatch.setattr(run.trainer.learner, "compute_kept_velocities", stop)

        with pytest.raises(Interrupted, match="SIGTERM"):
            run()
        assert run.context.progress.epoch == 1
        Light.gate.set()
        again = prepared(tmp_path, f"cut_{updates}", OVERLAP, "model.resume_path=auto")
        again()
        assert logged(again.folder) == logged(whole.folder)
        assert all(torch.equal(trained(whole)[key], p) for key, p in trained(again).items())


@pytest.mark.exhaustive
def test_several_rewards_on_servers_come_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At two addresses, a groupwise one among them: what is learnt and logged is what it is with the same rewards here and in line."""
    write_run(tmp_path)
    here = prepared(tmp_path, "here", rewards=entries("Light", "Dark", "Order").replace("async_reward: true", "async_reward: false"))
    here()
    monkeypatch.setattr(Light, "calls", 0)
    monkeypatch.setattr(Light, "after", 1)
    one, two = ([served(f"{Light.__module__}:{c}", c.lower()) for c in names] for names in (("Light", "Order"), ("Dark",)))
    with service(*one) as (first, _), service(*two) as (second, _):
        kinds = {"light": ("remote", first), "dark": ("remote", second), "order": ("remote_group", first)}
        listed = ", ".join(
            f"{{reward_model: {kind}, name: {name}, reward: {name}, server_url: '{url}', async_reward: true, batch_size: 4, "
            f"num_workers: {1 + (name == 'dark')}, max_concurrent: 1, on_failure: stop, columns: []}}"
            for name, (kind, url) in kinds.items()
        )
        there = prepared(tmp_path, "there", OVERLAP, rewards=f"rewards=[{listed}]")
        opens_after(there, 2, monkeypatch)
        there()
    assert logged(tmp_path / "save" / "here") == logged(tmp_path / "save" / "there")
    assert all(torch.equal(trained(here)[key], p) for key, p in trained(there).items())


def _run(rank: int, processes: int, engine: str) -> None:
    found: dict[str, Any] = {}
    for name, more in {"whole": (), "overlap": (OVERLAP,), "fails": (OVERLAP, "rewards.0.fails=true")}.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        several = [f"num_processes={processes}", f"config_file={ROOT}/examples/launch/{engine}.yaml"]
        keys = [*KEYS, "train.gradient_step_per_epoch=2", entries("Lags"), f"run_name={name}", *several, *more]
        run = build(load_config("tiny.yaml", keys))
        try:
            run()
            found[name] = {key: run.context.engine.whole(p).double().sum().item() for key, p in run.context.policy.trained().items()}
            found["engine"] = type(run.context.engine).__name__
        except UserError as error:
            found[name] = str(error)
    Path(f"said.{rank}.json").write_text(json.dumps(found))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("engine", "name"), [("multi_gpu", "Engine"), ("fsdp2", "FullyShard")])
def test_processes_wait_for_each_others_scores_and_fail_together(tmp_path: Path, engine: str, name: str) -> None:
    write_run(tmp_path)
    side_by_side(2, tmp_path, _run, 2, engine)
    said = [json.loads((tmp_path / f"said.{rank}.json").read_text()) for rank in range(2)]
    assert all(one["whole"] == one["overlap"] for one in said) and any("the server is gone" in one["fails"] for one in said)
    assert [one["engine"] for one in said] == [name] * 2
    assert logged(tmp_path / "save" / "whole") == logged(tmp_path / "save" / "overlap")
