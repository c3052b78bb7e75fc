"""One, two and four processes do the same run: the same rows, noise, pictures and advantages, and the same weights afterwards."""

from pathlib import Path

import pytest

from tests.tiny.run import ROOT, TEST, write_rows, write_run
from tests.tiny.several import assert_same_run, several

pytestmark = pytest.mark.slow

COMMON = ("train.adam_epsilon=1e-3", "log.save_freq=1", "log.save_model_only=false", "eval.eval_freq=2")
FULL = ("model.finetune_type=full", "model.target_modules=all", "model.master_weight_dtype=fp32")
FOUR = ("train.unique_sample_num_per_epoch=4", "train.gradient_step_per_epoch=2")
TWO = ("train.unique_sample_num_per_epoch=2", "train.gradient_step_per_epoch=1")
ONE = ("train.unique_sample_num_per_epoch=1", "train.gradient_step_per_epoch=1")
NFT, SHARES = ("train.trainer_type=nft", "train.kl_beta=0.1"), ("train.group_size=8",)
RUNS = {
    "grpo": (*FOUR, "train.kl_beta=0.1"),  # with four processes, a step takes half a group from each of two groups
    "grpo full": (*FOUR, *FULL, "train.kl_beta=0.1"),
    "nft": (*FOUR, *NFT, "train.off_policy=true", "train.old_model_decay=0-0.5-0.0-0.5"),
    "nft full": (*FOUR, *FULL, *NFT),
    "one row": (*ONE, *SHARES),
    "groupwise": (*TWO, "rewards.reward_model=mine.Ranks"),
    "best of n": (
        *TWO, *SHARES, "train.best_of_n=4", "train.drop_zero_variance=true", "train.trainer_type=grpo-guard",
        "scheduler.step_selection=window",
    ),
    "dgpo": (*TWO, "train.trainer_type=dgpo", "train.num_train_timesteps=2"),
    "dpo": (*FOUR, "train.trainer_type=dpo", "train.gradient_step_per_epoch=1", "train.beta=100"),
    "fsdp2": (*TWO, f"config_file={ROOT}/examples/launch/fsdp2.yaml"),
    "zero3": (*TWO, f"config_file={ROOT}/examples/launch/deepspeed_zero3.yaml"),
}  # fmt: skip
OF_FOUR = ("grpo", "grpo full", "nft", "groupwise", "best of n", "dgpo", "fsdp2")
REWARD = """\
import io

from flow_factory.rewards import GroupwiseRewardModel, RewardModelOutput


class Ranks(GroupwiseRewardModel):
    required_fields = ("image",)

    def __call__(self, image, **columns):
        assert len(image) in (1, 4), "the whole group, or the picture of an evaluation"
        sizes = []
        for one in image:
            one.save(file := io.BytesIO(), "png")
            sizes.append((len(file.getvalue()), one.tobytes()))
        return RewardModelOutput(rewards=[float(sorted(sizes).index(size)) for size in sizes])
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of all runs by the number of processes; three test rows, less than the processes."""
    folders = {}
    for processes in (1, 2, 4):
        folder = tmp_path_factory.mktemp(f"of_{processes}_")
        write_run(folder)
        write_rows(folder / "data" / "test.jsonl", [{"prompt": p} for p in TEST[:3]])
        (folder / "mine.py").write_text(REWARD)
        todo = RUNS if processes < 4 else {name: RUNS[name] for name in OF_FOUR}
        several(folder, processes, {name.replace(" ", "_"): [*COMMON, *keys] for name, keys in todo.items()})
        folders[processes] = folder / "save"
    return folders


@pytest.mark.parametrize(("processes", "name"), [*((2, name) for name in RUNS), *((4, name) for name in OF_FOUR)])
def test_several_processes_do_what_one_does(runs: dict[int, Path], name: str, processes: int) -> None:
    one, several = (runs[n] / name.replace(" ", "_") for n in (1, processes))
    assert_same_run(several, one)
