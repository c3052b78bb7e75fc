"""Score the images or videos of a folder with the rewards of a YAML.

  ff-reward score CONFIG --images DIR                      the prompt of a.png is in a.txt beside it, or is empty
  ff-reward score CONFIG --images DIR --prompts rows.txt   one prompt per line, in the order of the file names
  ff-reward score CONFIG --images DIR --prompts rows.jsonl {"image": "a.png", "prompt": ..., any column}

Writes scores.jsonl, scores.csv and, for each reward, a contact sheet with the best images first.
Images with the same prompt and columns are a group.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from flow_factory.commands.data_show import many
from flow_factory.commands.places import WRITABLE, new_folder, out_path
from flow_factory.commands.subcommands import take_rewards
from flow_factory.utils.errors import file_errors

if TYPE_CHECKING:
    from flow_factory.rewards.folder import Scored
    from flow_factory.rewards.scoring import RewardSet
    from flow_factory.types import Row

HELP = "score the images of a folder; write jsonl, CSV and a contact sheet sorted by score"
AT_ONCE = 64
"""The number of images in main memory at a time, unless a group has more."""


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    take_rewards(parser)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="a folder of images or videos")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a .txt or .jsonl file with their prompts")
    parser.add_argument("--out", type=out_path, metavar="DIR", help="output folder (default: a new one, scores, or scores-2, ...)")
    parser.add_argument(
        "--most", type=many, default=48, metavar="N", help="images on a sheet, the best and the worst (default: %(default)s)"
    )


def act(args: argparse.Namespace) -> int:
    """Writes the files, and prints a summary."""
    from flow_factory.rewards.bench import entries_of, loaded
    from flow_factory.rewards.folder import read_folder

    found = read_folder(args.images, args.prompts)
    if args.out is not None:
        with file_errors("--out", args.out, WRITABLE):
            args.out.mkdir(parents=True, exist_ok=True)
    with nullcontext(args.out) if args.out is not None else new_folder(Path("scores")) as out:
        names, scores = scored(loaded(entries_of(args.config, args.overrides)), found)
        with file_errors("--out", out, WRITABLE):
            write(out, names, found, scores)
            sheets = [sheet(out, name, found, [one[k] for one in scores], args.most) for k, name in enumerate(names)]
    for k, name in enumerate(names):
        known = [one[k] for one in scores if not math.isnan(one[k])]
        spread = f"{min(known):.4g} to {max(known):.4g}, mean {sum(known) / len(known):.4g}" if known else "no scores"
        print(f"{name}: {spread}; {len(found) - len(known)} of {len(found)} missing; best first in {sheets[k]}")
    print(f"scores: {out / 'scores.jsonl'}, {out / 'scores.csv'}")
    return 0


def scored(rewards: RewardSet, found: list[Scored]) -> tuple[list[str], list[list[float]]]:
    """(names of the rewards, the scores of each file, NaN for a missing one).

    Raises:
        UserError: a row lacks an input of a reward, a file is damaged, or a reward fails.
    """
    from flow_factory.rewards.folder import groups_of

    rewards.check_columns([one.row for one in found])
    of_file: dict[int, list[float]] = {}
    waiting: list[tuple[Row, list[Scored]]] = []

    def score_waiting() -> None:
        rows, groups = [row for row, _ in waiting], [group for _, group in waiting]
        media = [[one.open() for one in group] for group in groups]
        for group, values in zip(groups, rewards.score(rows, media), strict=True):
            of_file.update({id(one): scores for one, scores in zip(group, values.tolist(), strict=True)})
        waiting.clear()

    for row, group in groups_of(found):
        if waiting and sum(len(one) for _, one in waiting) + len(group) > AT_ONCE:
            score_waiting()
        waiting.append((row, group))
    score_waiting()
    return list(rewards.names), [of_file[id(one)] for one in found]


def write(folder: Path, names: list[str], found: list[Scored], scores: list[list[float]]) -> None:
    """The two tables."""
    with ExitStack() as files:
        opened = [(folder / f"scores.{kind}").open("w", newline="", encoding="utf-8") for kind in ("jsonl", "csv")]
        lines, cells = map(files.enter_context, opened)
        table = csv.writer(cells)
        table.writerow(["file", "prompt", *names])
        for one, values in zip(found, scores, strict=True):
            known = [None if math.isnan(value) else float(f"{value:.7g}") for value in values]
            line = {"file": one.file.name, "prompt": one.row.prompt, **dict(zip(names, known, strict=True))}
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
            table.writerow(list(line.values()))


def sheet(folder: Path, name: str, found: list[Scored], scores: list[float], most: int) -> Path:
    """Writes the contact sheet of one reward, with the best and the worst if there are more than `most` images. Returns its path."""
    from flow_factory.reporting.pictures import contact_sheet
    from flow_factory.types import Sample

    order = sorted(range(len(found)), key=lambda k: (math.isnan(scores[k]), -scores[k] if not math.isnan(scores[k]) else 0.0))
    if len(order) > most:
        order = [*order[: (most + 1) // 2], *order[len(order) - most // 2 :]]
    samples = [Sample(found[k].row.prompt or found[k].file.name, found[k].open(), {name: scores[k]}) for k in order]
    path = folder / f"{name.replace('/', '_')}.png"
    contact_sheet(samples).save(path, "PNG")
    return path
