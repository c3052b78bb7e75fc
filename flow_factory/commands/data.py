"""`ff-data`, or `python -m flow_factory.commands.data`: inspects data sets and manages their cache.

It imports nothing heavy before a command needs it.
"""

import argparse

from flow_factory.commands.subcommands import entry_points, parser_of

COMMANDS = {"show": "flow_factory.commands.data_show", "cache": "flow_factory.commands.data_cache"}
EXAMPLES = """\
examples:
  ff-data show dataset/shapes                summarise a data set: rows, columns, prompt lengths, image sizes
  ff-data cache                              list the cache of encoded rows, by data set and model
  ff-data cache prune --older-than 30d       remove what no run has used for 30 days
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return parser_of("ff-data", "Inspect data sets, and manage the cache of encoded rows.", EXAMPLES, COMMANDS)


main, run = entry_points(parser)

if __name__ == "__main__":
    run()
