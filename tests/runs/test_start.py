"""What is found out before a run begins, and said in a sentence."""

import logging
import shutil
import sys
from pathlib import Path

import pytest

from flow_factory.data.cache_folder import cached_rows
from flow_factory.utils.errors import UserError
from tests.tiny.run import TRAIN, checkpoint, tiny, write_rows, write_run


def test_a_prompt_that_is_cut_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path)
    write_rows(tmp_path / "data" / "train.jsonl", [{"prompt": p} for p in [*TRAIN, "a dog and a cat " * 9, "red " * 20]])
    with caplog.at_level(logging.WARNING):
        tiny(tmp_path, "train.max_epochs=4")  # which draw every row
    (said,) = [r.getMessage() for r in caplog.records if r.name.startswith("flow_factory") and "truncated" in r.getMessage()]
    assert said.startswith("2 of 8 prompts are longer than the encoder takes (16 tokens)")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.resolution=[40, 72]"], "height 40, width 72: .*multiples of 16 pixels; the nearest size is 32 x 64"),
        (["eval.width=40"], "eval: height 32, width 40: .*multiples of 16 pixels"),
        (["eval.max_sequence_length=513"], "eval: max_sequence_length 513: FluxPipeline refuses it: .*cannot be greater than 512"),
        (["train.max_sequence_length=513"], "train: max_sequence_length 513: FluxPipeline refuses it: "),
        (["model.target_modules=attn.to_w"], "'attn.to_w' fits no linear layer of transformer; near ones: .*to_"),
        (["model.attn_backend=flash"], "'flash' does not work on this cpu machine .* Those that do: .*native"),
        (["model.model_name_or_path=data"], "'data' does not load as FluxPipeline"),
        (["log.logging_backend=swanlab", "model.model_name_or_path=nowhere/at-all"], "swanlab, which is not installed"),
        (["data.dataset_dir=nowhere"], "no data set folder nowhere"),
    ],
)  # fmt: skip
def test_what_this_machine_or_checkpoint_lacks_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "swanlab", None)
    with pytest.raises(UserError, match=message):
        tiny(tmp_path, *overrides)


def test_rows_are_encoded_anew_where_the_tokenizer_has_changed(tmp_path: Path) -> None:
    write_run(tmp_path)
    flux = shutil.copytree(checkpoint(), tmp_path / "flux")
    many = []
    for swap in (False, False, True):
        if swap:
            file = flux / "tokenizer_2" / "tokenizer.json"
            file.write_text(file.read_text().replace("red", "rid").replace("blue", "red").replace("rid", "blue"))
        tiny(tmp_path, f"model.model_name_or_path={flux}", "train.max_epochs=3")  # which draw every row
        many.append(sum(stock.rows for stock in cached_rows(tmp_path / "cache")))
    assert many == [10, 10, 20]


def test_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    tiny(tmp_path).evaluate()
    with pytest.raises(UserError, match=r"save/run holds a run without a checkpoint: choose another run_name, or start it anew in this "):
        tiny(tmp_path)
    other = tiny(tmp_path, "run_name=my other")
    other.save(state=True)
    other.saver.wait()
    with pytest.raises(UserError, match=r"or resume with 'model.resume_path=\S*save/my other'$"):
        tiny(tmp_path, "run_name=my other")


def test_a_start_that_failed_does_not_stand_in_the_way_of_the_next(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        tiny(tmp_path, "model.target_modules=attn.to_w")
    tiny(tmp_path)
