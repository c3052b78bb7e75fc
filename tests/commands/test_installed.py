"""The program as it is installed, started as a command from an empty folder; and users' own packages, however they are installed."""

import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from flow_factory.config import load_config
from flow_factory.config.modules import spec_of
from tests.tiny.run import ROOT, environment, logged, write_run

REWARD = "class Mine:\n    pass\n"
MODEL = "from flow_factory.models.flux1 import Flux1\nclass Mine(Flux1):\n    pass\n"
HOSTILE = "open({sign!r}, 'a').write(__name__)\nraise SystemExit('not the real module')\n"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that has all that this one has, but for flow_factory."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    others = [path for path in site.iterdir() if "flow_factory" not in path.name and path.suffix != ".pth"]
    (inner := next(folder.glob("lib/python*/site-packages"))).mkdir(exist_ok=True)
    for path in others:
        (inner / path.name).symlink_to(path)
    return folder / "bin" / "python"


def install(python: Path, *arguments: str | Path) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", *arguments]
    done = subprocess.run(command, cwd=python.parent, env=clean(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def clean() -> dict[str, str]:
    return {key: value for key, value in environment().items() if key != "PYTHONPATH"}


def started(python: Path, command: list[str], *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python.parent / command[0], *command[1:], *arguments], cwd=cwd, env=clean(), capture_output=True, text=True)


def package(folder: Path, name: str, layout: str) -> Path:
    """A user's project that can be installed."""
    inner = folder / layout / name
    inner.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "1"\n[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    )
    (inner / "parts.py").write_text(REWARD)
    (inner / "models.py").write_text(MODEL)
    if layout == "src":
        (inner / "__init__.py").touch()
    return folder


def sources(folder: Path) -> Path:
    """A copy of what an install reads, for building writes into it."""
    for name in ("flow_factory", "setup.py", "pyproject.toml", "README.md", "LICENSE", "examples", "dataset", "assets", "notebooks"):
        subprocess.run(["cp", "-r", ROOT / name, folder / name], check=True)
    return folder


def repository(folder: Path) -> str:
    """The same as pip is to clone it."""
    sources(folder)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, env=clean(), check=True)
    return f"git+file://{folder}"


INSTALLED: dict[str, Callable[[Path], list[str]]] = {
    "editable": lambda folder: ["-e", str(sources(folder))],
    "wheel": lambda folder: [str(sources(folder))],
    "git": lambda folder: [repository(folder)],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", ["editable", "wheel", pytest.param("git", marks=pytest.mark.exhaustive)])
def test_the_commands_work_from_an_empty_folder(python: Path, tmp_path: Path, how: str) -> None:
    (here := tmp_path / "empty").mkdir()
    (copy := tmp_path / "copy").mkdir()
    install(python, *INSTALLED[how](copy))
    install(python, "-e", package(tmp_path / "own", own := f"own_{how}", "src"))
    file = write_run(tmp_path)
    for command in (["ff-train"], ["flow-factory-train"], ["python", "-m", "flow_factory"], ["python", "-m", "flow_factory.train"]):
        overrides = [f"rewards.reward_model={own}.parts.Mine", f"model.model_type={own}.models.Mine", "config_file=launch/fsdp2.yaml"]
        done = started(python, command, file, *overrides, "--print-config", cwd=here)
        assert done.returncode == 0, done.stderr
        assert f"reward_model: {own}.parts.Mine" in done.stdout
    done = started(python, ["ff-train"], file, "train.max_epochs=1", cwd=here)
    assert done.returncode == 0, done.stderr
    assert not list(here.iterdir())
    assert started(python, ["ff-train"], "examples", "quickstart", cwd=here).returncode == 0
    done = started(python, ["ff-train"], "examples/quickstart.yaml", "--check", cwd=here)
    assert done.returncode == 0 and "assets/tiny-flux-shapes: on disk" in done.stdout, done.stderr


LAUNCHERS = {
    "itself": [sys.executable, "-m", "flow_factory.train", "--num_processes", "2"],
    "torchrun": ["torchrun", "--nproc_per_node=2", "-m", "flow_factory.train"],
    "accelerate": ["accelerate", "launch", "-m", "flow_factory.train"],
}


@pytest.mark.slow
@pytest.mark.parametrize("by", ["itself", "torchrun", pytest.param("accelerate", marks=pytest.mark.exhaustive)])
def test_files_of_the_current_folder_stand_in_for_no_module(tmp_path: Path, by: str) -> None:
    """Under this program's own launcher, torch's and accelerate's."""
    write_run(tmp_path)
    for name in ("torch", "accelerate", "yaml", "queue", "pathlib", "argparse", "typing", "logging"):
        (tmp_path / f"{name}.py").write_text(HOSTILE.format(sign=str(tmp_path / "sign")))
    (tmp_path / "my_rewards.py").write_text("from flow_factory.rewards.jpeg import JpegCompressibility as Mine\n")
    program, *flags = LAUNCHERS[by]
    command = [Path(sys.executable).parent / program, *flags, "tiny.yaml", "rewards.reward_model=my_rewards.Mine", "train.max_epochs=1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in logged(tmp_path / "save" / "run")] == [0, 1, 1]
    assert not (tmp_path / "sign").exists()


@pytest.mark.parametrize("layout", ["src", "namespace"])
def test_an_editable_package_of_ones_own_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    """By the finder that setuptools installs, which is asked as Python asks it."""
    from setuptools.command.editable_wheel import _finder_template

    project = package(tmp_path / "project", "ours", layout)
    name = f"__editable___ours_{layout}_finder"
    where = str(project / layout / "ours")
    maps = ({"ours": where}, {}) if layout == "src" else ({}, {"ours": [where]})
    (tmp_path / f"{name}.py").write_text("".join(_finder_template(name, *maps)))
    finders, hooks = list(sys.meta_path), list(sys.path_hooks)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", finders)
    monkeypatch.setattr(sys, "path_hooks", hooks)
    __import__(name).install()
    config = load_config(write_run(tmp_path), ["rewards.reward_model=ours.parts.Mine", "model.model_type=ours.models.Mine"])
    assert config.train.call == {"max_sequence_length": 16}
    assert "ours" not in sys.modules


def test_a_package_in_an_archive_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    package(tmp_path / "project", "zipped", "src")
    monkeypatch.syspath_prepend(shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "project" / "src"))
    assert load_config(write_run(tmp_path), ["rewards.reward_model=zipped.parts.Mine", "model.model_type=zipped.models.Mine"])


@pytest.mark.parametrize("name", ["", ".", "a..b", "no.such", "a b.c", "json.tool.x", "1.2"])
def test_what_is_no_module_is_none(name: str) -> None:
    assert spec_of(name) is None
