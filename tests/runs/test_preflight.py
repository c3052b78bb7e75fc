"""What a start refuses `--check` refuses, with the same line and code, and neither leaves anything."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from flow_factory.check import check, plan_lines, report
from flow_factory.config import load_config
from flow_factory.runs.preflight import Preflight, data
from tests.runs.checked import KONTEXT, refused_alike, small_picture
from tests.tiny.pipelines import saved
from tests.tiny.run import write_run


def bad_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")


def held(tmp_path: Path) -> None:
    run = tmp_path / "save" / "run"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 0}\n')


def half_picture(tmp_path: Path) -> None:
    small_picture(tmp_path)
    path = tmp_path / "data" / "images" / "a.png"
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:-1000])


SETUPS: dict[str, tuple[Callable[[Path], object] | None, tuple[str, ...], str]] = {
    "save_dir is a file": (bad_folder, ("log.save_dir={here}/file",), r"log.save_dir: .*/file: Not a directory; choose another"),
    "save_dir below a file": (bad_folder, ("log.save_dir={here}/file/x",), "log.save_dir: .*/file/x: Not a directory"),
    "save_dir a link to nothing": (bad_folder, ("log.save_dir={here}/link",), "log.save_dir: .*/link: No such file or directory"),
    "save_dir of 300 letters": (None, ("log.save_dir={here}/" + "n" * 300,), "log.save_dir: .*too long"),
    "save_dir in /proc": (None, ("log.save_dir=/proc/x",), "log.save_dir: /proc.*: No such file or directory"),
    "cache_dir is a file": (bad_folder, ("data.cache_dir={here}/file",), "data.cache_dir: .*/file: Not a directory"),
    "a folder that holds a run": (held, (), "save/run holds a run without a checkpoint"),
    "no resume_path": (None, ("model.resume_path={here}/nowhere",), "nowhere.*no such folder"),
    "resume_path is a file": (bad_folder, ("model.resume_path={here}/file",), "{here}/file"),
    "a misspelt local checkpoint": (None, ("model.model_name_or_path=./ckpt",), "'./ckpt' is neither a folder nor a hub name"),
    "a misspelt local checkpoint beside others": (None, ("model.model_name_or_path={here}/dota",), "Did you mean '{here}/data'"),
    "a device that is not there": (None, ("train.ema_device=cuda",), "train.ema_device: cuda: this machine has no cuda device; write auto"),
    "a reference's device": (None, ("train.ref_param_device=cuda:7",), "train.ref_param_device: cuda:7: this machine has"),
    "a reward's device": (None, ("rewards.device=cuda:7",), "reward 'size': device: cuda:7: this machine has"),
    "a column": (None, ("rewards.reward_model=shapes",), "reward 'size' needs the column"),
    "a size": (None, ("train.resolution=40",), "height 40, width 40"),
    "half a picture": (half_picture, KONTEXT, r"train.jsonl:1: .*a.png: damaged or truncated"),
    "a narrow picture": (small_picture, KONTEXT, r"train.jsonl:1: .*a.png: 200 x 10 pixels: too small; Kontext wants at least 16 a side"),
}  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="has the devices")
@pytest.mark.parametrize("case", SETUPS)
def test_check_and_start_refuse_alike(tmp_path: Path, case: str) -> None:
    write_run(tmp_path)
    prepare, overrides, said = SETUPS[case]
    if prepare is not None:
        prepare(tmp_path)
    named = {"here": str(tmp_path), "kontext": str(saved("flux1_kontext")) if "{kontext}" in str(overrides) else ""}
    line = refused_alike(tmp_path, *(text.format(**named) for text in overrides))
    assert re.search(said.replace("{here}", str(tmp_path)), line), line


def test_a_second_check_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    small_picture(tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "data" / "images" / "a.png")
    overrides = [text.format(kontext=saved("flux1_kontext")) for text in KONTEXT]
    check(load_config(tmp_path / "tiny.yaml", overrides))
    monkeypatch.setattr("flow_factory.data.inspection.check_whole", lambda *_: pytest.fail("decoded again"))
    assert "condition files, all of each decoded: 1 images" in check(load_config(tmp_path / "tiny.yaml", overrides))
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["media.jsonl"] and not (tmp_path / "save").exists()


REWARD = """\
import os
from flow_factory.rewards import PointwiseRewardModel


class NeedsKey(PointwiseRewardModel):
    required_fields = ("image",)
    loads_weights = {loads}

    def __init__(self, config, accelerator):
        super().__init__(config, accelerator)
        self.key = os.environ["THE_KEY_THAT_NOBODY_HAS"]

    def __call__(self, image, **others):
        return [0.0] * len(image)
"""


@pytest.mark.parametrize("loads", [True, False])
def test_a_reward_is_constructed_where_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: bool) -> None:
    write_run(tmp_path)
    (tmp_path / f"keyed_{loads}.py").write_text(REWARD.format(loads=loads))
    monkeypatch.syspath_prepend(tmp_path)
    overrides = [f"rewards.reward_model=keyed_{loads}.NeedsKey"]
    if loads:
        check(load_config(tmp_path / "tiny.yaml", overrides))
    else:
        line = refused_alike(tmp_path, *overrides)
        assert "reward 'size' cannot be constructed" in line and "THE_KEY_THAT_NOBODY_HAS" in line


def test_a_check_for_other_cards_asks_nothing_of_this_machines(tmp_path: Path) -> None:
    write_run(tmp_path)
    config = load_config(tmp_path / "tiny.yaml", ["train.ema_device=cuda"])
    assert "memory of one process" in report(config, 24.0)[0]


def test_more_rows_an_epoch_than_there_are_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data(Preflight(load_config(write_run(tmp_path), ["train.unique_sample_num_per_epoch=8"])))
    assert "unique_sample_num_per_epoch: 8 is more than the 6 rows" in caplog.text


def test_the_plan_says_where_a_run_without_a_name_will_be(tmp_path: Path) -> None:
    lines = "\n".join(plan_lines(load_config(write_run(tmp_path), ["run_name=null"])))
    assert f"under {tmp_path}/save/flux1_lora_grpo_<time> (run_name gives it another name)" in lines
