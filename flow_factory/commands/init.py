"""`ff-train init`: writes a YAML from the nearest example, in sizes that fit your GPU.

On a terminal it asks for values that no flag sets; elsewhere it uses the defaults. The file passes `ff-train FILE --check --gpu GB`
before the rewards are downloaded: their weights are not counted here, and by `--check` when they are on the machine.

  ff-train init
  ff-train init --model stabilityai/stable-diffusion-3.5-medium --gpu 24 --data my_prompts --reward HPSv2 --out sd3.yaml
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from flow_factory.algorithms import ALGORITHMS
from flow_factory.commands.examples import copy, listed, needed, root
from flow_factory.commands.init_model import examples_of, meant_by
from flow_factory.commands.subcommands import done, set_up_terminal, size_of_gpu
from flow_factory.config.signature import require_reward
from flow_factory.rewards import REWARDS
from flow_factory.utils.errors import UserError, file_errors
from flow_factory.utils.registry import nearest

COMMENTS = {
    "num_processes": "GPUs over all machines",
    "dataset_dir": "a folder with train.txt (a prompt a line) or train.jsonl, and test.* to evaluate on",
    "model_name_or_path": "a name on the hub, or a folder",
    "target_modules": "the layers that get a LoRA: the family's own choice",
    "num_inference_steps": "denoising steps",
    "max_epochs": "null: until it is stopped",
    "unique_sample_num_per_epoch": "prompts of an epoch",
    "group_size": "pictures of each prompt, which are compared with each other",
    "per_device_batch_size": "pictures of a forward pass",
    "gradient_step_per_epoch": "optimiser steps of an epoch",
    "enable_gradient_checkpointing": "less memory, more time",
    "eval_freq": "epochs between two evaluations of the test prompts",
    "save_freq": "epochs between two checkpoints",
    "save_model_only": "false: a run that was stopped can go on",
}
"""Key -> the comment behind its first appearance."""
ONE_GPU = 16
"""The number of prompts of an epoch on one GPU."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="ff-train init", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--model", help=f"a name on the hub, a folder, a model type, or one of: {', '.join(sorted(known()['grpo']))} (default: flux1)"
    )
    p.add_argument("--algorithm", help=f"one of: {', '.join(known())} (default: grpo)")
    p.add_argument("--gpu", type=float, metavar="GB", help="memory of a card (default: 24)")
    p.add_argument("--data", metavar="DIR", help="a data set (default: prompts that come with the package)")
    p.add_argument("--reward", metavar="NAME", help="a reward of `ff-reward list` (default: PickScore)")
    p.add_argument("--num_processes", type=int, default=1, metavar="N", help="cards (default: 1)")
    p.add_argument("--out", type=Path, default=Path("run.yaml"), metavar="FILE", help="where to write (default: %(default)s)")
    p.set_defaults(act=act)
    return p


def known() -> dict[str, list[str]]:
    """Algorithm -> models with a LoRA example."""
    found: dict[str, list[str]] = {}
    for name in listed():
        algorithm, kind, *rest = f"{name}/".split("/")
        if kind == "lora" and "_tempflow" not in name and "_flash" not in name:
            found.setdefault(algorithm, []).append(rest[0])
    return found


def act(args: argparse.Namespace) -> int:
    """Asks for missing values, computes the file, and writes it."""
    set_up_terminal()
    if args.out.exists():
        raise UserError(f"--out: {args.out} exists already; name another file, or move it away")
    if not args.out.absolute().parent.is_dir():
        raise UserError(f"--out: there is no folder {args.out.parent}; name a file in one that is there")
    if args.num_processes < 1:
        raise UserError(f"--num_processes: {args.num_processes} is not a number of cards; write 1 or more")
    algorithm = known_algorithm(answer(args.algorithm, "algorithm", "grpo", list(known())))
    choices = examples_of(algorithm, known()[algorithm])
    model = meant_by(answer(args.model, "model", "flux1", [one.name for one in choices]), algorithm, choices)
    gpu = number(answer(args.gpu, "memory of a card in GB", "24"))
    data = answer(args.data, "data set (Enter: prompts that come with the package)", "")
    reward = known_reward(answer(args.reward, "reward", "PickScore"))
    name = f"examples/{algorithm}/lora/{model.example}.yaml"
    tree = yaml.safe_load((root() / name).read_text("utf-8"))
    if data and not Path(data).exists():
        raise UserError(f"--data: there is no {data}; name a folder with train.txt, a prompt a line, or train.jsonl")
    if model.checkpoint is not None:
        tree["model"]["model_name_or_path"] = model.checkpoint
    text, keys = fitted(adapted(tree, data, reward, args.num_processes), gpu)
    head = f"# Made by `ff-train init` from the example {algorithm}/lora/{model.example}, for cards of {gpu:g} GB.\n"
    if not data:
        copy([file for file in needed(name) if file.startswith("dataset/")], Path())
    with file_errors("--out", args.out, "name a file that can be written"):
        args.out.write_text(head + text, "utf-8")
    print(f"written: {args.out}, from the example {algorithm}/lora/{model.example}")
    if model.why:
        print(model.why)
    if keys:
        print(f"to fit {gpu:g} GB it has: {' '.join(keys)}")
    print(f"go on with: ff-train {quote(str(args.out))} --check --gpu {gpu:g}")
    return 0


