"""Tokens and operations a second, and what share of a card's peak they are; memory by phase beside the estimate."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flow_factory.config import load_config
from flow_factory.memory.fit import measured
from flow_factory.training.throughput import Work, peak_of, rates, text_of, work_of
from tests.tiny.run import tiny, write_run


@pytest.mark.exhaustive
def test_an_epochs_work_is_what_torch_counts(tmp_path: Path) -> None:
    """With a mathematical attention, which it counts on a CPU."""
    run = tiny(tmp_path, "train.num_inference_steps=2", "train.true_cfg_scale=3.0", "eval.eval_freq=0")
    trainer = run.trainer
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainer.collector(0)
    work = work_of(run.context, run.context.conds[0])
    assert work["rollout"].tflop == pytest.approx(sum(counter.get_flop_counts()["Policy.components.transformer"].values()) * 1e-12)
    assert work["rollout"].tokens == 2 * 4 * 2 * 2 * (4 + 16), "rows x samples x steps x passes x (latent and text tokens)"
    assert work["optimise"].tokens == 2 * 4 * 1 * 2 * (4 + 16), "rows x samples x points x passes"


def test_rates_are_of_all_processes_and_shares_of_one_card() -> None:
    work = {"rollout": Work(1000.0, 40.0), "optimise": Work(500.0, 60.0)}
    costs = {"time/rollout_s": 4.0, "time/rollout_wait_s": 1.0, "time/optimise_s": 3.0}
    found = rates(costs, work, processes=8, peak=100.0, dropped=0.5)
    assert found == {
        "perf/rollout_tokens_per_s": 8 * 1000 / 5, "perf/rollout_tflops": 10.0, "perf/rollout_share_of_peak": 0.1,
        "perf/optimise_tokens_per_s": 8 * 250 / 3, "perf/optimise_tflops": 10.0, "perf/optimise_share_of_peak": 0.1,
    }  # fmt: skip
    assert rates(costs, {"rollout": Work(1000.0, None)}, 1, 100.0).keys() == {"perf/rollout_tokens_per_s"}, "a model without a formula"
    assert rates(costs, {"rollout": Work(0.0, 0.0)}, 1, None) == {}, "given pairs are not rolled out"


@pytest.mark.parametrize(("name", "peak"), [
    ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA H20", 148), ("NVIDIA L40S", 362),
    ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A30", 165), ("NVIDIA RTX A3000 Laptop GPU", None), ("Tesla T4", None),
])  # fmt: skip
def test_a_cards_peak_is_known_by_its_name(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


def test_a_prompts_tokens_are_those_of_its_embeddings() -> None:
    assert text_of({"prompt_embeds": torch.zeros(1, 7, 3)}) == text_of({"prompt_embeds": [torch.zeros(7, 3)]}) == 7
    assert text_of({}) == 0


def test_memory_is_told_by_phase_beside_the_estimate(tmp_path: Path) -> None:
    line = measured(load_config(write_run(tmp_path)), {"rollout": 31.04, "reward": 3.0, "optimise": 40.0})
    assert re.fullmatch(
        r"memory at the peak: rollout 31\.0 GB, estimated \d+\.\d; reward 3\.0 GB; optimise 40\.0 GB, estimated \d+\.\d", line
    )
