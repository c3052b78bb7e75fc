"""The common parts of commands with subcommands: the parser, one line for an error, and the exit code."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from flow_factory.utils.errors import RunError, UserError, plain
from flow_factory.utils.terminal import ignore_closed_pipe, log_to_terminal, quiet_libraries


def parser_of(prog: str, description: str, examples: str, modules: Mapping[str, str]) -> argparse.ArgumentParser:
    """The command line.

    Args:
        modules: name of a subcommand -> module with `HELP`, a line; `add(parser)`, which adds its arguments; and `act(args)`, which
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
    """Adds the arguments for a YAML of rewards and for overrides of its keys."""
    parser.add_argument("config", type=Path, help="a YAML file with rewards:, or a run's YAML")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=f"set keys of the file, for example {example}")


def size_of_gpu(text: str) -> float | None:
    """The GB of `24` or `24GB`; None if the text is no such size."""
    try:
        size = float(text.lower().removesuffix("gb"))
    except ValueError:
        return None
    return size if 0 < size < 10_000 else None


def table(lines: Sequence[Sequence[str]], widest: int = 1000) -> list[str]:
    """Aligned lines of cells. A cell of more than `widest` characters is cut."""
    cut = [[cell if len(cell) <= widest else f"{cell[: widest - 3]}..." for cell in line] for line in lines]
    widths = [max(len(line[k]) for line in cut) for k in range(len(cut[0]))] if cut else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cut]


def first() -> bool:
    """Whether this process prints for all."""
    return os.environ.get("RANK", "0") == "0"


def set_up_terminal() -> None:
    """Prints log records as lines (only errors on other processes than the first), and hides messages of libraries, before their import."""
    log_to_terminal(logging.WARNING if first() else logging.ERROR)
    quiet_libraries()


def done(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Runs the command line. Exit code: 0 done, 1 failed, 2 bad arguments or data, 130 interrupted."""
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
    except BrokenPipeError:  # as with `| head`
        ignore_closed_pipe()
        return 0
    except OSError as error:
        print(f"error: {plain(f'{error.filename}: {error.strerror}' if error.filename else str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def entry_points(parser: Callable[[], argparse.ArgumentParser]) -> tuple[Callable[[Sequence[str] | None], int], Callable[[], None]]:
    """(main, run) of a command: `main(argv)` returns the exit code, see `done`, and `run()` is the console script."""

    def main(argv: Sequence[str] | None = None) -> int:
        return done(parser(), argv)

    def run() -> None:
        sys.exit(main())

    return main, run