def answer(given: Any, what: str, default: str, choices: Sequence[str] = ()) -> str:
    """The value of a flag, or the user's answer, or the default."""
    if given is not None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return str(given) if given is not None else default
    shown = f" ({', '.join(choices)})" if choices else ""
    return input(f"{what}{shown} [{default}]: ").strip() or default


def known_algorithm(name: str) -> str:
    """The folder of an algorithm's examples.

    Raises:
        UserError: there is none of this name.
    """
    found = ALGORITHMS.canonical(name).replace("-", "_")
    if found not in known():
        raise UserError(f"--algorithm: {name!r} is not one of {', '.join(known())}.{nearest(name, list(known()))}")
    return found


def number(text: str) -> float:
    """Raises:
    UserError: the text is not a positive number.
    """
    size = size_of_gpu(text)
    if size is None:
        raise UserError(f"--gpu: {text!r} is not a GPU size in GB, such as 24")
    return size


def known_reward(name: str) -> str:
    """Raises:
    UserError: there is no reward of this name.
    """
    try:
        require_reward(REWARDS.path(name))
    except (UserError, ValueError) as error:
        raise UserError(f"--reward: {error}") from error
    return name


def adapted(tree: dict[str, Any], data: str, reward: str, processes: int) -> dict[str, Any]:
    """The example with the user's values."""
    tree["num_processes"] = processes
    if data:
        tree["data"] = {"dataset_dir": data}
    if reward not in [entry["reward_model"] for entry in tree["rewards"]]:
        tree["rewards"] = [{"reward_model": reward}]
    if processes == 1:
        tree.pop("config_file", None)
        tree["train"]["unique_sample_num_per_epoch"] = min(ONE_GPU, tree["train"]["unique_sample_num_per_epoch"])
    return tree


def fitted(tree: dict[str, Any], gpu: float) -> tuple[str, list[str]]:
    """The YAML with the keys that make it fit, and these keys.

    Raises:
        UserError: the config is invalid, or does not fit such a GPU.
    """
    from tempfile import TemporaryDirectory

    from flow_factory.config import load_config
    from flow_factory.memory.fit import keys_to_fit

    with TemporaryDirectory() as folder:
        file = Path(folder, "run.yaml")
        file.write_text(written(tree), "utf-8")
        keys = keys_to_fit(load_config(file), gpu)
        for key in keys:
            path, _, value = key.partition("=")
            *sections, last = path.split(".")
            place = tree
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = yaml.safe_load(value)
        file.write_text(written(tree), "utf-8")
        load_config(file)
    return written(tree), keys


def written(tree: Mapping[str, Any]) -> str:
    """The YAML with comments, and an empty line between sections."""
    explained: set[str] = set()
    lines = []
    for key, value in sorted(tree.items(), key=lambda item: isinstance(item[1], (dict, list))):
        for k, line in enumerate(_block(key, value)):
            name = line.strip().partition(":")[0]
            comment = COMMENTS.get(name) if name not in explained else None
            explained.add(name)
            lines += [""] if k == 0 and isinstance(value, (dict, list)) else []
            lines.append(f"{line:<40}  # {comment}" if comment else line)
    return "\n".join(lines).lstrip("\n") + "\n"


def _block(key: str, value: Any) -> list[str]:
    """The lines of a top-level key. Each key of a section has its own line, with lists and mappings inline."""
    if isinstance(value, dict):
        return [f"{key}:", *(f"  {line}" for name, one in value.items() for line in _lines(name, one, isinstance(one, (dict, list))))]
    return _lines(key, value, key != "rewards" and isinstance(value, list))


def _lines(key: str, value: Any, inline: bool) -> list[str]:
    flow = None if inline else False
    return yaml.safe_dump({key: value}, sort_keys=False, default_flow_style=flow, width=1000, allow_unicode=True).splitlines()


def main(argv: Sequence[str] | None = None) -> int:
    """See `subcommands.done`; without arguments it asks."""
    return done(parser(), argv or ["--num_processes", "1"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
