"""One, two and four processes do the same run: the same rows, noise, pictures and advantages, and the same weights afterwards."""

from pathlib import Path

import pytest

from tests.conftest import cells, chosen
from tests.tiny.run import ROOT, TEST, write_rows, write_run
from tests.tiny.several import FULL, SMOOTH, assert_same_run, several

pytestmark = pytest.mark.slow

FOUR = ("train.unique_sample_num_per_epoch=4", "train.gradient_step_per_epoch=2")
TWO = ("train.unique_sample_num_per_epoch=2", "train.gradient_step_per_epoch=1")
ONE = ("train.unique_sample_num_per_epoch=1", "train.gradient_step_per_epoch=1")
NFT, SHARES = ("train.trainer_type=nft", "train.kl_beta=0.1"), ("train.group_size=8",)
DRAFT = (
    "train.trainer_type=draft", "train.draft_steps=2", "rewards.reward_model=tests.tiny.rewards.Warm",
)  # fmt: skip
STUDENT = ("eval_rewards.reward_model=tests.tiny.rewards.Bright", "train.gradient_step_per_epoch=1", "train.real_guidance_scale=3.0")
RUNS = {
    "grpo": (*FOUR, "train.kl_beta=0.1"),  # with four processes, a step takes half a group from each of two groups
    "grpo full": (*FOUR, *FULL, "train.kl_beta=0.1"),
    "nft": (*FOUR, *NFT, "train.off_policy=true", "train.old_model_decay=0-0.5-0.0-0.5"),
    "nft full": (*FOUR, *FULL, *NFT),
    "one row": (*ONE, *SHARES),
    "groupwise": (*FOUR, "rewards.reward_model=tests.tiny.rewards.Outshines", "rewards.batch_size=2", "eval.group_size=4"),
    "best of n": (
        *TWO, *SHARES, "train.best_of_n=4", "train.drop_zero_variance=true", "train.trainer_type=grpo-guard",
        "scheduler.step_selection=window",
    ),
    "flash": (
        *FOUR, "scheduler.dynamics_type=Flash-SDE", "scheduler.step_selection=stratified", "train.num_inference_steps=4",
        "train.step_weight=rectified", "train.clip_range=0.1",
    ),
    "dppo": (*TWO, "train.trainer_type=dppo", "train.kl_mask_threshold=1e-5", "train.kl_beta=0.1"),
    "branch": (
        *FOUR, "scheduler.step_selection=branch", "scheduler.branches_per_seed=2", "train.num_inference_steps=4", "train.step_weight=noise",
        "train.clip_range=0.1",
    ),
    "draft": (*TWO, *DRAFT, "train.kl_beta=0.01"),
    "draft fsdp2": (*TWO, *DRAFT, f"config_file={ROOT}/examples/launch/fsdp2.yaml"),
    "draft zero2": (*TWO, *DRAFT, f"config_file={ROOT}/examples/launch/deepspeed_zero2.yaml"),
    "draft zero3": (*TWO, *DRAFT, f"config_file={ROOT}/examples/launch/deepspeed_zero3.yaml"),
    "dgpo": (*TWO, "train.trainer_type=dgpo", "train.num_train_timesteps=2"),
    "dpo": (*FOUR, "train.trainer_type=dpo", "train.gradient_step_per_epoch=1", "train.beta=100"),
    "fsdp2": (*TWO, f"config_file={ROOT}/examples/launch/fsdp2.yaml"),
    "dmd2": (*TWO, *STUDENT, "train.trainer_type=dmd2", "rewards=null"),
    "tdm-r1": (*TWO, *STUDENT, "train.trainer_type=tdm-r1"),
    "tdm-r1 shared": (*ONE, *SHARES, *STUDENT, "train.trainer_type=tdm-r1"),
    "tdm-r1 fsdp2": (*TWO, *STUDENT, "train.trainer_type=tdm-r1", f"config_file={ROOT}/examples/launch/fsdp2.yaml"),
    "zero3": (*TWO, f"config_file={ROOT}/examples/launch/deepspeed_zero3.yaml"),
}  # fmt: skip
OF_FOUR = ("grpo", "grpo full", "nft", "groupwise", "best of n", "dgpo", "fsdp2")
CASES = [*((2, name) for name in RUNS), *((4, name) for name in OF_FOUR)]
NETWORKS = {(2, name) for name in RUNS if STUDENT[0] in RUNS[name]}
MORE = NETWORKS | {
    (2, "nft full"),
    (2, "dppo"),
    (2, "flash"),
    (2, "branch"),
    *((2, f"draft{engine}") for engine in ("", " fsdp2", " zero2", " zero3")),
    (2, "fsdp2"),
    (2, "zero3"),
    (4, "grpo full"),
    (4, "nft"),
}


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of all runs by the number of processes; three test rows, less than the processes."""
    folders, cases = {}, chosen(request, "processes", "name")
    for processes in (1, 2, 4):
        folder = tmp_path_factory.mktemp(f"of_{processes}_")
        write_run(folder)
        write_rows(folder / "data" / "test.jsonl", [{"prompt": p} for p in TEST[:3]])
        todo = {name for n, name in cases if processes in (1, n)}
        several(folder, processes, {name.replace(" ", "_"): [*SMOOTH, *keys] for name, keys in RUNS.items() if name in todo})
        folders[processes] = folder / "save"
    return folders


@cells("processes", "name", CASES, MORE)
def test_several_processes_do_what_one_does(runs: dict[int, Path], name: str, processes: int) -> None:
    one, several = (runs[n] / name.replace(" ", "_") for n in (1, processes))
    assert_same_run(several, one)
