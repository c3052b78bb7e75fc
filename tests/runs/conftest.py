"""A folder with a run that has ended."""

import shutil
from pathlib import Path

import pytest

from tests.runs.folders import STATES
from tests.tiny.run import tiny, write_run


@pytest.fixture(scope="session")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two epochs, and its YAML; not to be written to."""
    folder = tmp_path_factory.mktemp("ended")
    tiny(folder, *STATES)()
    return folder


@pytest.fixture
def home(tmp_path: Path, ended: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the current folder."""
    shutil.copytree(ended, tmp_path, dirs_exist_ok=True)
    shutil.copytree(ended / "save" / "run", tmp_path / "save" / "elsewhere")
    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
