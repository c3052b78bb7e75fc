"""`ff-reward`, or `python -m flow_factory.commands.reward`: rewards without a training run.

Nothing heavy is imported before a command needs it.
"""

import argparse

from flow_factory.commands.subcommands import entry_points, parser_of

COMMANDS = {
    "list": "flow_factory.commands.reward_list",
    "check": "flow_factory.commands.reward_check",
    "score": "flow_factory.commands.reward_score",
    "serve": "flow_factory.commands.reward_serve",
}
EXAMPLES = """\
examples:
  ff-reward list                             list the built-in rewards with weights, licence and scale
  ff-reward check rewards.yaml               test that each reward loads and repeats its scores; print its scale and speed
  ff-reward score rewards.yaml --images DIR  score the images of a folder, and draw a contact sheet with the best first
  ff-reward serve rewards.yaml               serve the rewards of a YAML over HTTP, for runs on this machine
  ff-reward serve rewards.yaml --host 0.0.0.0 --devices cuda:0 cuda:1     serve other machines too, with two GPUs
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return parser_of("ff-reward", "List, check, apply and serve rewards, without a training run.", EXAMPLES, COMMANDS)


main, run = entry_points(parser)

if __name__ == "__main__":
    run()
