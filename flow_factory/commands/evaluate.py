"""`ff-eval`: score checkpoints and the base model on the same pairs of prompt and noise, with confidence intervals."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flow_factory.commands.generate import check_device, config_of, overrides_of, seeds, take_weights, weights_of
from flow_factory.commands.places import WRITABLE, default_out, out_path
from flow_factory.commands.subcommands import entry_points, set_up_terminal
from flow_factory.utils.errors import UserError, file_errors

if TYPE_CHECKING:
    from flow_factory.config import RewardConfig

EXAMPLES = """\
examples:
  ff-eval save/RUN --base                                  the newest checkpoint of a run and the base model, by the run's eval_rewards
  ff-eval save/a save/b --base --config rewards.yaml --data dataset/shapes/test.jsonl --seeds 0-3
  ff-eval lora.safetensors --base --config run.yaml --set num_inference_steps=40 max_rows=256
  accelerate launch --num_processes 8 -m flow_factory.commands.evaluate save/run --base      share the pairs among 8 GPUs

The model, the sizes, the steps and the guidance are those of the run's evaluations, from config.yaml in its folder. Seed N gives a row
the noise that an evaluation with eval.seed: N gives it. The same command goes on with an evaluation that was stopped.
An evaluation of something else gets a new folder beside it, eval-CHECKPOINT-2.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="ff-eval", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    take_weights(p)
    p.add_argument(
        "--config", nargs="+", type=Path, default=[], metavar="FILE",
        help="a YAML with rewards: alone, the run's YAML, or both (default: config.yaml in the run's folder, and its eval_rewards)",
    )  # fmt: skip
    p.add_argument("--data", metavar="FOLDER|FILE", help="a data set, whose test split is taken (default: those that the run evaluates)")
    p.add_argument("--seeds", type=seeds, default=seeds("0-7"), metavar="N|N-M|N,M", help="seeds of each prompt's noise (default: 0-7)")
    p.add_argument("--out", type=out_path, metavar="DIR", help="output folder (default: eval-CHECKPOINT in the run's folder)")
    p.add_argument("--compare", metavar="NAME|FILE", help="a recipe, beside whose numbers the results are shown (--recipes lists them)")
    p.add_argument("--recipes", action="store_true", help="print the recipes, and stop")
    p.set_defaults(act=act)
    return p


def act(args: argparse.Namespace) -> int:
    """Scores all, writes the tables, and prints them."""
    from flow_factory.reporting.recipes import load_recipe, recipes_page
    from flow_factory.utils.files import require_writable
    from flow_factory.utils.terminal import print_output

    set_up_terminal()
    if args.recipes:
        print_output(recipes_page())
        return 0
    recipe = load_recipe(args.compare) if args.compare else None
    weights = weights_of(args.checkpoints, args.base)
    check_device(args.device)
    run, rewards = configs_of(args.config)
    overrides = overrides_of(args) + ([f"data.dataset_dir={args.data}", "data.datasets=null"] if args.data else [])
    config = config_of(run, [path for path, _ in weights if path is not None], overrides)
    out = args.out or default_out("eval", weights, run)
    require_writable(out, "--out", WRITABLE)
    from flow_factory.commands.evaluating import Evaluation
    from flow_factory.commands.evaluation_tasks import tasks_of

    tasks = tasks_of(config, rewards, args.data is not None, len(args.seeds))
    batch = args.batch or config.eval.per_device_batch_size
    evaluation = Evaluation(config, weights, tasks, args.seeds, out, batch, numbers=args.out is None)
    evaluation.run(args.device, args.offload)
    if evaluation.main:
        out = evaluation.folder.path
        with file_errors("--out", out, WRITABLE):
            text = evaluation.results(recipe)
        print_output(text)
        print_output(f"tables: {out / 'results.md'}, {out / 'results.csv'}, {out / 'results.json'}")
    return 0


def configs_of(files: Sequence[Path]) -> tuple[Path | None, Sequence[RewardConfig] | None]:
    """(a run's YAML, rewards instead of the run's own), as far as they are named.

    Raises:
        UserError: two files of one kind, or a file of rewards is wrong.
    """
    from flow_factory.config.service import load_rewards_config
    from flow_factory.config.source import read

    kinds: dict[bool, list[Path]] = {True: [], False: []}
    for file in files:
        kinds["model" in read(file).tree].append(file)
    for found, what in ((kinds[True], "of runs"), (kinds[False], "of rewards alone")):
        if len(found) > 1:
            raise UserError(f"--config: {found[0]} and {found[1]} are both {what}; name one")
    rewards = load_rewards_config(kinds[False][0]).rewards if kinds[False] else None
    return (kinds[True][0] if kinds[True] else None), rewards


main, run = entry_points(parser)

if __name__ == "__main__":
    run()
