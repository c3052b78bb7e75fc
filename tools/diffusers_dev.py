"""`make diffusers-dev SOURCE=...`: another diffusers beside the pinned one, the proofs against it, and what is new in it.

Its environment, diffusers/venv, has that one diffusers and sees everything else through the environment that this script runs in.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import xml.etree.ElementTree as ET
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HERE = ROOT / "diffusers"
PROOFS = ("tests/core/test_exactness.py", "tests/models/test_seam.py", "tests/models/test_stock.py", "tests/models/test_breadth.py")
"""Replays to the bit, forwards counted, and evaluation and saved weights against the stock pipeline, in every family; and pipelines of
`model_type: diffusers`, two of each kind."""

Look = dict[str, Any]
"""A version, and the names of its pipelines."""
NEIGHBOURS = ("transformers", "accelerate", "peft")
"""What shares diffusers' own requirements, such as the hub's client."""


def requirement(source: str) -> str:
    """What pip is asked for: a checkout's folder, a clone of an address, or a release by its number.

    Raises:
        SystemExit: none of these.
    """
    path = Path(source).expanduser()
    if source and (path / "src" / "diffusers").is_dir():
        return str(path.resolve())
    if source[:1].isdigit():
        return f"diffusers=={source}"
    if "://" in source or source.startswith("git@") or (path / "HEAD").is_file():
        checkout = HERE / "checkout"
        shutil.rmtree(checkout, ignore_errors=True)
        address = path.resolve().as_uri() if path.is_dir() else source
        ran(["git", "clone", "--quiet", "--depth", "1", address, str(checkout)])
        return str(checkout)
    raise SystemExit(
        f"SOURCE: {source!r} is not a checkout of diffusers (a folder with pyproject.toml or setup.py), no address and no release number"
    )


def ran(command: list[str], **options: Any) -> None:
    """Raises:
    SystemExit: the command failed; it has said why.
    """
    if subprocess.run(command, **options).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")


def environment(wanted: str) -> Path:
    """The interpreter of a new environment that has this diffusers, and the packages that it wants in other versions than the pinned."""
    folder = HERE / "venv"
    venv.create(folder, clear=True, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "base.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    ran([*pip, "--no-deps", "--ignore-installed", wanted])
    ran([*pip, "diffusers", *NEIGHBOURS])  # all there: pip installs what they require where a pinned version does not do
    return python


def beside(python: Path) -> list[str]:
    """The packages that this environment has in versions of its own."""
    found = distributions(path=[str(site) for site in (python.parents[1]).glob("lib/python*/site-packages")])
    return sorted(f"{package.name} {package.version}" for package in found if package.name != "diffusers")


LOOK = """
import json
import diffusers
names = sorted(name for name in dir(diffusers) if name.endswith("Pipeline"))
print(json.dumps({"version": diffusers.__version__, "file": diffusers.__file__, "pipelines": names}))
"""
FLOW = """
import inspect, json, sys
import diffusers
found = {}
for name in sys.argv[1:]:
    try:
        cls = getattr(diffusers, name)
        parts = inspect.signature(cls.__init__).parameters
        found[name] = None if "Modular" in name else "FlowMatch" in str(parts["scheduler"].annotation) if "scheduler" in parts else False
    except Exception as error:
        found[name] = str(error).splitlines()[0]
print(json.dumps(found))
"""


def look_at(python: Path | str, script: str, *arguments: str) -> Look:
    """What a script prints as JSON, under an interpreter; run outside the repository."""
    done = subprocess.run([str(python), "-c", script, *arguments], cwd="/", capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{python}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def proofs(python: Path, only: str) -> tuple[int, list[str]]:
    """How many tests passed, and which did not, each with the first line of its reason.

    Args:
        only: pytest's `-k`.
    """
    results = HERE / "proofs.xml"
    results.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-q", "-m", "not exhaustive and not gpu", f"--junitxml={results}", "-k", only, *PROOFS]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})
    if not results.is_file():
        raise SystemExit("pytest did not run")
    cases = list(ET.parse(results).iter("testcase"))
    broken = [(case, bad) for case in cases for bad in case if bad.tag in ("failure", "error")]
    names = [f"{case.get('classname')}::{case.get('name')}: {(bad.get('message') or '?').strip().splitlines()[0]}" for case, bad in broken]
    return sum(not len(case) for case in cases), names


def report(source: str, pinned: Look, other: Look, flow: dict[str, Any], packages: list[str], passed: int, broken: list[str]) -> str:
    """The page of what is new and what broke.

    Args:
        flow: a new pipeline -> whether it samples by flow matching (None: it is modular), or why it cannot be imported.
        packages: those that came along.
    """
    gone = sorted(set(pinned["pipelines"]) - set(other["pipelines"]))
    says = {
        True: "samples by flow matching: try `model_type: diffusers`", False: "no flow matching by its scheduler's type",
        None: "modular, its blocks choose the scheduler: try `model_type: diffusers` (guidance/models.md#modular-pipelines)",
    }  # fmt: skip
    new = [f"{name}: {says.get(answer, f'cannot be imported: {answer}')}" for name, answer in flow.items()]
    parts = [
        f"# diffusers {other['version']} ({source}) beside {pinned['version']}",
        f"Packages in other versions than the pinned: {', '.join(packages) or 'none'}.",
        f"## New pipelines: {len(new)}", *(f"- {line}" for line in new),
        f"## Pipelines that are gone: {len(gone)}", *(f"- {name}" for name in gone),
        f"## Proofs: {passed} passed, {len(broken)} broke", *(f"- {name}" for name in broken),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="a checkout's folder, an address to clone, or a release such as 0.41.0")
    parser.add_argument("--only", default="", help="the tests whose names match, as pytest's -k: flux1, or 'flux2 or qwen'")
    args = parser.parse_args()
    pinned = look_at(sys.executable, LOOK)
    python = environment(requirement(args.source))
    other = look_at(python, LOOK)
    assert Path(other["file"]).is_relative_to(HERE), other["file"]
    flow = look_at(python, FLOW, *sorted(set(other["pipelines"]) - set(pinned["pipelines"])))
    passed, broken = proofs(python, args.only)
    text = report(args.source, pinned, other, flow, beside(python), passed, broken)
    (HERE / "report.md").write_text(text)
    print(f"\n{text}\nwritten: diffusers/report.md; the environment: diffusers/venv")
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
