"""List the built-in rewards: kind, weights and their licence, scale, and where they compute.

  ff-reward list                one line per reward
  ff-reward list PickScore OCR  all about these rewards, with the inputs

Rewards of installed packages (entry points of the group flow_factory.reward) are listed below the built-in ones.
"""

import argparse
from importlib.metadata import entry_points

HELP = "list the built-in rewards: kind, weights, licence, scale"


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of rewards; without any, all")


def act(args: argparse.Namespace) -> int:
    """Prints the table."""
    from flow_factory.commands.subcommands import table
    from flow_factory.rewards import REWARDS
    from flow_factory.rewards.facts import FACTS

    if not args.names:
        lines = [(name, one.kind, one.weights, one.licence, one.scale, one.where) for name, one in FACTS.items()]
        print("\n".join(table([("reward_model", "kind", "weights", "licence", "scale", "computes on"), *lines], widest=44)))
        for point in entry_points(group="flow_factory.reward"):
            print(f"{point.name}: {point.value}")
        return 0
    for name in args.names:
        REWARDS.path(name)  # says what is near
        facts = FACTS.get(REWARDS.canonical(name))
        print(name if facts is None else "\n".join([REWARDS.canonical(name), *(f"  {k}: {v}" for k, v in facts._asdict().items())]))
    return 0
