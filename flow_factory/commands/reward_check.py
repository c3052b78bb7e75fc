"""Test the rewards of a YAML: whether each loads, its scale, whether its scores repeat, and its speed.

  ff-reward check CONFIG                                     on drawn images: a red circle, degraded step by step
  ff-reward check CONFIG --images DIR [--prompts FILE]       on the images of a folder too; for prompts see ff-reward score --help

The exit code is 1 if a score depends on its batch (its neighbours, their order or their number), if a repeated call gives another score
for the same image, or if a reward gives no score at all.
"""

from __future__ import annotations

import argparse
import math
import time
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flow_factory.commands.subcommands import take_rewards

if TYPE_CHECKING:
    from flow_factory.hparams import RewardArguments
    from flow_factory.rewards.examination import Findings

HELP = "test that rewards load and repeat their scores; print their scale and speed"
MOST = 64
"""The largest number of images of a folder that are scored, evenly spaced."""


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    take_rewards(parser)
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of images or videos, in addition to the drawn ones")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a .txt or .jsonl file with their prompts")


def act(args: argparse.Namespace) -> int:
    """Prints a paragraph for each reward. Returns 1 if one fails."""
    from flow_factory.rewards.bench import entries_of
    from flow_factory.rewards.folder import read_folder

    files = [] if args.images is None else read_folder(args.images, args.prompts)
    mine = [(one.file.name, one.row, one.open()) for one in files[:: max(1, math.ceil(len(files) / MOST))]]
    well = True
    for entry in entries_of(args.config, args.overrides):
        lines, fine = checked(entry, mine)
        well &= fine
        print("\n".join(lines), flush=True)
    return 0 if well else 1


def checked(entry: RewardArguments, mine: list[tuple[str, Any, Any]]) -> tuple[list[str], bool]:
    """The paragraph about one reward, and whether it passes.

    Raises:
        UserError: the reward does not load, or scores neither the drawn images nor the user's.
    """
    from flow_factory.rewards.bench import loaded
    from flow_factory.rewards.drawn import ROW, drawn
    from flow_factory.rewards.examination import examine, memory
    from flow_factory.utils.errors import UserError

    begun = time.perf_counter()
    rewards = loaded([entry])
    reward = rewards.rewards[0]
    peak = ", ".join(f"{much:.2f} GB {of}" for of, much in memory().items())
    head = [f"{entry.name}: {entry.reward_model}, {'groupwise' if reward.groupwise else 'pointwise'}, on {reward.model.device}"]
    head.append(f"  loaded in {time.perf_counter() - begun:.1f} s; at the peak {peak}")
    head += published(entry)
    lines, problems = [], []
    media = reward.needs.media
    ours = [(name, ROW, one) for name, one in drawn(video=bool(media) and "image" not in media).items()]
    for title, samples in {"drawn pictures": ours, "the folder's": mine}.items():
        if not samples:
            continue
        try:
            found = examine(rewards, reward, samples)
        except UserError as error:
            if title != "drawn pictures" or not str(error).startswith(f"reward {entry.name!r} needs"):
                raise
            lines.append(f"  {title}: {error}{'' if mine else '; score your own by --images and --prompts'}")
            continue
        lines += findings_lines(title, found, reward.config.batch_size)
        problems += [f"{title}: {problem}" for problem in found.problems]
    if len(lines) < 2:  # the sets that could not be scored
        problems.append("nothing was scored")
    return [*head, *lines, *(f"  FAILS: {problem}" for problem in problems)], not problems


def published(entry: RewardArguments) -> list[str]:
    """A line with the licence and the scale of a built-in reward."""
    from flow_factory.rewards import REWARDS
    from flow_factory.rewards.facts import FACTS

    facts = FACTS.get(REWARDS.canonical(entry.reward_model))
    return [] if facts is None else [f"  weights {facts.weights}; licence {facts.licence}; scale {facts.scale}"]


def findings_lines(title: str, found: Findings, batch: int) -> list[str]:
    """The lines of the findings."""
    from flow_factory.rewards.drawn import WORSE

    missing = len(found.scores) - len(found.known)
    scale = f"{min(found.known):.4g} to {max(found.known):.4g}, spread {found.spread:.3g}" if found.known else "no scores"
    lines = [f"  {title}: {scale}; {missing} of {len(found.scores)} missing" + (f" ({found.error})" if found.error and missing else "")]
    if list(found.scores) == list(WORSE):
        lines.append("    " + ", ".join(f"{name} {score:.4g}" for name, score in found.scores.items()))
        pairs = [a > b for a, b in combinations(found.scores.values(), 2) if not math.isnan(a + b)]
        lines.append(f"    {sum(pairs)} of {len(pairs)} pairs in the order in which people see them")
    lines.append("    moved " + ", ".join(f"{by:.2g} {how}" for how, by in found.changes.items()))
    return [*lines, f"    {found.latency * 1000:.3g} ms one call, {found.throughput:.4g} samples a second at batch_size {batch}"]
