"""`flow_factory.train`: a run from Python."""

import gc
import importlib
import inspect
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import flow_factory
from flow_factory.commands import evaluate, generate
from flow_factory.commands.training import TrainResult, entries_of
from flow_factory.config import load_config
from flow_factory.config.source import assignment
from flow_factory.rewards import REWARDS
from flow_factory.training.run import Run
from flow_factory.training.trainer import Trainer
from flow_factory.utils.errors import RewardError, RunError, UserError
from tests.tiny.rewards import Bright
from tests.tiny.run import environment, logged, tiny, write_run


def bright(images: Sequence[Any], prompts: Sequence[str], scale: float = 1.0) -> list[float]:
    return [scale * float(np.asarray(image).mean()) for image in images]


def tree(folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(write_run(folder).read_text()))


def test_the_package_has_a_function_whatever_was_imported() -> None:
    """`import flow_factory.train`, which the public project has, gives the name to the module."""
    module = importlib.import_module("flow_factory.train")
    assert callable(flow_factory.train) and module.build
    assert list(inspect.signature(flow_factory.train).parameters) == ["config", "overrides", "rewards", "eval_rewards", "keys"]
    with pytest.raises(UserError, match="absent.yaml"):
        flow_factory.train("absent.yaml")
    with pytest.raises(UserError, match="absent.yaml"):
        module("absent.yaml")
    assert flow_factory.RunError is RunError and flow_factory.UserError is UserError


@pytest.mark.parametrize(("given", "keys", "line"), [
    ({}, {}, "model.model_name_or_path"),
    ({"train": {"learning_rate": "fast"}}, {}, "config: train.learning_rate: "),
    ({"run_name": object()}, {}, "config: a value of the type object, where a config has text"),
    ({"run_name": print}, {}, "config: a function, where a config has text"),
    ({}, {"overrides": {"train.call": {1, 2}}}, "override 'train.call': a value of the type set|a config has no values of the kind"),
    ("tiny.yaml", {"overrides": {"train.learning_rat": 1}}, "train.learning_rat: unknown key. Did you mean 'learning_rate'"),
    ("tiny.yaml", {"train": {"learning_rat": 1}}, "train.learning_rat: unknown key. Did you mean 'learning_rate'"),
    ({}, {"rewards": [3]}, "rewards: 3 is not a reward; give a name such as PickScore, an entry with reward_model, or a function"),
    ({}, {"rewards": [lambda images, image: []]}, "model.model_name_or_path"),
    (3, {}, "config: a value of the type int; give the path of a YAML file, a dict, or what load_config returns"),
    ("model:\n  model_type: flux1\n", {}, "^config: text of several lines; give the path of a YAML file, a dict"),
    ("tiny.yaml", {"overrides": ["train.learning_rat=1"]}, "train.learning_rat: unknown key"),
    ("tiny.yaml", {"overrides": "train.max_epochs=1"}, 'overrides: write a dict such as {"train.max_epochs": 2}, or a list such as'),
    ("tiny.yaml", {"num_processes": 2}, "num_processes: 2, and a run from Python is of the process that calls it; write num_processes=1"),
    ("tiny.yaml", {"rewards": [lambda images, image: []]}, "names both 'image' and 'images'"),
])  # fmt: skip
def test_what_is_wrong_is_raised_in_a_line(tmp_path: Path, given: Any, keys: dict[str, Any], line: str) -> None:
    write_run(tmp_path)
    with pytest.raises(UserError, match=line):
        flow_factory.train(given, **keys)
    assert not Path("save").exists()


