"""`ff-generate`: draw images or videos with checkpoints and the base model side by side, from the same noise."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from flow_factory.commands.data_show import many
from flow_factory.commands.places import WRITABLE, config_above, default_out, new_folder, out_path
from flow_factory.commands.subcommands import entry_points, set_up_terminal
from flow_factory.utils.counting import counted
from flow_factory.utils.errors import UserError
from flow_factory.utils.files import require_writable
from flow_factory.utils.terminal import note

if TYPE_CHECKING:
    from flow_factory.config import RunConfig
    from flow_factory.types import Row

EXAMPLES = """\
examples:
  ff-generate save/RUN --prompts "a red circle" --base                   compare the newest checkpoint of a run with the base model
  ff-generate save/run/checkpoints/epoch_10 save/run/checkpoints/epoch_20 --prompts dataset/shapes/test.jsonl --seeds 0-7
  ff-generate lora.safetensors --config run.yaml --prompts "a fox" --set num_inference_steps=40 height=768

The model, the sizes, the steps and the guidance are those of the run's evaluations, from config.yaml in its folder.
The same prompt and seed start from the same noise with all weights. The metadata of each PNG says how it was made.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="ff-generate", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    take_weights(p)
    p.add_argument("--prompts", nargs="+", required=True, metavar="TEXT|FILE", help="prompts, or .txt and .jsonl files")
    p.add_argument("--negative", metavar="TEXT", help="negative prompt of rows that have none")
    p.add_argument("--max_rows", type=many, metavar="N", help="draw the first N prompts only")
    p.add_argument("--seeds", type=seeds, default=seeds("0-3"), metavar="N|N-M|N,M", help="seeds of the noise (default: 0-3)")
    p.add_argument("--config", type=Path, metavar="FILE", help="the run's YAML (default: config.yaml in the run's folder)")
    p.add_argument(
        "--out", type=out_path, metavar="DIR", help="output folder, empty or new (default: generated-CHECKPOINT in the run's folder)"
    )
    p.set_defaults(act=act)
    return p


def take_weights(p: argparse.ArgumentParser) -> None:
    """Adds the arguments for the weights and the sampling."""
    p.add_argument("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT", help="a run's folder, a checkpoint, or a LoRA file")
    p.add_argument("--base", action="store_true", help="also draw with the base model, first")
    p.add_argument("--model", metavar="NAME|FOLDER", help="the base model, if it is not where the run found it")
    p.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="keys of eval:, including arguments of the pipeline")
    p.add_argument("--batch", type=many, metavar="N", help="images per call (default: the run's eval.per_device_batch_size)")
    p.add_argument("--device", type=device_name, metavar="NAME", help="cpu, cuda, cuda:1, mps (default, auto: the first accelerator)")
    p.add_argument(
        "--offload", action="store_true", help="keep components in main memory until they are called: less GPU memory, more time"
    )


def device_name(text: str) -> str | None:
    """The name of a device; None for `auto`.

    Raises:
        argparse.ArgumentTypeError: it is no name of one.
    """
    if re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:\d{1,4})?", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no device; write auto, cpu, cuda, cuda:1 or mps")
    return None if text == "auto" else text


def seeds(text: str) -> list[int]:
    """`3`, `0-7`, `1,5,9-11`.

    Raises:
        argparse.ArgumentTypeError: the text has another form.
    """
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", part.strip())
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not 0 <= last - first < 10_000:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of seeds, such as 3, 0-7 or 1,5,9-11")
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


def act(args: argparse.Namespace) -> int:
    """Draws, writes the files and a contact sheet, and prints where they are."""
    set_up_terminal()
    weights = weights_of(args.checkpoints, args.base)
    check_device(args.device)
    config = config_of(args.config, [path for path, _ in weights if path is not None], overrides_of(args))
    if any(text.startswith("max_rows=") for text in args.set):
        raise UserError("--set max_rows: it is for evaluations; write --max_rows N for the first N prompts")
    rows = rows_of(args.prompts, args.negative)[: args.max_rows]
    usual, out = default_out("generated", weights, args.config), args.out
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out: {out} is not an empty folder; name another, or delete what is there")
    require_writable(out or usual.parent, "--out", WRITABLE)
    from flow_factory.commands.drawing import StockPipeline
    from flow_factory.commands.generating import Job, draw

    StockPipeline.require_rows(config, rows)
    batch, count = args.batch or config.eval.per_device_batch_size, len(weights) * len(rows) * len(args.seeds)
    note(
        f"{count} to draw: {counted(len(rows), 'prompt')}, {counted(len(args.seeds), 'seed')}, weights: {', '.join(k for _, k in weights)}"
    )
    with nullcontext(out) if out is not None else new_folder(usual) as out:
        sheet = draw(Job(config, weights, rows, args.seeds, batch, out, args.device, args.offload))
    print(f"{count} drawn: {out}; side by side: {sheet}")
    return 0


