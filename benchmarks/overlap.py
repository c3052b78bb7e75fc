"""What `async_reward` brings: an epoch's rollout and scoring with a reward that takes as long as the sampling, in line and beside it.

    python benchmarks/overlap.py [--groups 12] [--epochs 3] [--waits 0.5]

The model is the tests' tiny FLUX.1. The reward is on a server of this machine (`ff-reward serve`) and waits, so that it takes no core.
First there is none, to see how long the sampling of a group takes; then it waits so long for each group. `--waits`: each call of the
pipeline waits so many seconds too, as for a GPU, so that a busy machine changes little.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from rewards import serving  # noqa: E402

from flow_factory.rewards import GroupwiseRewardModel, RewardModelOutput  # noqa: E402 (found beside this file, installed or not)
from tests.tiny.run import tiny, write_run  # noqa: E402


class Waits(GroupwiseRewardModel):
    """So many seconds for a group."""

    extra_keys = ("seconds",)

    def __call__(self, image: list) -> RewardModelOutput:
        time.sleep(self.config.extra_kwargs["seconds"])
        return RewardModelOutput([float(k) for k in range(len(image))])


def seconds(folder: Path, reward: tuple[str, ...], groups: int, epochs: int, pause: float) -> float:
    """Of an epoch's rollout and scoring, the median over the epochs after the first.

    Args:
        reward: keys of the run's reward.
    """
    steps = 2 if pause else 20
    keys = (
        f"train.unique_sample_num_per_epoch={groups}",
        f"train.num_inference_steps={steps}",
        "eval.eval_freq=0",
        "rewards.batch_size=1",
        *reward,
    )
    run = tiny(folder, *keys)
    sample = run.trainer.collector.sample
    run.trainer.collector.sample = lambda *args: (time.sleep(pause), sample(*args))[1]  # type: ignore[method-assign]
    logged = [run.trainer.epoch() for _ in range(epochs + 1)][1:]
    return statistics.median(epoch["time/rollout_s"] + epoch["time/reward_s"] for epoch in logged)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--waits", type=float, default=0.0)
    args = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder)
        size = (args.groups, args.epochs, args.waits)
        alone = seconds(folder, ("rewards.reward_model=overlap.Waits", "rewards.seconds=0"), *size)
        entry = f"rewards:\n  - {{reward_model: 'overlap:Waits', name: waits, seconds: {alone / args.groups}}}\n"
        with serving(folder, entry) as (address, _):
            keys = ("rewards.reward_model=remote_group", f"rewards.server_url={address}", "rewards.reward=waits")
            in_line, beside = (seconds(folder, (*keys, f"rewards.async_reward={value}"), *size) for value in ("false", "true"))
    print(
        f"sampling alone {alone:.2f} s; with a reward as long, in line {in_line:.2f} s, beside it {beside:.2f} s: {in_line / beside:.2f} x"
    )


if __name__ == "__main__":
    main()
