"""Which configs of a checkout of the public Flow-Factory are read here, and why the others are not.

    python tools/public_configs.py CHECKOUT

Every YAML under its folders named `*examples*` is loaded with the checkout as the current folder; files for accelerate are left out.
"""

import argparse
import os
from collections import Counter
from pathlib import Path

from flow_factory.config import ConfigError, load_config


def runs(checkout: Path) -> list[Path]:
    """The YAML files of runs."""
    files = (file for folder in checkout.glob("*examples*") for file in folder.rglob("*.yaml"))
    return sorted(file.relative_to(checkout) for file in files if "distributed_type:" not in file.read_text("utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--notices", action="store_true", help="print what is said of the files that are read, too")
    args = parser.parse_args()
    os.chdir(args.checkout)
    counted: Counter[str] = Counter()
    for file in runs(Path()):
        try:
            said, word = load_config(file).notices, "read"
        except ConfigError as error:
            said, word = tuple(str(error).splitlines()), "refused"
        counted[word] += 1
        if word == "refused" or args.notices:
            print(f"{word} {file}", *said, sep="\n    ")
    print(f"{counted['read']} of {counted.total()} are read")


if __name__ == "__main__":
    main()
