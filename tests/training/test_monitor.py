"""`monitor:`: what is out of bounds, what follows, that a run that goes on decides the same, and that processes do the same."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
import yaml

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.checkpoints.state_files import contents
from flow_factory.config import RunConfig, load_config
from flow_factory.distributed.topology import Topology
from flow_factory.reporting.alarms import read_alarms
from flow_factory.runs.ended import has_ended
from flow_factory.runs.resume import Finished, find_start
from flow_factory.training.monitor import OWN, Monitor
from flow_factory.training.run import Run
from flow_factory.training.summary import summarise
from tests.tiny.run import ROOT, logged, read_state, tiny, write_run
from tests.tiny.several import assert_same_run, several

BRIGHT = "tests.tiny.rewards.Bright"
EVAL = [{"reward_model": "jpeg_compressibility", "name": "size"}, {"reward_model": BRIGHT, "name": "held"}]


def config_of(folder: Path, *watches: dict, **log: object) -> RunConfig:
    file = write_run(folder)
    tree = yaml.safe_load(file.read_text())
    tree |= {"monitor": list(watches), "eval_rewards": EVAL}
    tree["log"] |= log
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_config(file, ["train.max_epochs=20"])


def acts(monitor: Monitor, memory: dict, metric: str, values: list[float]) -> list[list[str]]:
    phase = metric.partition("/")[0]
    return [[alarm.do for alarm in monitor.look(memory, {metric: value}, phase, epoch)] for epoch, value in enumerate(values, 1)]


SHARE = "train/zero_variance_share"
CASES = [
    ({"above": 0.5}, [0.4, 0.6, 0.7, 0.4, 0.6], [0, 1, 0, 0, 1]),
    ({"below": 0.5}, [0.6, 0.5, 0.4], [0, 0, 1]),
    ({"above": 0.5, "patience": 2}, [0.6, 0.4, 0.6, 0.6, 0.6], [0, 0, 0, 1, 0]),
    ({"falls": 0.15}, [0.5, 0.6, 0.5, 0.4], [0, 0, 0, 1]),
    ({"falls": "50%"}, [0.6, 0.31, 0.29], [0, 0, 1]),
    ({"rises": "50%"}, [0.6, 0.4, 0.59, 0.61], [0, 0, 0, 1]),
    ({"above": 0.5, "from_epoch": 3}, [0.6, 0.6, 0.6], [0, 0, 1]),
    ({"above": 0.5}, [float("nan"), 0.6], [0, 1]),
    ({"above": 0.5, "do": "lower_lr", "times": 2}, [0.6, 0.6, 0.6], [1, 1, 2]),
    ({"above": 0.5, "do": "lower_lr", "patience": 2}, [0.6, 0.6, 0.6, 0.6], [0, 1, 0, 1]),
    ({"above": 0.5, "do": "stop"}, [0.4, 0.6], [0, 2]),
]


@pytest.mark.parametrize(("watch", "values", "wanted"), CASES)
def test_a_watch_acts_when_its_metric_is_out_of_bounds(tmp_path: Path, watch: dict, values: list[float], wanted: list[int]) -> None:
    """0: nothing; 1: what it is for; 2: the run stops."""
    monitor, memory = Monitor(config_of(tmp_path, {"metric": SHARE, **watch})), {}
    did = acts(monitor, memory, SHARE, values)
    assert did == [[] if k == 0 else ["stop" if k == 2 else watch.get("do", "warn")] for k in wanted]
    assert monitor.stopped(memory) == (2 in wanted)
    cut, again = len(values) // 2, {}
    first = acts(monitor, again, SHARE, values[:cut])
    again = json.loads(json.dumps(again))
    rest = [monitor.look(again, {SHARE: v}, "train", epoch) for epoch, v in enumerate(values[cut:], cut + 1)]
    assert first + [[alarm.do for alarm in alarms] for alarms in rest] == did and again == memory


def test_a_held_out_reward_that_falls_is_said_beside_what_was_trained(tmp_path: Path) -> None:
    monitor, memory = Monitor(config_of(tmp_path, {"metric": "eval/reward_held_mean", "falls": "10%"})), {}
    for epoch, (trained, held) in enumerate([(0.1, 0.5), (0.4, 0.6), (0.9, 0.2)]):
        monitor.look(memory, {"train/reward_mean": trained}, "train", epoch)
        alarms = monitor.look(memory, {"eval/reward_held_mean": held}, "eval", epoch)
    line, advice = alarms[0].line, alarms[0].advice
    assert "eval/reward_held_mean is 0.2, 0.4 below its highest, 0.6 after epoch 1" in line
    assert "train/reward_mean rose from 0.1 to 0.9" in line and "exploits the trained rewards" in line and "train.kl_beta" in advice


def test_a_run_lowers_its_rate_and_ends_where_it_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config_of(tmp_path, {"metric": "train/loss", "above": -9.0, "do": "lower_lr", "times": 2}, {"metric": "train/nothing", "above": 1})
    with caplog.at_level(logging.WARNING):
        summary = tiny(tmp_path, "train.max_epochs=9", "eval.eval_freq=0")()
    lines = logged(tmp_path / "save" / "run")
    assert [line["train/learning_rate"] for line in lines] == [1e-3, 5e-4, 2.5e-4], "and the third alarm ended it"
    assert [line["monitor/lr_factor"] for line in lines] == [0.5, 0.25, 0.25]
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("monitor: ")]
    assert len([line for line in said if "train/nothing is not logged in this run" in line]) == 1
    assert "the learning rate is now 0.5 times that of train:; to do:" in said[1] and "the run ends here" in said[-1]
    assert "after epoch 3 train/loss is" in summary and "the run ends here" in summary
    assert (tmp_path / "save" / "run" / "checkpoints" / "epoch_3").is_dir()


@pytest.mark.parametrize("metric", [pytest.param("train/loss", marks=pytest.mark.exhaustive), "eval/reward_held_mean"])
def test_a_run_that_its_monitor_ended_is_over_for_who_starts_it_again(tmp_path: Path, metric: str) -> None:
    """For a launcher, which reads no checkpoint, and for the run itself; not once the watch is another one."""
    keys = (*KEYS[:2], "model.resume_path=auto", "train.unique_sample_num_per_epoch=2")
    config_of(tmp_path, {"metric": metric, "above": -9.0, "do": "stop", "from_epoch": 1})
    run, several = tmp_path / "save" / "run", Topology(2, 2, 0, "127.0.0.1", 29500, False)
    tiny(tmp_path, *keys, "train.max_epochs=3")()
    assert [c.name for c in (run / "checkpoints").iterdir()] == ["epoch_1"]
    config = load_config(tmp_path / "tiny.yaml", [*keys, "train.max_epochs=3"])
    assert has_ended(config, several)
    with pytest.raises(
        Finished, match="epoch_1 has 1 epoch, and a watch of monitor ended it: nothing is left to do; change its metric, bound or do"
    ):
        find_start(config)
    for key in ("patience=2", "times=5", "from_epoch=2", "lr_factor=0.9"):
        assert has_ended(load_config(tmp_path / "tiny.yaml", [*keys, "train.max_epochs=3", f"monitor.0.{key}"]), several), "the same watch"
    other = load_config(tmp_path / "tiny.yaml", [*keys, "train.max_epochs=3", "monitor.0.above=9"])
    assert not has_ended(other, several) and find_start(other).saved is not None
    assert read_alarms(run)[0]["did"] == "the run ends here"
    (run / "monitor.jsonl").write_text("{}\n")
    with pytest.raises(CheckpointError, match="monitor.jsonl is damaged: ValueError: .*monitor.jsonl:1: no alarm of a step"):
        has_ended(config, several)
    (run / "monitor.jsonl").unlink()
    (run / "summary.md").unlink()  # it was killed before its end
    assert not has_ended(config, several) and find_start(config).saved is not None


KEYS = ("log.save_freq=1", "log.save_model_only=false", "train.max_epochs=5", "train.unique_sample_num_per_epoch=4")
ALWAYS = {"above": -9.0, "times": 9}
WATCHES = (
    {"metric": "train/loss", **ALWAYS, "do": "lower_lr", "patience": 2, "lr_factor": 0.9},
    {"metric": "eval/reward_held_mean", **ALWAYS, "do": "lower_lr", "lr_factor": 0.8},
    {"metric": "eval/reward_held_mean", **ALWAYS, "do": "back", "patience": 2},
)
BEST = "eval/reward_held_mean"


@pytest.mark.slow
def test_a_run_goes_back_to_its_best_checkpoint(tmp_path: Path) -> None:
    """And counts on: an evaluation after it is that of the best, to the bit, and the epochs that follow draw new noise."""
    config_of(tmp_path, {"metric": BEST, **ALWAYS, "do": "back", "from_epoch": 2}, keep_best=BEST, keep_last_n=1)
    run = tiny(tmp_path, *KEYS, "train.max_epochs=3")
    summary, folder = run(), tmp_path / "save" / "run"
    lines = logged(folder)
    held = {line["step"]: line[BEST] for line in lines if BEST in line}
    back = {line["step"]: line["monitor/back_to"] for line in lines if "monitor/back_to" in line}
    assert back == {2: max((0, 1, 2), key=lambda step: held[step])}, "after the last epoch nothing is done"
    rates = [line["train/learning_rate"] for line in lines if "train/learning_rate" in line]
    assert rates == [1e-3, 1e-3, 5e-4] and (run.context.progress.epoch, run.context.progress.updates) == (3, 6)
    best = max(held, key=lambda step: held[step])
    assert {c.name for c in (folder / "checkpoints").iterdir()} == {f"epoch_{back[2]:.0f}", "epoch_3"}, "keep_last_n: 1, and the best"
    assert f"best by log.keep_best ({BEST}): {held[best]:.4g} after epoch {best}" in summary
    other = folder / "checkpoints" / f"epoch_{back[2]:.0f}"
    run.context.progress.memory[f"{OWN}best {BEST}"] = [held[back[2]], back[2]]
    summary = summarise(run)
    assert re.search(rf"- best weights: +{other}\n- last weights: +{folder}/checkpoints/epoch_3\n", summary)
    assert f"ff-eval {other} --base" in summary and f"model.resume_path={other} " in summary


def test_going_back_takes_weights_copies_and_moments(tmp_path: Path) -> None:
    config_of(tmp_path, {"metric": "train/loss", **ALWAYS, "do": "back"}, keep_best="eval/loss")
    run = tiny(tmp_path, *KEYS)
    checkpoints = tmp_path / "save" / "run" / "checkpoints"
    for loss in (3.0, 1.0, 2.0):
        run.interventions({"eval/loss": loss}, "eval")
        run.trainer.epoch()
    assert run.interventions({"train/loss": 0.0}, "train")["monitor/back_to"] == 1
    run.save(state=True), run.saver.wait()
    best, after = read_state(checkpoints / "epoch_1"), read_state(checkpoints / "epoch_3")
    assert best.keys() == after.keys() and all(torch.equal(best[k], after[k]) for k in best)
    assert any(k.startswith("optimizer/") for k in best) and any(k.startswith("weights/ema/") for k in best)


def gone_back(run: Run) -> dict[str, float]:
    """Drives a run on one of several processes to its third epoch, and back to its first; then an epoch more."""
    for loss in (3.0, 1.0, 2.0):
        run.interventions({"eval/loss": loss}, "eval")
        run.trainer.epoch()
    back = run.interventions({"train/loss": 0.0}, "train")["monitor/back_to"]
    run.save(state=True), run.saver.wait()
    run.trainer.epoch()
    run.save(state=True), run.saver.wait()
    return {"back_to": back, "rate": run.context.schedule.get_last_lr()[0]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", ["fsdp2", *(pytest.param(e, marks=pytest.mark.exhaustive) for e in ("deepspeed_zero2", "deepspeed_zero3"))]
)
def test_processes_that_share_the_weights_go_back_together(tmp_path: Path, engine: str) -> None:
    """The state that is saved then is the best one's, to the bit, on every engine; and the run learns on from it."""
    config_of(tmp_path, {"metric": "train/loss", **ALWAYS, "do": "back"}, keep_best="eval/loss")
    said = several(tmp_path, 2, {"run": [*KEYS, f"config_file={ROOT}/examples/launch/{engine}.yaml"]}, do=gone_back)["run"]
    assert said == [{"back_to": 1.0, "rate": 5e-4}] * 2
    best, after, on = (read_state(tmp_path / "save" / "run" / "checkpoints" / f"epoch_{k}") for k in (1, 3, 4))
    assert best.keys() == after.keys() and all(torch.equal(best[k], after[k]) for k in best)
    assert any(k.startswith("optimizer/") for k in best) and not all(torch.equal(best[k], on[k]) for k in best)


