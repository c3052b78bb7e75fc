"""`ff-reward`, or `python -m flow_factory.commands.reward`: rewards by themselves. Nothing heavy is imported before a command needs it."""

import argparse
import sys
from collections.abc import Sequence

from flow_factory.commands.subcommands import done, parser_of

COMMANDS = {
    "list": "flow_factory.commands.reward_list",
    "check": "flow_factory.commands.reward_check",
    "score": "flow_factory.commands.reward_score",
    "serve": "flow_factory.commands.reward_serve",
}
EXAMPLES = """\
examples:
  ff-reward list                             the rewards that come along: weights, licence, scale
  ff-reward check rewards.yaml               does each load, what is its scale, does a score depend on its batch?
  ff-reward score rewards.yaml --images DIR  scores of a folder's pictures, and a contact sheet with the best first
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
