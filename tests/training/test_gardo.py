"""GARDO as a run does it: what is asked of the reference, when that moves, and that a run goes on with what it remembers."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import FluxTransformer2DModel

from flow_factory.checkpoints.state_files import contents
from flow_factory.training.run import Run
from tests.tiny.run import forwards, logged, read_state, tiny, write_run
from tests.tiny.several import assert_same_run, several

pytestmark = pytest.mark.exhaustive
REWARDS = [
    {"reward_model": "tests.tiny.rewards.Bright", "name": "proxy"},
    {"reward_model": "jpeg_compressibility", "name": "watched", "weight": 0},
    {"reward_model": "diversity", "name": "apart", "features": "pixels", "weight": 0},
]
TRAIN = {
    "kl_beta": 0.1, "kl_type": "exact", "kl_gate_share": 0.2, "kl_gate_bounds": [0.1, 1.0], "advantage_aggregation": "gardo",
    "diversity_reward": "apart", "learning_rate": 1e-2, "per_device_batch_size": 1, "unique_sample_num_per_epoch": 4, "ema_decay": 0,
    "adam_epsilon": 1e-3,
}  # fmt: skip
PAIRS = "train.per_device_batch_size=2"
NFT = ("train.trainer_type=nft", "train.kl_type=v-based", "train.num_train_timesteps=1")
MOVES = ("train.kl_reset_threshold=1e-12",)


def write(folder: Path) -> None:
    file = write_run(folder)
    tree = yaml.safe_load(file.read_text())
    tree["train"] |= TRAIN
    tree["rewards"] = REWARDS
    file.write_text(yaml.safe_dump(tree, sort_keys=False))


def held(folder: Path, name: str, *overrides: str) -> Run:
    if not (folder / "tiny.yaml").exists():
        write(folder)
    return tiny(folder, "eval.eval_freq=0", f"log.run_name={name}", *overrides)


@pytest.mark.parametrize("keys", [(), NFT], ids=["grpo", "nft"])
def test_the_reference_is_asked_where_a_sample_is_held_to_it_alone(tmp_path: Path, keys: tuple[str, ...]) -> None:
    run = held(tmp_path, "counted", "train.gradient_step_per_epoch=1", *keys)
    rollouts = run.trainer.collector(0)
    run.trainer.judge(rollouts)
    weights = [float(rollout.kl_weight) for rollout in rollouts if rollout.kl_weight is not None]
    asked = sum(weight > 0 for weight in weights)
    assert len(weights) == 16 and 0 < asked < 8 and sum(weights) == pytest.approx(16)
    with forwards(FluxTransformer2DModel) as seen:
        run.trainer.learner.learn(run.trainer.groups(rollouts))
    assert len(seen) == 16 + asked + 1, "and one that sees the first update's effect"


def test_a_reference_that_moves_is_the_policy_of_the_epochs_beginning(tmp_path: Path) -> None:
    run = held(tmp_path, "moved", *MOVES, "train.kl_gate_share=null", "train.gradient_step_per_epoch=1")
    first = run.trainer.epoch()
    assert first["train/kl_div"] == 0 and first["train/reference_moved"] == 0, "the policy was the base"
    run.context.store.blend("ref", 1.0)
    with torch.no_grad():
        for p in run.context.policy.trained().values():
            p.add_(0.01)
    second = run.trainer.epoch()
    assert second["train/kl_div"] > 0 and second["train/reference_moved"] == 1
    ref = run.context.store.copies["ref"]
    assert all(torch.equal(a, b) for a, b in zip(ref, run.context.store.live, strict=True))
    assert run.trainer.epoch()["train/kl_div"] == 0


def test_a_reference_that_moves_begins_as_the_base_of_a_lora_that_was_loaded(tmp_path: Path) -> None:
    held(tmp_path, "earlier", "train.max_epochs=1")()
    loaded = (f"model.resume_path={tmp_path}/save/earlier", "model.resume_type=lora")
    start = held(tmp_path, "start", *MOVES, *loaded, "train.reference=start").context.store
    base = held(tmp_path, "base", *MOVES, *loaded).context.store
    assert all(torch.equal(a, b) for a, b in zip(start.copies["ref"], start.live, strict=True))
    off = [bool(part.any()) for name, part in zip(base.networks["policy"], base.copies["ref"], strict=True) if ".lora_B." in name]
    assert not any(off) and any(bool(part.any()) for part in base.live)


@pytest.mark.parametrize("more", [(), NFT], ids=["grpo", "nft"])
def test_a_run_goes_on_exactly_with_what_it_remembers(tmp_path: Path, more: tuple[str, ...]) -> None:
    keys = (*more, "log.save_freq=1", "log.save_model_only=false", "train.max_epochs=4", *MOVES)
    held(tmp_path, "straight", *keys)()
    saved = tmp_path / "save" / "straight" / "checkpoints"
    held(tmp_path, "second", *keys, f"model.resume_path={saved / 'epoch_2'}")()
    ends = [tmp_path / "save" / name / "checkpoints" / "epoch_4" for name in ("straight", "second")]
    straight, resumed = map(read_state, ends)
    assert straight.keys() == resumed.keys() and all(torch.equal(straight[k], resumed[k]) for k in straight)
    assert {name.split("/")[1] for name in straight if name.startswith("weights/")} == {"policy", "ref"}
    memories = [contents(end)[1].memory for end in ends]
    assert memories[0] == memories[1] and len(memories[0]["kl_gate"]) == 5 and memories[0]["kl_reset"]
    gates = [[line["train/kl_gate_share"] for line in logged(end.parents[1]) if "train/kl_gate_share" in line] for end in ends]
    assert gates[0][2:] == gates[1] and json.dumps(gates)


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    runs = {"grpo": (), "grpo_fsdp2": ("config_file=examples/launch/fsdp2.yaml",), "nft": NFT}
    common = (*MOVES, "log.save_freq=1", "log.save_model_only=false", "eval.eval_freq=2", "train.clip_range=0.1", PAIRS)
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        write(folder)
        several(folder, processes, {name: [*common, *own] for name, own in runs.items() if processes > 1 or "fsdp2" not in name})
    for name in runs:
        one = tmp_path / "1" / "save" / name.partition("_")[0]
        assert_same_run(tmp_path / "2" / "save" / name, one, exact="fsdp2" not in name)
        epochs = [line for line in logged(one) if "train/gated_share" in line]
        assert len(epochs) == 2 and all(0 < line["train/gated_share"] < 0.5 and line["train/kl_held"] >= 0 for line in epochs)
        assert epochs[1]["train/kl_div"] > 0, "the policy has left the reference, and some samples are held to it"