def test_values_of_python_are_those_of_the_yaml(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    values = {"learning_rate": 1e-4, "resolution": (32, 48), "ema_decay": np.float64(0.5), "max_epochs": np.int64(3)}
    as_dict = tree(tmp_path)
    as_dict["data"]["dataset_dir"] = Path(as_dict["data"]["dataset_dir"])
    as_dict["train"] |= values
    texts = [assignment(f"train.{key}", value) for key, value in values.items()]
    config = load_config(as_dict)
    assert config == load_config(file, texts) == load_config(file, {f"train.{key}": value for key, value in values.items()})
    assert config.train.learning_rate == 1e-4 and config.train.width == 48
    assert load_config(file, [assignment("run_name", text) for text in ("1e5", "no", "a: b, [c]")][-1:]).log.run_name == "a: b, [c]"


@pytest.mark.parametrize(("changed", "line"), [
    (torch.no_grad, "torch computes no gradients here; train outside of no_grad and inference_mode"),
    (torch.inference_mode, "torch computes no gradients here"),
    (partial(torch.device, "meta"), r"torch's new tensors are torch.float32 on meta by default; train after torch.set_default_dtype\("),
])  # fmt: skip
def test_defaults_of_torch_with_which_nothing_trains_are_refused_before_anything_is_written(
    tmp_path: Path, changed: Callable[[], AbstractContextManager[Any]], line: str
) -> None:
    write_run(tmp_path)
    with changed(), pytest.raises(UserError, match=line):
        flow_factory.train("tiny.yaml")
    assert not Path("save").exists()


@pytest.mark.exhaustive
def test_ipython_shows_an_error_of_the_user_in_a_line(tmp_path: Path) -> None:
    cell = "import flow_factory; flow_factory.train('absent.yaml')"
    words = [sys.executable, "-m", "IPython", "--colors=NoColor", "-c", cell]
    shown = subprocess.run(words, env=environment(IPYTHONDIR=str(tmp_path)), capture_output=True, text=True, timeout=120)
    (line,) = [line for line in (shown.stdout + shown.stderr).splitlines() if "absent" in line]
    assert line.startswith("ConfigError: absent.yaml: ") and "Traceback" not in shown.stdout + shown.stderr


def test_functions_are_rewards_by_a_path_or_by_a_name_of_this_program() -> None:
    def light(images: Any) -> Any: ...

    other = lambda images: []  # noqa: E731
    taken: dict[str, Any] = {}
    entries = entries_of("rewards", [bright, light, other, {"reward_model": light, "weight": 0.5}, "CLIP", Bright], taken)
    assert [entry["reward_model"] for entry in entries] == [
        f"{__name__}:bright", "python:light", "python:reward", "python:light", "CLIP", "tests.tiny.rewards:Bright",
    ]  # fmt: skip
    assert REWARDS["python:light"] is light and REWARDS["python:reward"] is other
    again = entries_of("eval_rewards", {"dark": lambda images: [], "light": light}, taken)
    assert [(entry["name"], entry["reward_model"]) for entry in again] == [("dark", "python:reward_2"), ("light", "python:light")]
    assert entries_of("rewards", bright, {}) == [{"reward_model": f"{__name__}:bright"}]
    with pytest.raises(UserError, match="was passed to flow_factory.train as a function"):
        REWARDS["python:gone"]


def assert_nothing_left(before: set[threading.Thread]) -> None:
    for thread in set(threading.enumerate()) - before:
        if thread.name != "tqdm_monitor":
            thread.join(10)  # one that has been told to end
            assert not thread.is_alive(), thread
    assert not [it for it in gc.get_objects() if type(it) in (Run, Trainer)]


def test_a_run_of_a_loaded_config_leaves_no_thread_and_no_weights(tmp_path: Path) -> None:
    """A notebook goes on after it, and needs the memory."""
    config = load_config(write_run(tmp_path), ["train.max_epochs=1", "eval.eval_freq=0"])
    before = set(threading.enumerate())
    found = flow_factory.train(config, run_name="again")
    assert found.folder.is_absolute() and found.checkpoint == found.folder / "checkpoints" / "epoch_1", "wherever the caller goes"
    again = load_config(found.folder / "config.yaml")
    assert again == config.model_copy(update={"log": config.log.model_copy(update={"run_name": "again"})})
    assert_nothing_left(before)


@pytest.mark.exhaustive
def test_a_run_from_python_is_that_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def light(images: Sequence[Any], prompts: Sequence[str]) -> list[float]:
        return bright(images, prompts)

    command = tiny(tmp_path, "run_name=command", "rewards.reward_model=tests.commands.test_python.bright", "rewards.name=light")
    summary = command()
    told: list[TrainResult] = []
    thread = threading.Thread(target=lambda: told.append(flow_factory.train("tiny.yaml", rewards=light, run_name="file")))
    thread.start()
    thread.join()
    told.append(flow_factory.train(tree(tmp_path), {"log.run_name": "dict"}, rewards={"light": light}, log={"save_model_only": False}))
    for found, name in zip(told, ("file", "dict"), strict=True):
        assert (
            found.folder == tmp_path / "save" / name and found.epochs == 2 and found.checkpoint == found.folder / "checkpoints" / "epoch_2"
        )
        assert logged(found.folder) == logged(command.folder)
        assert found.summary == (found.folder / "summary.md").read_text() and "| reward light" in found.summary
        assert found.after["reward_light_mean"] == logged(command.folder)[-1]["eval/reward_light_mean"]
        low, high = found.intervals["reward_light_mean"]
        assert low <= found.after["reward_light_mean"] - found.before["reward_light_mean"] <= high
        assert found.metrics[-1]["step"] == 2
    assert "| reward light" in summary
    capsys.readouterr()
    REWARDS.given.clear()
    with pytest.raises(UserError, match="the reward 'python:light' was passed to flow_factory.train as a function; pass it again"):
        flow_factory.train(told[0].folder / "config.yaml", run_name="again")
    words = [str(told[0].folder), "--device", "cpu", "--seeds", "0"]
    assert generate.main([*words, "--prompts", "mars"]) == 0, "pictures need no reward"
    assert evaluate.main(words) == 2 and "pass it again" in capsys.readouterr().err
    Path("rewards.yaml").write_text("rewards:\n  reward_model: tests.commands.test_python.bright\n")
    assert evaluate.main([*words, "--config", "rewards.yaml"]) == 0
    again = flow_factory.train("tiny.yaml", run_name="dict", model={"resume_path": "auto"}, log={"save_model_only": False}, rewards=light)
    assert "nothing is left to do" in capsys.readouterr().err and again.after == told[1].after


def test_a_function_that_raises_ends_the_run_with_its_line_and_keeps_its_own_frame_alone(tmp_path: Path) -> None:
    write_run(tmp_path)
    before = set(threading.enumerate())

    def broken(images: Sequence[Any]) -> list[float]:
        seen = len(images)
        raise KeyError("light", seen)

    with pytest.raises(RewardError, match=r"reward 'broken' failed .*KeyError: \('light', 4\) \(.*test_python.py:\d+, in broken\)") as kept:
        flow_factory.train("tiny.yaml", rewards=broken)
    assert_nothing_left(before)
    assert kept.value.__cause__ is not None and [
        frame.f_locals["seen"] for frame, _ in traceback.walk_tb(kept.value.__cause__.__traceback__) if frame.f_code.co_name == "broken"
    ] == [4], "for a debugger"
