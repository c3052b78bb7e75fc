"""What the other commands have in common: commands in modules of their own, one line for what is wrong, and the exit code."""

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from flow_factory.utils.errors import RunError, UserError, plain
from flow_factory.utils.terminal import let_reader_go, log_to_terminal, quiet_libraries


def parser_of(prog: str, description: str, examples: str, modules: Mapping[str, str]) -> argparse.ArgumentParser:
    """The command line.

    Args:
        modules: name of a command -> module with `HELP`, a line; `add(parser)`, which says its arguments; and `act(args)`, which
            returns the exit code.
    """
    p = argparse.ArgumentParser(prog=prog, description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, path in modules.items():
        module = import_module(path)
        sub = commands.add_parser(name, help=module.HELP, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add(sub)
        sub.set_defaults(act=module.act)
    return p


def take_rewards(parser: argparse.ArgumentParser, example: str = "rewards.0.batch_size=8") -> None:
    """The arguments that name a YAML of rewards, and keys of it, such as the example."""
    parser.add_argument("config", type=Path, help="a YAML file with rewards:, or a run's YAML")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=f"set keys of the file, for example {example}")


def size_of_gpu(text: str) -> float | None:
    """GB, of `24` or `24GB`; None where the text is no such size."""
    try:
        size = float(text.lower().removesuffix("gb"))
    except ValueError:
        return None
    return size if 0 < size < 10_000 else None


def table(lines: Sequence[Sequence[str]], widest: int = 1000) -> list[str]:
    """Lines of cells, in columns; a cell of more than `widest` characters is cut."""
    cut = [[cell if len(cell) <= widest else f"{cell[: widest - 3]}..." for cell in line] for line in lines]
    widths = [max(len(line[k]) for line in cut) for k in range(len(cut[0]))] if cut else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cut]


def first() -> bool:
    """Whether this is the process that prints for all."""
    return os.environ.get("RANK", "0") == "0"


def settle_terminal() -> None:
    """Log records as lines, of other processes than the first only errors, and no remarks of the libraries: before they are imported."""
    log_to_terminal(logging.WARNING if first() else logging.ERROR)
    quiet_libraries()


def done(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Does what the command line asks. Exit code: 0 done, 1 failed, 2 bad arguments or data, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        parser.print_help()
        return 2
    args = parser.parse_args(arguments)
    try:
        return int(args.act(args))
    except UserError as error:
        from flow_factory.distributed.launch import already_reported  # imports the whole config

        if not already_reported():
            print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2
    except BrokenPipeError:  # `| head` has seen enough
        let_reader_go()
        return 0
    except OSError as error:
        print(f"error: {plain(f'{error.filename}: {error.strerror}' if error.filename else str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
