"""The notebook of the quick start: what is in the repository has no outputs, and runs from an empty folder."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from flow_factory.config import load_config
from flow_factory.config.source import assignment
from tests.tiny.run import ROOT

FILE = ROOT / "notebooks" / "quickstart.ipynb"
SHORT = {"EPOCHS = 15": "EPOCHS = 1", '"train.max_epochs": EPOCHS': '"train.max_epochs": EPOCHS, "eval.max_rows": 16'}
"""What a test runs in the place of a whole run."""


def cells(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(FILE.read_text())["cells"] if cell["cell_type"] == kind]


def test_it_has_no_outputs_and_each_cell_is_python() -> None:
    tree = json.loads(FILE.read_text())
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in tree["cells"])
    for text in cells("code"):
        compile("\n".join(line for line in text.splitlines() if not line.startswith("!")), "cell", "exec")
    for old in SHORT:
        assert old in "".join(cells("code"))


def test_its_keys_are_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dictionary of keys in a call of `flow_factory.train`."""
    monkeypatch.chdir(ROOT)
    load_config("examples/quickstart.yaml", [assignment(key, 2) for key in ("train.max_epochs", "eval.max_rows")])
    assert "".join(cells("code")).count("flow_factory.train(") == 2


@pytest.mark.exhaustive
def test_it_runs_from_an_empty_folder_and_shows_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook: Any = nbformat.read(FILE, as_version=4)
    for cell in notebook.cells:
        for old, new in SHORT.items():
            cell.source = cell.source.replace(old, new)
    nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    assert any("reward_strict_mean: " in output.get("text", "") for output in outputs)
    assert (tmp_path / "save" / "dark" / "checkpoints" / "epoch_2").is_dir()
