"""`make docs`: the pages and the references that are made from the code, as a site in build/site; a broken link is an error.

The pages are gathered in build/docs at the places that they have in the repository, with every file they lead to, so that one link is
right on the site and in the files.
"""

import logging
import os
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = "guidance"
FIRST = (
    "first_run", "workflow", "models", "algorithms", "rewards", "evaluation", "result", "recipes", "data", "new_model", "hardware",
    "performance", "scale", "faults",
)  # fmt: skip
"""The order of the guide; a page that is not named here comes after these."""
LAST = ("configuration", "metrics", "glossary", "gallery")
PROJECT = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
LINK = re.compile(r"(?<=\]\()[^)\s#]+")


def linked(page: Path) -> set[Path]:
    """The files of the repository that a page leads to."""
    targets = {Path(os.path.normpath(page.parent / link)) for link in LINK.findall(page.read_text()) if "://" not in link}
    return {target for target in targets if target.is_relative_to(ROOT) and target.is_file()}


def gathered(first: set[Path]) -> set[Path]:
    """These files, and all that they lead to."""
    found, new = set(first), set(first)
    while new:
        new = {target for page in new if page.suffix == ".md" for target in linked(page)} - found
        found |= new
    return found


def stage(docs: Path) -> list[Path]:
    """Lays the pages and their files below `docs`; returns the pages, relative to it."""
    from flow_factory.config.help import config_page

    shutil.rmtree(docs, ignore_errors=True)
    files = gathered({ROOT / "README.md", *(ROOT / name for name in PROJECT), ROOT / "tools" / "site.css", *(ROOT / PAGES).glob("*.md")})
    for file in files:
        target = docs / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    reference = docs / PAGES / "configuration.md"
    reference.write_text(config_page())
    return sorted([*(file.relative_to(ROOT) for file in files if file.suffix == ".md"), reference.relative_to(docs)])


def navigation(pages: list[Path]) -> list[dict[str, str | list[str]]]:
    """Every page once."""
    guide = [page.stem for page in pages if page.parts[0] == PAGES]
    middle = [name for name in guide if name not in (*FIRST, *LAST)]
    named = {*PROJECT, "README.md"}
    others = [str(page) for page in pages if page.parts[0] != PAGES and str(page) not in named]
    return [
        {"Start": "README.md"},
        {"Guide": [f"{PAGES}/{name}.md" for name in (*FIRST, *middle)]},
        {"Reference": [f"{PAGES}/{name}.md" for name in LAST]},
        {"Project": [*PROJECT, *others]},
    ]


def main() -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    logging.basicConfig(format="%(levelname)s: %(message)s")
    pages = stage(ROOT / "build" / "docs")
    build(load_config(str(ROOT / "mkdocs.yml"), nav=navigation(pages), strict=True))
    print(f"{len(pages)} pages: build/site/index.html")


if __name__ == "__main__":
    main()
