"""A checkpoint comes to a machine, and into its main memory, by one process."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flow_factory.distributed import read_ahead
from flow_factory.models import loading
from flow_factory.models.flux1 import Flux1
from tests.tiny.hub import COMMIT, Repo, hub
from tests.tiny.run import checkpoint, environment, write_run


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(file, first byte) of all that is read ahead; a piece is 1,000 bytes."""
    said: list[tuple[str, int]] = []
    monkeypatch.setattr(read_ahead, "PIECE", 1000)
    monkeypatch.setattr(read_ahead, "_piece", lambda file, begin, buffer: said.append((file.name, begin)))
    return said


def whole(files: list[Path]) -> None:
    """Inside until all is read, as loading is."""
    with read_ahead.read_ahead(files):
        for thread in threading.enumerate():
            if thread.name == "read ahead":
                thread.join()


def test_the_first_process_reads_all_from_begin_to_end(opened: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file, size in zip(files, (2500, 1000), strict=True):
        file.write_bytes(bytes(size))
    whole(files)
    assert opened == [("a", 0), ("a", 1000), ("a", 2000), ("b", 0)]
    opened.clear()
    monkeypatch.setenv("LOCAL_RANK", "1")
    whole(files)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(read_ahead, "ROOM", 1e-9)
    whole(files)
    assert opened == [], "the others find it in memory; and what does not fit there is not read"


def test_the_weights_of_the_parts_that_are_loaded_are_read_in_the_order_of_loading(opened: list) -> None:
    loading.load_adapter(str(checkpoint()), "flux1", without=("text_encoder", "text_encoder_2"))
    files = loading.files_of(str(checkpoint()), loading.model_index(str(checkpoint())))
    names = [file.parent.name for file in files]
    assert sorted(names) == ["text_encoder", "text_encoder_2", "transformer", "vae"]
    assert {name for name, _ in opened} <= {"diffusion_pytorch_model.safetensors"}, "no encoder's"


def test_a_hub_name_is_downloaded_by_one_process_and_only_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipeline:
        calls: list[tuple[str, bool]] = []

        @classmethod
        def download(cls, name: str, use_safetensors: bool) -> None:
            cls.calls.append((name, use_safetensors))

    monkeypatch.setattr(loading, "import_pipeline", lambda path: Pipeline)
    for rank, there, expected in (("0", None, 1), ("1", None, 0), ("0", Path("there"), 0)):
        Pipeline.calls.clear()
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setattr(loading, "on_disk", lambda name, there=there: there)
        loading.download("owner/name", Flux1)
        assert Pipeline.calls == [("owner/name", True)] * expected


@pytest.mark.exhaustive
def test_two_processes_of_a_machine_ask_the_hub_once_for_each_file(tmp_path: Path) -> None:
    files = {str(file.relative_to(checkpoint())): file.read_bytes() for file in checkpoint().rglob("*") if file.is_file()}
    repo = Repo({COMMIT: files})
    write_run(tmp_path)
    keys = ["model.model_name_or_path=owner/tiny", "train.max_epochs=1", "eval.eval_freq=0"]
    with hub({"owner/tiny": repo}) as address:
        mine = environment(HF_ENDPOINT=address, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="0", NO_PROXY="127.0.0.1")
        command = [sys.executable, "-m", "flow_factory", "tiny.yaml", "--num_processes", "2", *keys]
        done = subprocess.run(command, cwd=tmp_path, env=mine, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(repo.asked) == sorted(set(repo.asked)), "each once"
    assert {name for name in files if name.endswith(".safetensors")} <= set(repo.asked)
