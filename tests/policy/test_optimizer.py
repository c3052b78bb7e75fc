"""The optimisers that a config can ask for."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from flow_factory.config import load_config
from flow_factory.policy.optimizer import make_optimizer
from tests.tiny.run import read_state, tiny, write_run

KEYS = ("train.optimizer=muon", "train.learning_rate=1e-2", "train.adam_weight_decay=0.1", "train.muon_momentum=0.9")
FULL = (*KEYS, "model.finetune_type=full", "model.target_modules=all", "log.save_model_only=false", "log.save_freq=1")


def test_muon_steps_matrices_and_adamw_all_else(tmp_path: Path) -> None:
    config = load_config(write_run(tmp_path), KEYS)
    ours, theirs = (nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    both = make_optimizer(config.train, ours.parameters())
    muon = torch.optim.Muon([theirs.weight], lr=1e-2, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([theirs.bias], lr=1e-2, weight_decay=0.1, eps=1e-15)
    both.load_state_dict(both.state_dict())  # as accelerate does
    optimizers = (both, muon, adamw)
    schedules = [LambdaLR(optimizer, lambda step: 1 / (step + 1)) for optimizer in optimizers]
    for _ in range(3):
        x = torch.randn(4, 5)
        for model in (ours, theirs):
            model(x).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for schedule in schedules:
            schedule.step()
        assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert set(both.state[ours.weight]) == {"momentum_buffer"} and set(both.state[ours.bias]) == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.exhaustive
def test_a_run_with_muon_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole = tiny(tmp_path, *FULL, "run_name=whole")
    whole()
    first = tiny(tmp_path, *FULL, "run_name=first", "train.max_epochs=1")
    first()
    second = tiny(tmp_path, *FULL, "run_name=second", f"model.resume_path={first.folder}")
    second()
    wanted, found = (read_state(run.folder / "checkpoints" / "epoch_2") for run in (whole, second))
    assert any(name.startswith("optimizer/momentum_buffer/") for name in wanted)
    assert set(wanted) == set(found) and all(torch.equal(wanted[name], found[name]) for name in wanted)
