"""`ff-data`, or `python -m flow_factory.data_command`: a look at data sets and at what is kept of them. Nothing heavy is imported before a
command needs it."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from flow_factory.errors import RunError, UserError, plain

COMMANDS = {"show": "flow_factory.data.show", "cache": "flow_factory.data.cache_command"}
"""Name -> module with `HELP`, a line; `add(parser)`, which says its arguments; and `act(args)`, which returns the exit code."""
EXAMPLES = """\
examples:
  ff-data show dataset/shapes                a look at a data set: rows, columns, lengths, sizes of pictures
  ff-data cache                              what is kept of encoded rows, by data set and model
  ff-data cache prune --older-than 30d       remove what no run has used for 30 days
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="ff-data",
        description="Look at data sets, and at what is kept of them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = p.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, path in COMMANDS.items():
        module = import_module(path)
        sub = commands.add_parser(name, help=module.HELP, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add(sub)
        sub.set_defaults(act=module.act)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 bad arguments or data, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        parser().print_help()
        return 2
    args = parser().parse_args(arguments)
    try:
        return int(args.act(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2
    except BrokenPipeError:  # `| head` has seen enough; Python would say so once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"error: {plain(f'{error.filename}: {error.strerror}' if error.filename else str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
