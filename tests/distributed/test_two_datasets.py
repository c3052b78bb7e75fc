"""Several data sets, each with rewards of its own, in several processes."""

from pathlib import Path

import pytest

from tests.tiny.run import ROOT
from tests.tiny.several import FULL, SMOOTH, assert_same_run, several
from tests.tiny.two_datasets import write_two

FSDP2 = f"config_file={ROOT}/examples/launch/fsdp2.yaml"
KEYS = [key for key in SMOOTH if not key.startswith("rewards.")]  # the data sets have their own


COMPILED = ("model.compile=true", "model.compile_backend=aot_eager")


@pytest.mark.exhaustive
@pytest.mark.parametrize(("keys", "more"), [((), ()), (FULL, ()), ((), COMPILED)], ids=["lora", "full", "compiled"])
def test_two_data_sets_by_fsdp2_are_the_run_of_one_process(keys: tuple[str, ...], more: tuple[str, ...], tmp_path: Path) -> None:
    """Compiled against not: what traces a block computes what the block does."""
    write_two(tmp_path)
    several(tmp_path, 1, {"one": [*KEYS, *keys]})
    for said in several(tmp_path, 2, {"two": [*KEYS, *keys, *more, FSDP2]})["two"]:
        assert said["engine"] == "FSDP2" and said["held"] < 0.6 * said["whole"]
    assert_same_run(tmp_path / "save" / "two", tmp_path / "save" / "one")