@pytest.mark.exhaustive
def test_a_run_without_a_best_checkpoint_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config_of(tmp_path, {"metric": "train/loss", **ALWAYS, "do": "back"}, keep_best="eval/loss")
    with caplog.at_level(logging.WARNING):
        tiny(tmp_path, *KEYS)()
    assert (tmp_path / "save" / "run" / "checkpoints" / "epoch_1").is_dir()
    assert "there is no best checkpoint with a training state to go back to, so the run ends here" in caplog.text
    assert "monitor: eval/loss is not logged in this run" in caplog.text


@pytest.mark.exhaustive
@pytest.mark.parametrize("folder", ["run", "another"])
def test_a_run_goes_on_with_what_its_monitor_remembers(tmp_path: Path, folder: str) -> None:
    """The verdicts on the evaluation after epoch 3 came after the state of epoch 3 was saved."""
    config_of(tmp_path, *WATCHES, keep_best=BEST)
    tiny(tmp_path, *KEYS)()
    run = tmp_path / "save" / "run"
    last = run / "checkpoints" / "epoch_5"
    straight, lines, memory = read_state(last), logged(run), contents(last)[1].memory
    tiny(tmp_path, *KEYS, f"model.resume_path={run}/checkpoints/epoch_3", f"log.run_name={folder}")()
    end = tmp_path / "save" / folder / "checkpoints" / "epoch_5"
    resumed = read_state(end)
    assert straight.keys() == resumed.keys() and all(torch.equal(straight[k], resumed[k]) for k in straight)
    assert contents(end)[1].memory == memory and any(key.startswith(OWN) for key in memory)
    assert logged(end.parents[1]) == (lines if folder == "run" else [line for line in lines if line["step"] > 3])
    assert {line["step"] for line in lines if "monitor/back_to" in line} == {1, 3}


@pytest.mark.exhaustive
def test_processes_do_what_one_does(tmp_path: Path) -> None:
    engines = {"ddp": (), "fsdp2": ("config_file=examples/launch/fsdp2.yaml",)}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        config_of(folder, *WATCHES, keep_best=BEST)
        several(folder, processes, {name: [*KEYS, *own] for name, own in engines.items() if processes > 1 or not own})
    for name in engines:
        assert_same_run(tmp_path / "2" / "save" / name, tmp_path / "1" / "save" / "ddp", exact=name == "ddp")
