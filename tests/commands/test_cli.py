"""`ff-train` as its user meets it: what it prints, what it returns, and where it finds its processes."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flow_factory.cli import listen, main
from flow_factory.config import ConfigError, load_config
from flow_factory.config.engine import LAUNCH_FILES, found
from flow_factory.utils.signals import Listener, Stopped
from tests.tiny.leftovers import restored
from tests.tiny.patience import PATIENCE
from tests.tiny.run import ROOT, checkpoint, environment, ff_train, logged, write_run

REWARD = """\
from flow_factory.rewards import PointwiseRewardModel, RewardModelOutput


class Bright(PointwiseRewardModel):
    required_fields = ("image",)

    def __call__(self, image, **others):
        return RewardModelOutput([sum(p.convert("L").tobytes()) / 1e5 for p in image])
"""


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.slow
def test_a_run_from_the_command_line(tmp_path: Path) -> None:
    """With a reward of the user's own, from a file in the current directory."""
    write_run(tmp_path)
    (tmp_path / "mine.py").write_text(REWARD)
    done = ff_train("tiny.yaml", "rewards.reward_model=mine.Bright", "train.max_epochs=1", "run_name=first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "# first: 1 epoch of grpo" in done.stdout
    lines = logged(tmp_path / "save" / "first")
    assert [line["step"] for line in lines] == [0, 1, 1]
    assert len({line["eval/reward_size_mean"] for line in lines[::2]}) == 2, "the reward is the user's, which the update moves"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_sigterm_stops_a_run_with_its_own_code(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = ff_train("tiny.yaml", cwd=tmp_path, killed="flow_factory.models.base:ModelAdapter.sample 6 SIGTERM")
    assert done.returncode == 130, done.stderr
    command = f"ff-train {tmp_path}/save/run/config.yaml model.resume_path={tmp_path}/save/run"
    assert f"SIGTERM: stopped before epoch 2; resume with: {command}\n" in done.stderr
    assert (tmp_path / "save/run/checkpoints/epoch_1/state/progress.json").is_file()


AT_IMPORT = """
import os, signal, sys
from flow_factory import {module}

class AtImport:
    def find_spec(self, name, *_):
        if name == "{imported}":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, AtImport())
{start}
"""
OF_TORCH = AT_IMPORT.format(module="cli", imported="torch", start='raise SystemExit(cli.main(["tiny.yaml"]))')
OF_THE_PROGRAM = AT_IMPORT.format(module="command", imported="flow_factory.cli", start="command.run()")


@pytest.mark.parametrize("where", ["import", pytest.param("loading", marks=pytest.mark.slow)])
def test_sigterm_before_the_run_is_a_line_and_leaves_nothing(tmp_path: Path, where: str) -> None:
    write_run(tmp_path)
    killed = "flow_factory.train:load_rewards 1 SIGTERM"
    done = python(OF_TORCH, tmp_path) if where == "import" else ff_train("tiny.yaml", cwd=tmp_path, killed=killed)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "SIGTERM: stopped at once; what is in the run's folder stays as it is"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize(
    ("written", "overrides", "message"),
    [
        ("train:\n  lerning_rate: 1.0e-4\n", (), "bad.yaml:2: train.lerning_rate: unknown key. Did you mean 'learning_rate'?"),
        ("train:\n  group_size: 4\n", ("train.per_device_batch_size=3",), "bad.yaml:2: train.group_size: 4 must be a multiple of"),
        ("train: {\n", (), "bad.yaml:3: not valid YAML"),
    ],
)
def test_a_bad_config_is_a_line_and_a_word_and_loads_no_torch(
    tmp_path: Path, written: str, overrides: tuple[str, ...], message: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(written + "model: {model_type: flux1, model_name_or_path: x}\nrewards: {reward_model: shapes}\n")
    argv = ["bad.yaml", *overrides, "--check"]
    done = python(f"import sys; from flow_factory.cli import main; code = main({argv}); print(code, 'torch' in sys.modules)", tmp_path)
    assert done.stdout == "2 False\n", done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_arguments_and_a_missing_file_are_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: ff-train" in capsys.readouterr().out
    (tmp_path / "quick.yaml").touch()
    assert main([str(tmp_path / "quik.yaml")]) == 2
    assert f"there is no such file. Did you mean '{tmp_path / 'quick.yaml'}'?" in capsys.readouterr().err


def test_an_error_of_the_data_set_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_run(tmp_path)
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "a cat"}\n')
    assert main([str(file)]) == 2
    assert f"error: {tmp_path}/data/train.jsonl:1: no 'prompt' among the columns text" in capsys.readouterr().err


def test_a_command_in_the_tests_process_leaves_nothing_to_the_next_test(tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        return dict(os.environ), logging.raiseExceptions, [list(handler.filters) for handler in logging.getLogger().handlers]

    before = state()
    with restored():
        assert main([str(write_run(tmp_path)), "data.datasets=nowhere"]) == 2
        assert state() != before
    assert state() == before


def test_help_fits_and_names_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = python("import sys; from flow_factory.cli import main; main(['--help'])", tmp_path)
    assert done.returncode == 0
    for word in (
        "--check",
        "--test-run",
        "--print-config",
        "--help-config",
        "--num_processes",
        "--main_process_ip",
        "--max_restarts",
        "section.key=value",
        "examples:",
    ):
        assert word in done.stdout
    assert main(["--help-config", "train"]) == 0
    table = capsys.readouterr().out
    assert table.startswith("train: with any trainer_type: grpo, ")
    assert "learning_rate" in table
    assert main(["--help-config", "trian"]) == 2
    assert "no section or algorithm 'trian'. Did you mean 'train'?" in capsys.readouterr().err


def test_the_printed_config_is_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_run(tmp_path)
    assert main([str(file), "train.learning_rate=1e-4", "--print-config", "eval.guidance_scale=2.0"]) == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert load_config(again) == load_config(file, ["train.learning_rate=1e-4", "eval.guidance_scale=2.0"]) != load_config(file)


def test_check_tells_the_plan_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_run(tmp_path)
    assert main(["--check", str(file), "train.group_size=8"]) == 0
    said = capsys.readouterr().out
    for line in (
        f"{tmp_path}/data: 6 training rows, 4 test rows", "training: size = 1 x jpeg_compressibility", "on disk, 0.00",
        "samples an epoch: 16 = 2 groups of 8", "trained steps: 1 of [0, 1]", "run: 2 epochs, 4 optimiser steps", "GB  at the peak",
    ):  # fmt: skip
        assert line in said
    assert not (tmp_path / "save").exists(), "a check leaves nothing behind"


@pytest.mark.slow
def test_check_of_a_hub_name_needs_no_network(tmp_path: Path) -> None:
    write_run(tmp_path)
    overrides = ["model.model_name_or_path=black-forest-labs/FLUX.1-dev", "train.resolution=512", "train.max_sequence_length=512"]
    done = ff_train("--check", "tiny.yaml", *overrides, "mixed_precision=bf16", cwd=tmp_path, HF_HOME=str(tmp_path / "hub"))
    assert done.returncode == 0, done.stderr
    assert "FLUX.1-dev: not on this machine; from the hub it would be downloaded (about 34 GB in 16 bits)" in done.stdout
    assert "23.80 GB  frozen weights" in done.stdout


def test_check_finds_what_would_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_run(tmp_path)
    for override, message in (
        (f"model.model_name_or_path={tmp_path}/data", "does not load as FluxPipeline: Error no file named model_index.json"),
        ("model.model_name_or_path=/nowhere", "'/nowhere' is neither a folder nor a hub name such as"),
        ("rewards.reward_model=nothing.Here", "no module 'nothing'"),
        ("model.target_modules=attn.to_w", "'attn.to_w' fits no linear layer"),
        (f"data.dataset_dir={tmp_path}/nowhere", "no data set folder"),
        ("rewards.reward_model=shapes", "reward 'size' needs the column"),
    ):
        assert main(["--check", str(file), override]) == 2
        assert message in capsys.readouterr().err


def test_the_launchers_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is written, or ours of that name: public configs name folders that differ, and an installed program has no examples."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").touch()
    assert found("own.yaml") == Path("own.yaml")
    assert found("config/deepspeed/deepspeed_zero2.yaml") == LAUNCH_FILES / "deepspeed_zero2.yaml"
    with pytest.raises(ConfigError, match=f"config_file: there is no {tmp_path}/config/zero9.yaml"):
        found("config/zero9.yaml")
    assert sorted(LAUNCH_FILES.iterdir()) == sorted((ROOT / "examples" / "launch").resolve().iterdir())


def test_a_path_that_is_right_from_another_folder_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, here = write_run(tmp_path), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (tmp_path / "engine.yaml").write_text("distributed_type: NO\n")
    capsys.readouterr()  # of writing the checkpoint
    assert main([str(file), "data.dataset_dir=data", "--check"]) == 2
    said = capsys.readouterr().err
    assert (
        said
        == f"error: data.dataset_dir: there is no data in {here}, and there is one in {tmp_path}: start there, or write {tmp_path}/data\n"
    )
    (tmp_path / "base").symlink_to(checkpoint())
    assert main([str(file), "model.model_name_or_path=base", "--check"]) == 2
    assert capsys.readouterr().err.endswith(f"start there, or write {tmp_path}/base\n")
    assert main([str(file), "config_file=engine.yaml"]) == 2
    assert f"start there, or write {tmp_path}/engine.yaml" in capsys.readouterr().err
    assert main([str(file), "data.dataset_dir=data", "--print-config"]) == 0


def test_a_config_file_that_is_not_there_is_said_before_anything_starts(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = ff_train("tiny.yaml", "--num_processes", "2", "config_file=gone.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert f"config_file: there is no {tmp_path}/gone.yaml" in done.stderr
    assert not (tmp_path / "save").exists()


def test_sigterm_before_the_program_is_imported_is_a_line(tmp_path: Path) -> None:
    done = python(OF_THE_PROGRAM, tmp_path)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "SIGTERM: stopped at once; what is in the run's folder stays as it is\n"


def test_a_signal_that_comes_while_an_error_is_told_makes_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The launcher sends one to those that are left when a process has died."""
    closed: list[int] = []

    class Signalled(Listener):
        def close(self) -> None:  # type: ignore[override]
            closed.append(len(closed))
            if len(closed) == 1:
                raise Stopped("SIGTERM")

    assert listen(Signalled(), [str(tmp_path / "no_such.yaml")]) == 2
    assert "no_such.yaml" in capsys.readouterr().err and closed == [0, 1]
