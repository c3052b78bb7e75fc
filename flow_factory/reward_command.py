"""`ff-reward`, or `python -m flow_factory.reward_command`: rewards by themselves. Nothing heavy is imported before a command needs it."""

import argparse
import sys
from collections.abc import Sequence

from flow_factory.subcommands import done, parser_of

COMMANDS = {"serve": "flow_factory.rewards.service.command"}
EXAMPLES = """\
examples:
  ff-reward serve rewards.yaml               the rewards of a YAML over HTTP, for runs on this machine
  ff-reward serve rewards.yaml --host 0.0.0.0 --devices cuda:0 cuda:1     for others, by two GPUs behind one address
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return parser_of("ff-reward", "Rewards by themselves: on a server, on folders of pictures, and what they are.", EXAMPLES, COMMANDS)


def main(argv: Sequence[str] | None = None) -> int:
    """See `subcommands.done`."""
    return done(parser(), argv)


def run() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
