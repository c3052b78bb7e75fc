"""The site of the pages: every link leads somewhere, every key is in the reference, and a page loads nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flow_factory.config import TRAIN_CONFIGS
from flow_factory.config.help import SECTIONS, config_page
from tests.tiny.run import ROOT, environment

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "guidance").glob("*.md")), ROOT / "diffusers" / "README.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and the site make them."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), f"{link}: there is no such file"
        assert not heading or heading in anchors(target), f"{link}: there is no such heading"


def test_the_reference_has_every_key_with_its_type_its_default_and_its_meaning() -> None:
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in config_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 150 and all(len(row) == 4 and all(cell.strip() for cell in row) for row in rows)
    keys = {row[0].strip(" `") for row in rows}
    schemas = [schema for name, schemas in SECTIONS.items() if name != "run" for schema in (*schemas, *TRAIN_CONFIGS.values())]
    assert {key for schema in schemas for key in schema.own_keys()} <= keys


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """From a copy of what it reads, for building writes beside it."""
    names = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "mkdocs.yml"]
    folders = ["guidance", "tools", "assets", "benchmarks", "dataset", "diffusers", "examples", "notebooks", "tests"]
    for name in (*names, *folders):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "guidance").unlink()
    subprocess.run(["cp", "-r", ROOT / "guidance", tmp_path], check=True)
    done = built(tmp_path)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "build" / "site"
    text = "".join(page.read_text() for page in site.rglob("*.html"))
    assert not re.findall(
        r'<(?:script|img|iframe|source)[^>]*\bsrc="(?:https?:)?//[^"]*|<link[^>]*stylesheet[^>]*href="(?:https?:)?//', text
    )
    assert "learning_rate" in (site / "guidance" / "configuration.html").read_text()
    for page in (ROOT / "guidance").glob("*.md"):
        assert (site / "guidance" / f"{page.stem}.html").is_file()
    (tmp_path / "guidance" / "scratch.md").write_text("# Scratch\n\n[gone](no_such_page.md)\n")
    assert "no_such_page.md" in (refused := built(tmp_path)).stderr and refused.returncode != 0


def built(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/make_site.py"]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
