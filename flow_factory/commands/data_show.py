"""Summarise a data set: rows, columns, prompt lengths, image sizes, duplicates and missing files.

  ff-data show dataset/shapes                          a folder, a file, or hf://datasets/owner/name
  ff-data show prompts.parquet --columns prompt=caption image=source
  ff-data show CONFIG.yaml                             the data set of a run; prompt lengths in tokens of its model
  ff-data show DIR --model FOLDER_OR_NAME              prompt lengths in tokens of this checkpoint
  ff-data show DIR --sheet sheet.png                   also draw the first images with their prompts into one PNG

All rows are read and checked as a run checks them. The headers of image and video files are read for at most --look rows, evenly spaced.
The exit code is 1 if some of these files cannot be used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flow_factory.commands.subcommands import table
from flow_factory.utils.errors import UserError, file_errors, plain

if TYPE_CHECKING:
    from flow_factory.config import RunConfig
    from flow_factory.config.data import DataConfig
    from flow_factory.data.survey import Column, Media, Survey
    from flow_factory.types import Row

    Counter = tuple[str, Callable[[Row], tuple[int, int]]]

HELP = "summarise a data set: rows, columns, prompt lengths, image sizes, a contact sheet"
SHOWN, WRONG, EXAMPLE = 40, 5, 60
"""The largest number of lines for columns, and for unusable files; the largest number of characters of an example."""


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("what", metavar="PATH_OR_CONFIG", help="a data set, as in data.dataset_dir, or a run's YAML")
    parser.add_argument("--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="column names, as in data.columns: prompt=caption")
    parser.add_argument("--split", help="the split (default: the training split)")
    parser.add_argument("--dataset", metavar="NAME", help="of a run's YAML that has several: only this one")
    parser.add_argument("--subset", help="the subset, as in data.subset")
    parser.add_argument("--cache-dir", metavar="DIR", help="the cache folder, as in data.cache_dir")
    parser.add_argument("--model", metavar="NAME", help="count tokens with the tokenizers of this checkpoint")
    parser.add_argument(
        "--look", type=many, default=1000, metavar="N", help="number of rows whose files and tokens are examined (default: %(default)s)"
    )
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write the first images and prompts into this PNG")
    parser.add_argument("--first", type=many, default=48, metavar="N", help="images on the sheet (default: %(default)s)")


def many(text: str) -> int:
    """Raises:
    argparse.ArgumentTypeError: the text is not a positive whole number.
    """
    if not text.isdecimal() or not 0 < int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows, such as 100")
    return int(text)


def act(args: argparse.Namespace) -> int:
    """Prints the report. The code is 1 if it lists files that cannot be used."""
    from flow_factory.data.sources import open_split
    from flow_factory.data.survey import Media, Survey, spread

    datas, config = datasets_of(args)
    if args.sheet is not None and len(datas) > 1:
        raise UserError(f"--sheet: {args.what} has several data sets; choose one with --dataset")
    count, wrong = counter(args.model, config), 0
    for k, data in enumerate(datas):
        survey, split = Survey(), args.split or data.train_split
        rows = open_split(data, split, None, [survey])
        some = spread(rows, args.look)
        media = Media().read(some)
        wrong += len(media.wrong)
        print("\n".join([""] * bool(k) + report(data, split, survey, some, media, count)))
        if args.sheet is not None:
            print(sheet(rows, args.first, args.sheet))
    return 1 if wrong else 0


def datasets_of(args: argparse.Namespace) -> tuple[list[DataConfig], RunConfig | None]:
    """One data set, or all data sets of a config.

    Raises:
        UserError: the argument is neither a valid config nor the name of a data set.
    """
    from flow_factory.config import ConfigError, load_config
    from flow_factory.config.data import OURS
    from flow_factory.config.media_arguments import columns_problem, media_kind

    config = load_config(args.what) if args.what.endswith((".yaml", ".yml")) else None
    pairs = [pair.partition("=") for pair in args.columns]
    if wrong := next((pair for pair in pairs if not all(pair)), None):
        raise UserError(f"--columns: {''.join(wrong)!r}: write ours=theirs, such as prompt=caption")
    if unknown := next((ours for ours, _, _ in pairs if config is None and ours not in OURS and media_kind(ours) is None), None):
        raise UserError(f"--columns: {columns_problem(unknown, None, {})}")
    keys = {"subset": args.subset, "cache_dir": args.cache_dir, "columns": {ours: theirs for ours, _, theirs in pairs} or None}
    given = {key: value for key, value in keys.items() if value is not None}
    if config is None:
        return [_data({"dataset_dir": args.what} | given, None, ConfigError)], None
    return [_data(given, data, ConfigError) for data in _of_run(config, args.dataset)], config


def _of_run(config: RunConfig, name: str | None) -> list[DataConfig]:
    from flow_factory.config.datasets import datasets_of

    datasets = {dataset.name: dataset.config.data for dataset in datasets_of(config)}
    if name is not None and name not in datasets:
        raise UserError(f"--dataset: no data set {name!r}; data.datasets has {', '.join(datasets) if all(datasets) else 'no names'}")
    return list(datasets.values()) if name is None else [datasets[name]]


def _data(keys: dict[str, Any], data: DataConfig | None, kind: type[UserError]) -> DataConfig:
    from pydantic import ValidationError

    from flow_factory.config.data import DataConfig
    from flow_factory.config.explain import explain

    before = data.model_dump(include=data.model_fields_set) if data else {}
    try:
        return DataConfig.model_validate(before | keys)
    except ValidationError as error:
        (first, *_) = error.errors()
        raise kind(f"--{'.'.join(map(str, first['loc']))}: {explain(first)}") from error


def counter(model: str | None, config: RunConfig | None) -> Counter | None:
    """The name of a checkpoint, and a function that counts its tokens; None, with a note, if a config's checkpoint is not here yet.

    Raises:
        UserError: the configs or tokenizers of `model` cannot be read.
    """
    if model is None and config is None:
        return None
    from flow_factory.utils.terminal import note, quiet_libraries

    quiet_libraries()
    from flow_factory.models.tokens import token_counter

    if config is None:
        return str(model), token_counter(str(model), None, {})
    name = model or config.model.model_name_or_path
    try:
        return name, token_counter(name, config.model.model_type, config.train.call)
    except UserError as error:
        if model is not None:
            raise
        note(f"prompts are measured in characters alone: {str(error).removeprefix('--model: ')}")
        return None


def report(data: DataConfig, split: str, survey: Survey, some: Sequence[Row], media: Media, count: Counter | None) -> list[str]:
    """The lines of the report."""
    from flow_factory.data.survey import summary, tokens_line

    looked = "" if len(some) == survey.rows else f" (of {len(some):,} rows)"
    lines = [f"{data.dataset_dir}, split {split}: {survey.rows:,} rows", "", *columns_table(survey.columns, survey.rows), ""]
    lines.append(f"prompts: {summary(survey.lengths)} characters; {survey.repeated:,} repeat an earlier one")
    if count is not None:
        lines.append(f"{tokens_line(some, count[1], count[0])}{looked}")
    return lines + media_lines(media, looked)


def columns_table(columns: dict[str, Column], rows: int) -> list[str]:
    """A table of columns: name, kinds of values, number of rows with one, an example."""
    lines = [("column", "kind", "filled", "example")]
    for name, column in list(columns.items())[:SHOWN]:
        kinds = " or ".join(kind for kind, _ in column.kinds.most_common(3) if kind != "null") or "null"
        lines.append((cut(name, 30), kinds, f"{100 * column.filled / rows:.0f} %", cut(example(column.example), EXAMPLE)))
    return table(lines) + [f"... and {len(columns) - SHOWN:,} columns more"] * (len(columns) > SHOWN)


def example(value: Any) -> str:
    from flow_factory.data.columns import Deferred, Files

    if isinstance(value, Deferred | Files):
        return "(inside the data set)"
    return json.dumps(value, ensure_ascii=False, default=str)


def cut(text: str, most: int) -> str:
    """The text as one printable line of at most `most` characters."""
    shown = plain(text)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def media_lines(media: Media, looked: str) -> list[str]:
    """Lines about the sizes of images and videos, and about unusable files."""
    from flow_factory.data.columns import listed
    from flow_factory.data.survey import histogram, summary

    lines = []
    for kind, many in (("image", "images"), ("mask", "masks"), ("video", "videos")):
        sizes = [size for (_, its), size in media.sizes.items() if its == kind]
        if sizes:
            wide, high, frames = zip(*sizes, strict=True)
            lines.append(f"{many}: {len(sizes):,}{looked}; width {summary(wide)}; height {summary(high)}")
            lines[-1] += f"; frames {summary(frames)}" * (kind == "video")
            lines += [f"  {line}" for line in histogram([(w, h) for w, h, _ in sizes])]
    if sounds := [size for (_, its), size in media.sizes.items() if its == "audio"]:
        channels, rates = (sorted({sound[k] for sound in sounds}) for k in (0, 1))
        seconds = [samples / rate for _, rate, samples in sounds]
        lines.append(f"sounds: {len(sounds):,}{looked}; seconds {summary(seconds)}; Hz {listed(map(str, rates))}")
        lines[-1] += f"; channels {listed(map(str, channels))}"
    if media.wrong:
        lines += [f"files that cannot be used: {len(media.wrong):,}{looked}", *(f"  {line}" for line in media.wrong[:WRONG])]
        lines += [f"  ... and {len(media.wrong) - WRONG:,} more"] * (len(media.wrong) > WRONG)
    return lines


def sheet(rows: Sequence[Row], most: int, file: Path) -> str:
    """Writes the contact sheet and returns a line about it.

    Raises:
        UserError: none of the first rows has an image, or the file cannot be written.
    """
    from flow_factory.data.thumbnails import thumbnails
    from flow_factory.reporting.pictures import contact_sheet

    samples = thumbnails(rows, most)
    if not samples:
        raise UserError("--sheet: no row has a picture or a video (columns image, images, video, videos, chosen, rejected)")
    with file_errors("--sheet", file, "name a file that can be written, such as sheet.png"):
        contact_sheet(samples).save(file, "PNG")
    return f"contact sheet: {file}, {len(samples)} pictures"
