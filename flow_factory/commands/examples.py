"""`ff-train examples`: list the bundled examples, or copy them with the checkpoint and the data sets that they name.

ff-train examples                   list all, one line each
ff-train examples quickstart        copy this one into the current folder, with all that it needs
ff-train examples dpo               copy all whose names contain dpo
ff-train examples grpo/lora/flux1 --to my_run
"""

import argparse
import filecmp
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote

from flow_factory.commands.places import WRITABLE
from flow_factory.commands.subcommands import done, table
from flow_factory.utils.errors import UserError, file_errors

NAMED = re.compile(r"(?:examples|dataset|assets|notebooks)(?:/[\w.-]+)+")
"""Paths in a checkout, as they appear in examples."""


def root() -> Path:
    """The folder of the examples: in the installed package, or in the checkout around it."""
    package = Path(__file__).parents[1]
    return package / "bundled" if (package / "bundled").is_dir() else package.parent


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="ff-train examples", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="*", metavar="NAME", help="part of the names of examples, for example quickstart or dpo/lora")
    p.add_argument("--to", type=Path, default=Path(), metavar="DIR", help="folder for the copies (default: the current folder)")
    p.set_defaults(act=act)
    return p


def act(args: argparse.Namespace) -> int:
    """Lists the examples, or copies the named ones."""
    found = listed()
    if not args.names:
        print("\n".join(table([(f"{name}.yaml", text) for name, text in found.items()], widest=110)))
        print("\ncopy one with what it needs: ff-train examples NAME")
        return 0
    chosen = list(dict.fromkeys(name for word in args.names for name in meant(word, list(found))))
    files = sorted({file for name in chosen for file in needed(f"examples/{name}.yaml")})
    copy(files, args.to)
    configs = [f"examples/{name}.yaml" for name in chosen]
    print(f"copied to {args.to.absolute()}: {', '.join(configs[:8])}{f', {len(configs) - 8} more' if len(configs) > 8 else ''}")
    start = f"cd {quote(str(args.to))} && " if args.to != Path() else ""
    print(f"start with: {start}ff-train {configs[0]} --check")
    return 0


def meant(word: str, names: Sequence[str]) -> list[str]:
    """The example of this name, or those whose names contain it.

    Raises:
        UserError: there are none.
    """
    plain = word.removeprefix("examples/").removesuffix(".yaml")
    chosen = [plain] if plain in names else [name for name in names if plain in name]
    if not chosen:
        raise UserError(f"no example has {word!r} in its name; `ff-train examples` lists them")
    return chosen


def listed() -> dict[str, str]:
    """Name without `examples/` and `.yaml` -> first comment line."""
    here = root() / "examples"
    files = sorted(file for file in here.rglob("*.yaml") if file.relative_to(here).parts[0] not in ("launch", "cluster"))
    return {file.relative_to(here).with_suffix("").as_posix(): _first(file) for file in files}


def _first(file: Path) -> str:
    line = file.read_text("utf-8").split("\n", 1)[0]
    return line.removeprefix("# ") if line.startswith("# ") else ""


def needed(path: str) -> Iterator[str]:
    """The example and the files that it needs, directly or indirectly, as paths in `root`.

    A folder stands for all of its files. A missing file is the user's own, such as a data set.
    """
    waiting, seen = [path], {path}
    while waiting:
        there = root() / (path := waiting.pop())
        files = sorted(f for f in there.rglob("*") if f.is_file() and "__pycache__" not in f.parts) if there.is_dir() else [there]
        for file in files if there.exists() else ():
            yield file.relative_to(root()).as_posix()
            more = NAMED.findall(file.read_text("utf-8")) if file.suffix == ".yaml" else ()
            waiting += [name.rstrip(".") for name in more if name.rstrip(".") not in seen]
            seen.update(name.rstrip(".") for name in more)


def copy(files: Sequence[str], to: Path) -> None:
    """Copies files of `root`. Identical files that exist already are kept.

    Raises:
        UserError: a file exists and differs: nothing was written then; or the folder cannot be written.
    """
    with file_errors("--to", to, WRITABLE):
        differing = [name for name in files if (to / name).exists() and not filecmp.cmp(root() / name, to / name, shallow=False)]
        if differing:
            raise UserError(f"--to: {to / differing[0]} exists already and differs from the example; name another folder, or move it away")
        for name in files:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            if not (to / name).exists():
                shutil.copyfile(root() / name, to / name)


def main(argv: Sequence[str] | None = None) -> int:
    """See `subcommands.done`; without arguments it lists."""
    return done(parser(), argv or ["--to", "."])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