def check_device(name: str | None) -> None:
    """Raises:
    UserError: this machine has no such `--device`.
    """
    if name is not None:
        from flow_factory.utils.devices import require_device

        require_device("--device", name)


def overrides_of(args: argparse.Namespace) -> list[str]:
    """The overrides of the run's YAML by `--set` and `--model`."""
    return [f"eval.{text}" for text in args.set] + ([f"model.model_name_or_path={args.model}"] if args.model else [])


def config_of(file: Path | None, checkpoints: Sequence[Path], overrides: Sequence[str]) -> RunConfig:
    """The config of the run, with the changes of the command line.

    Args:
        file: the YAML of the run; None for the one next to each checkpoint.

    Raises:
        UserError: there is no config, the checkpoints are of several base models, or the base model's folder is one from where the run
            started, and this is another place.
    """
    from flow_factory.config import load_config
    from flow_factory.config.places import elsewhere
    from flow_factory.utils.model_index import INDEX

    files = [file] if file else list(dict.fromkeys(map(config_beside, checkpoints)))
    if not files:
        raise UserError("--base alone: name the YAML of a run with --config")
    configs = [load_config(file, overrides) for file in files]
    for config, path in zip(configs, files, strict=True):
        if there := elsewhere(config.model.model_name_or_path, path, INDEX):
            raise UserError(f"--model: {there}")
    bases = {(c.model.model_name_or_path, c.model.target_components): file for c, file in zip(configs, files, strict=True)}
    if len(bases) > 1:
        raise UserError(f"the checkpoints have different base models: {' and '.join(map(str, bases.values()))}; name those of one")
    return configs[0]


def weights_of(checkpoints: Sequence[Path], base: bool) -> list[tuple[Path | None, str]]:
    """Each checkpoint (the newest one of a run's folder) and its label. The base model, None, comes first.

    Raises:
        UserError: no checkpoint is given, or a path is not a checkpoint.
    """
    from flow_factory.checkpoints.checkpoint import model_kind, newest

    if not checkpoints and not base:
        raise UserError("name a checkpoint, or --base with --config")
    chosen = [newest(path) for path in checkpoints]
    for path in chosen:
        model_kind(path, "CHECKPOINT")
    return [(None, "base")] * base + list(zip(chosen, labels_of(chosen), strict=True))


def config_beside(checkpoint: Path) -> Path:
    """The config.yaml of the run that a checkpoint belongs to.

    Raises:
        UserError: there is none.
    """
    found = config_above(checkpoint)
    if found is None:
        raise UserError(f"{checkpoint}: no config.yaml in its folder or those above; name the run's YAML with --config")
    return found


def labels_of(checkpoints: Sequence[Path]) -> list[str]:
    """A unique short name for each checkpoint: the last folders of its path, with the run if there are several."""
    paths = [path.absolute() for path in checkpoints]
    runs = {path.parent for path in paths if path.parent.name == "checkpoints"}
    least = [3 if len(runs) > 1 and path.parent in runs else 1 for path in paths]
    for count in range(1, max((len(p.parts) for p in paths), default=1) + 1):
        lasts = [p.with_suffix("").parts[-max(count, few) :] for p, few in zip(paths, least, strict=True)]
        names = ["_".join(part for part in last if part not in ("/", "checkpoints")) for last in lasts]
        if len(set(names)) == len(names):
            return names
    return [f"{name}_{k}" for k, name in enumerate(names)]


def rows_of(texts: Sequence[str], negative: str | None) -> list[Row]:
    """The rows of the files, and a row for each other text.

    Raises:
        UserError: a file is damaged, or a text looks like a missing file.
    """
    from dataclasses import replace

    from flow_factory.data.reader import read_rows
    from flow_factory.types import Row

    rows: list[Row] = []
    for text in texts:
        if text.endswith((".txt", ".jsonl")):
            if not Path(text).is_file():
                wrong = f"{text} is a folder; name a file in it" if Path(text).is_dir() else f"there is no file {text}"
                raise UserError(f"--prompts: {wrong}")
            rows += read_rows(Path(text), "test")
        elif not text.strip():
            raise UserError("--prompts: a prompt is empty")
        elif text == "-" or (os.path.exists(text) and (os.sep in text or Path(text).suffix)):  # noqa: PTH110 (Path raises at long texts)
            raise UserError(f"--prompts: {text} is not a prompt; write prompts, or a .txt or .jsonl file that has them")
        else:
            rows.append(Row(0, text, source="--prompts"))
    kept = (row.negative_prompt if negative is None or row.negative_prompt is not None else negative for row in rows)
    return [replace(row, id=k, negative_prompt=text) for k, (row, text) in enumerate(zip(rows, kept, strict=True))]


main, run = entry_points(parser)

if __name__ == "__main__":
    run()
