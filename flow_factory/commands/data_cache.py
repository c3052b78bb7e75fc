"""List or prune the cache of encoded rows (text embeddings, condition images) in data.cache_dir.

  ff-data cache                            one line per data set and model: rows, size, last use
  ff-data cache prune --older-than 30d     remove what no run has used for 30 days; also 12h, 4w
  ff-data cache prune --dataset DIR        remove the rows of a data set, by its path or its folder's name
  ff-data cache prune --model NAME         remove the rows of a model, by its name or the last part of it
  ff-data cache prune --old                remove rows of earlier versions, which are no longer read
  ff-data cache prune --all --dry-run      print what would be removed, and remove nothing

Several conditions must all be met. Pruning is safe at any time: a run, even one in progress, encodes missing rows again.
A line may cover several encoder settings, and several versions of a model.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from flow_factory.commands.subcommands import table
from flow_factory.utils.errors import UserError, file_errors

if TYPE_CHECKING:
    from flow_factory.data.cache_folder import CachedRows

HELP = "list or prune the cache of encoded rows, by data set and model"
UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}
READABLE = "name a folder that you can read by --cache-dir"


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    from flow_factory.config.data import DataConfig

    default = DataConfig.model_fields["cache_dir"].default
    parser.add_argument("what", nargs="?", choices=("list", "prune"), default="list", help="list (default) or prune")
    parser.add_argument("--cache-dir", default=default, metavar="DIR", help="data.cache_dir of the runs (default: %(default)s)")
    which = parser.add_argument_group("what prune removes")
    which.add_argument("--older-than", type=age, metavar="AGE", help="rows that no run has used for this long: 12h, 30d, 4w")
    which.add_argument("--dataset", metavar="NAME", help="rows of this data set")
    which.add_argument("--model", metavar="NAME", help="rows of this model")
    which.add_argument("--old", action="store_true", help="rows of earlier versions of the cache")
    which.add_argument("--all", action="store_true", help="every row")
    parser.add_argument("--dry-run", action="store_true", help="print what would be removed, and remove nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def age(text: str) -> float:
    """Seconds.

    Raises:
        argparse.ArgumentTypeError: the text is not an age.
    """
    if not (found := re.fullmatch(r"(\d{1,6})([hdw])", text.strip())):
        raise argparse.ArgumentTypeError(f"{text!r} is not an age; write e.g. 12h, 30d or 4w")
    return float(found[1]) * UNITS[found[2]]


def act(args: argparse.Namespace) -> int:
    """Lists or prunes."""
    from flow_factory.data.cache_folder import cached_rows, old_files, others, remove_old

    folder = Path(args.cache_dir).expanduser()
    with file_errors("--cache-dir", folder, READABLE):
        found, old = cached_rows(folder), old_files(folder)
    if args.what == "list":
        print(listing(folder, found, old))
        if beside := [f"{name} {size(count)}" for name, count in others(folder).items()]:
            print(f"beside them, which is not pruned: {', '.join(beside)}")
        return 0
    chosen = [stock for stock in found if wanted(stock, args)]
    gone = old if args.old or args.all else []
    if not chosen and not gone:
        print("nothing to remove")
        return 0
    print(listing(folder, chosen, gone))
    if args.dry_run or not agreed(args.yes):
        print("nothing was removed")
        return 0
    with file_errors("--cache-dir", folder, "its owner can remove it"):
        for stock in chosen:
            stock.remove()
        remove_old(gone)
    print("removed")
    return 0


def wanted(stock: CachedRows, args: argparse.Namespace) -> bool:
    """Raises:
    UserError: no condition says what to remove.
    """
    conditions = [args.older_than, args.dataset, args.model]
    if conditions == [None] * 3:
        if not (args.all or args.old):
            raise UserError("ff-data cache prune: choose what to remove: --older-than 30d, --dataset NAME, --model NAME, --old, or --all")
        return bool(args.all)
    old = args.older_than is None or time.time() - stock.used > args.older_than
    return old and all(
        name is None or _named(stock.about.get(key, ""), name) for key, name in (("dataset_dir", args.dataset), ("model", args.model))
    )


def _named(value: str, name: str) -> bool:
    return bool(value) and name.rstrip("/") in (value, value.rpartition("/")[2]) or str(Path(name).absolute()) == value


def agreed(yes: bool) -> bool:
    """Whether the user confirms the removal.

    Raises:
        UserError: there is no terminal to ask on.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UserError("ff-data cache prune: there is no terminal to ask on; write --yes, or --dry-run")
    return input("remove this? [y/N] ").strip().lower() in ("y", "yes")


def listing(folder: Path, found: list[CachedRows], old: list[Path]) -> str:
    """A table of the cached rows, and their sum."""
    from flow_factory.data.cache_folder import size_on_disk

    lines = [("data set", "model", "rows", "size", "last use")]
    lines += [
        (s.about.get("dataset_dir", "(unknown)"), _model(s), f"{s.rows:,}", size(s.size), _ago(s.used))
        for s in sorted(found, key=lambda s: -s.size)
    ]
    shown = table(lines) if found else []
    if old:
        shown.append(f"{len(old):,} rows of an earlier version, which are not read: {size(size_on_disk(old))}; 'ff-data cache prune --old'")
    total = f"{folder}: {size(sum(s.size for s in found) + size_on_disk(old))} in all"
    return "\n".join([*shown, total])


def _model(stock: CachedRows) -> str:
    kind = stock.about.get("model_type")
    return f"{stock.about.get('model', '(unknown)')}{f' ({kind})' if kind else ''}"


def size(count: float) -> str:
    """`3.2 GB`."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _ago(moment: float) -> str:
    hours = max(0.0, time.time() - moment) / 3600
    return "within the hour" if hours < 1 else f"{hours:.0f} h ago" if hours < 48 else f"{hours / 24:.0f} days ago"
