"""The files around the code agree with each other: workflow, image, pre-commit, package lists and the place of a diffusers checkout."""

import importlib.util
import re
import subprocess
import sys
import tarfile
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import diffusers
import pytest
import yaml

from flow_factory.config.modules import spec_of
from tests.tiny.run import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


def test_every_command_of_the_workflow_is_a_target_and_every_python_is_tried() -> None:
    steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    targets = re.findall(r"^make ([\w-]+)$", "\n".join(step.get("run", "") for step in steps), re.MULTILINE)
    assert {"lint", "test-fast", "test", "test-gpu", "package", "docs"} == set(targets)
    assert all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in targets)
    assert WORKFLOW["jobs"]["fast"]["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(10, 14)]
    assert 'requires-python = ">=3.10,<3.14"' in PROJECT


def test_what_the_image_copies_is_there_and_is_not_left_out() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (?:--\S+ )?(.*)", text, re.MULTILINE) for name in line.split()[:-1]}
    kept = set(re.findall(r"^!(.*)", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert copied == kept and all((ROOT / name).exists() for name in copied)
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    assert [stage.split(" AS ")[1].split()[0] for stage in stages] == ["cpu", "cuda"]
    assert all("\nUSER 1001\n" in stage and 'CMD ["ff-train", "examples/quickstart.yaml"]' in stage for stage in stages)


def test_the_tools_of_pre_commit_are_those_of_make_lint() -> None:
    hooks = [hook for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for hook in repo["hooks"]]
    tools = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    assert tools == set(re.findall(r"^\t\$\(BIN\)/(ruff|mypy)", MAKEFILE, re.MULTILINE))
    pinned = (ROOT / "constraints.txt").read_text()
    assert all(f'"{tool}>=' in PROJECT and f"\n{tool}==" in pinned for tool in tools)


def test_the_fast_subsets_of_the_contributors_page_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"(?<![\w/])((?:tests|flow_factory|guidance)/[\w./*]*)", text))
    assert len(named) > 25 and [name for name in sorted(named) if not list(ROOT.glob(name.rstrip("./")))] == []


@pytest.mark.slow
def test_the_sdist_has_what_the_quick_start_and_the_tests_need(tmp_path: Path) -> None:
    for path in ROOT.iterdir():
        if path.name not in ("build", ".git", ".venv", "save") and not path.name.startswith(".venv"):
            subprocess.run(["cp", "-r", path, tmp_path], check=True)
    build = "from setuptools.build_meta import build_sdist; print(build_sdist('out'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "out" / done.stdout.split()[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    known = {name for name in listed.stdout.split("\n") if name and (ROOT / name).is_file()} or {"examples/quickstart.yaml"}
    assert sorted(name for name in known - names if not name.startswith(".")) == []


# -- a checkout of diffusers in its folder ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("diffusers_dev", ROOT / "tools" / "diffusers_dev.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_a_checkout_stands_in_for_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python started in the repository looks there first: a folder without `__init__.py` comes after every real package."""
    inner = tmp_path / "diffusers" / "checkout" / "src" / "diffusers"
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text("raise SystemExit('the checkout')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(ROOT), *sys.path])
    found = [PathFinder.find_spec("diffusers", sys.path), PathFinder.find_spec("diffusers", ["", *sys.path]), spec_of("diffusers")]
    assert {spec.origin for spec in found if spec} == {diffusers.__file__} and None not in found
    assert not (ROOT / "diffusers" / "__init__.py").exists()


def test_a_source_is_a_checkout_or_a_release_and_anything_else_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "src" / "diffusers").mkdir(parents=True)
    assert tool.requirement(str(tmp_path)) == str(tmp_path) and tool.requirement("0.41.0") == "diffusers==0.41.0"
    for wrong in ("", "nowhere", str(tmp_path / "absent")):
        with pytest.raises(SystemExit, match="is not a checkout of diffusers"):
            tool.requirement(wrong)


def test_a_report_says_what_is_new_what_is_gone_and_what_broke(tool: ModuleType) -> None:
    old, new = {"version": "1", "pipelines": ["A", "B"]}, {"version": "2", "pipelines": ["B", "C", "D", "E", "F"]}
    text = tool.report(
        "main", old, new, {"C": True, "D": False, "E": "No module named 'x'", "F": None}, ["hub 3"], 7, ["test_seam::flux: off"]
    )
    for line in (
        "# diffusers 2 (main) beside 1", "new pipelines: 4", "C: samples by flow matching", "E: cannot be imported",
        "F: modular", "gone: 1", "- A", "7 passed, 1 broke", "- test_seam::flux: off", "hub 3",
    ):  # fmt: skip
        assert line.lower() in text.lower()
