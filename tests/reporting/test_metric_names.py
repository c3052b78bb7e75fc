"""The reference of metrics has every metric that a run of any algorithm logs, and the page is what the program prints."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from flow_factory.cli import main
from flow_factory.config import TRAIN_CONFIGS, config_help
from flow_factory.reporting.metric_names import METRICS, explained, metrics_help
from flow_factory.reporting.metrics import read_metrics
from tests.data.test_given import offline, write_pairs
from tests.tiny.run import ROOT, tiny
from tests.training.test_distillation import distilled, write_teaching
from tests.training.test_sft import sft, write_targets

TWO = "{a: {reward_model: jpeg_compressibility}, b: {reward_model: jpeg_incompressibility}}"
KEYS: dict[str, list[str]] = {
    "grpo": [
        "train.kl_beta=0.1",
        "train.step_weight=noise",
        "train.drop_zero_variance=true",
        "eval.max_rows=2",
        "eval.full_at_end=true",
        "log.keep_best=eval/reward_mean",
        "monitor=[{metric: train/loss, above: -99, do: back}]",
        "rewards.transform={rank: true}",
        f"eval_rewards={TWO}",
    ],
    "grpo-guard": [
        "train.kl_beta=0.1",
        "train.kl_gate_share=0.1",
        "train.kl_reset_epochs=1",
        "rewards=[{reward_model: jpeg_compressibility}, {reward_model: jpeg_incompressibility, weight: 0}]",
    ],
    "nft": ["train.kl_beta=0.1"],
    "awm": ["train.kl_beta=0.1", "train.ema_kl_beta=0.1", "train.off_policy=true"],
    "draft": ["rewards.reward_model=tests.tiny.rewards.Warm", "train.gradient_step_per_epoch=1"],
    "dgpo": ["train.kl_beta=0.1", "train.per_device_batch_size=4"],
    **dict.fromkeys(("dmd2", "tdm"), ["rewards=null", "eval_rewards.reward_model=jpeg_compressibility"]),
}
"""What makes an algorithm log the most."""


@pytest.mark.slow
def test_every_metric_of_every_algorithms_run_is_in_it(tmp_path: Path) -> None:
    logged: set[str] = set()
    for algorithm in (name for name in TRAIN_CONFIGS if name not in ("sft", "diffusion-opd")):
        times = ["train.num_train_timesteps=2"] if algorithm in ("nft", "awm", "dgpo", "crd") else []
        own = [f"run_name={algorithm}", f"train.trainer_type={algorithm}", *times, *KEYS.get(algorithm, [])]
        run = tiny(tmp_path, "train.max_epochs=2", "log.save_freq=1", *own)
        if algorithm == "grpo":  # an evaluation, and a checkpoint, log the same for all
            run()
        else:
            run.log(run.trainer.epoch())
        logged |= {k for record in read_metrics(run.folder / "metrics.jsonl") for k in record} - {"step", "time"}
    distil = partial(distilled, name="run")
    for write, make in ((write_pairs, offline), (write_targets, sft), (write_teaching, distil)):  # what needs files of its own
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder)
        (folder / "data" / "test.jsonl").write_text((folder / "data" / "train.jsonl").read_text())
        run = make(folder)
        logged |= {*run.trainer.epoch(), *run.evaluators[0].run()[0]}
    assert len(logged) > 50 and not [name for name in sorted(logged) if explained(name) is None]
    patterns = [re.sub(r"<\w+>", "(.+)", pattern) for metrics in METRICS.values() for pattern in metrics]
    elsewhere = ["time/(.+)_wait_s", "perf/(.+)_share_of_peak", *([] if torch.cuda.is_available() else ["perf/(.+)_peak_memory_gb"])]
    assert [p for p in patterns if not any(re.fullmatch(p, name) for name in logged)] == elsewhere, "what no run logs any more"


def test_the_page_is_what_the_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help-metrics"]) == 0
    assert (ROOT / "guidance" / "metrics.md").read_text() == capsys.readouterr().out == metrics_help() + "\n"


def test_one_metric_is_explained_and_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help-metrics", "train/reward_pickscore_mean"]) == 0
    assert "mean of one reward over all groups" in capsys.readouterr().out
    assert main(["--help-metrics", "train/rato"]) == 2
    assert "Did you mean 'train/ratio'?" in capsys.readouterr().err


def test_a_key_that_all_algorithms_have_alike_is_explained_once() -> None:
    said = config_help("train")
    for key in ("learning_rate", "max_epochs", "group_size", "ema_decay", "nft_beta", "clip_dsm"):
        assert len(re.findall(rf"^{key} ", said, re.MULTILINE)) == 1, key
    every = {key for schema in TRAIN_CONFIGS.values() for key in schema.own_keys()} - {"trainer_type"}
    assert all(re.search(rf"^{key}( |$)", said, re.MULTILINE) for key in every)
    assert len(config_help().splitlines()) < 640
