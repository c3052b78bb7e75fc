"""What a start refuses `--check` refuses, with the same line and code, and neither leaves anything."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flow_factory.check import check, report
from flow_factory.config import load_config
from flow_factory.models.loading import LoadError, load_adapter
from flow_factory.runs.preflight import Preflight, data
from flow_factory.utils.errors import UserError
from tests.tiny.hub import cached
from tests.tiny.pipelines import saved
from tests.tiny.run import checkpoint, tiny, write_rows, write_run

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
Spoil = Callable[[Path], object]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def rewritten(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def sharded(folder: Path) -> None:
    """An index whose second file is not there."""
    file = folder / WEIGHTS
    names = list(load_file(file))
    file.rename(file.with_name("a.safetensors"))
    places = dict.fromkeys(names, "a.safetensors") | {names[0]: "b.safetensors"}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


CHECKPOINTS: dict[str, tuple[Spoil, str]] = {
    "truncated": (lambda f: cut(f / WEIGHTS), f"{WEIGHTS} is truncated or damaged: .* bytes, and its header says"),
    "truncated encoder": (lambda f: cut(f / "text_encoder/model.safetensors"), "model.safetensors is truncated"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is damaged: its header cannot be read"),
    "no header": (lambda f: (f / WEIGHTS).write_bytes(b"hello, world" * 99), f"{WEIGHTS} is damaged"),
    "a deep header": (lambda f: (f / WEIGHTS).write_bytes(b"\x10\x27" + bytes(6) + b"[" * 10_000), f"{WEIGHTS} is damaged"),
    "missing": (lambda f: (f / WEIGHTS).unlink(), "transformer has no diffusion_pytorch_model.safetensors, only config.json"),
    "missing shard": (sharded, "b.safetensors is missing, and .*index.json names it"),
    "missing tensor": (
        lambda f: rewritten(f / WEIGHTS, lambda t: t.pop("proj_out.weight")), "transformer lacks the tensor 'proj_out.weight'",
    ),
    "another shape": (
        lambda f: rewritten(f / WEIGHTS, lambda t: t.update({"proj_out.weight": torch.ones(3)})), r"'proj_out.weight' is \[3\] in the file",
    ),
    "pickles": (
        lambda f: (f / "vae/diffusion_pytorch_model.safetensors").rename(f / "vae/diffusion_pytorch_model.bin"),
        r"vae has its weights as a pickle \(diffusion_pytorch_model.bin\), which can run code",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer_2"), "tokenizer_2 is missing: model_index.json names a T5Tokenizer"),
    "half a tokenizer": (lambda f: cut(f / "tokenizer/tokenizer.json"), "tokenizer does not load as CLIPTokenizer"),
    "no encoder's config": (lambda f: (f / "text_encoder/config.json").unlink(), "text_encoder/config.json: No such file"),
    "no index": (lambda f: (f / "model_index.json").write_text("[]"), "does not load as FluxPipeline"),
    "another pipeline": (lambda f: (f / "model_index.json").write_text('{"_class_name": "WanPipeline"}'), "is a WanPipeline, not a Flux"),
}  # fmt: skip


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() and not p.is_symlink() else b"" for p in folder.rglob("*")}


def refused_alike(folder: Path, *overrides: str) -> str:
    """The line with which both refuse."""
    before = files(folder)
    said = {refusal(lambda: check(load_config(folder / "tiny.yaml", overrides))), refusal(lambda: tiny(folder, *overrides))}
    assert len(said) == 1
    assert {k: v for k, v in files(folder).items() if not k.endswith("media.jsonl") and k != str(folder / "cache")} == before
    return said.pop()


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_is_looked_at_before_anything_is_loaded(tmp_path: Path, case: str) -> None:
    write_run(tmp_path)
    spoil, said = CHECKPOINTS[case]
    folder = shutil.copytree(checkpoint(), tmp_path / "flux")
    spoil(folder)
    assert re.search(f"^model.model_name_or_path: .*{said}", refused_alike(tmp_path, f"model.model_name_or_path={folder}"))


def bad_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")


def held(tmp_path: Path) -> None:
    run = tmp_path / "save" / "run"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 0}\n')


def small_picture(tmp_path: Path) -> None:
    write_rows(tmp_path / "data" / "train.jsonl", [{"prompt": "a", "image": "a.png"}])
    write_rows(tmp_path / "data" / "test.jsonl", [{"prompt": "a", "image": "a.png"}])
    (tmp_path / "data" / "images").mkdir()
    Image.new("RGB", (200, 10)).save(tmp_path / "data" / "images" / "a.png")


def half_picture(tmp_path: Path) -> None:
    small_picture(tmp_path)
    path = tmp_path / "data" / "images" / "a.png"
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:-1000])


KONTEXT = ("model.model_name_or_path={kontext}", "model.model_type=flux1-kontext", "train.max_sequence_length=32")
SETUPS: dict[str, tuple[Callable[[Path], object] | None, tuple[str, ...], str]] = {
    "save_dir is a file": (bad_folder, ("log.save_dir={here}/file",), r"log.save_dir: .*/file: Not a directory; choose another"),
    "save_dir below a file": (bad_folder, ("log.save_dir={here}/file/x",), "log.save_dir: .*/file/x: Not a directory"),
    "save_dir a link to nothing": (bad_folder, ("log.save_dir={here}/link",), "log.save_dir: .*/link: No such file or directory"),
    "save_dir of 300 letters": (None, ("log.save_dir={here}/" + "n" * 300,), "log.save_dir: .*too long"),
    "save_dir in /proc": (None, ("log.save_dir=/proc/x",), "log.save_dir: /proc.*: No such file or directory"),
    "cache_dir is a file": (bad_folder, ("data.cache_dir={here}/file",), "data.cache_dir: .*/file: Not a directory"),
    "a folder that holds a run": (held, (), "save/run holds a run already"),
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


SNAPSHOTS = {
    "truncated": (CHECKPOINTS["truncated"][0], (), f"{WEIGHTS} is truncated or damaged"),
    "another shape": (CHECKPOINTS["another shape"][0], (), r"'proj_out.weight' is \[3\] in the file"),
    "missing": (CHECKPOINTS["missing"][0], (), "has no .*, only config.json; it is not in the hub's cache, and nobody answers"),
    "no encoder's config": (CHECKPOINTS["no encoder's config"][0], (), "config.json: No such file .*; it is not in the hub's cache, and"),
    "a size": (lambda f: None, ("train.resolution=40",), "height 40, width 40"),
    "a narrow picture": (lambda f: None, KONTEXT[1:], r"train.jsonl:1: .*a.png: 200 x 10 pixels: too small; Kontext wants"),
}


@pytest.mark.parametrize("case", SNAPSHOTS)
def test_a_snapshot_of_the_hub_is_checked_as_a_folder_is(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    spoil, overrides, said = SNAPSHOTS[case]
    if "picture" in case:
        small_picture(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = cached("owner/model", saved("flux1_kontext") if "picture" in case else checkpoint(), tmp_path / "hub")
    given = load_config(tmp_path / "tiny.yaml", ["model.model_name_or_path=owner/model", *overrides])
    if not overrides:
        assert "owner/model: in the hub's cache" in check(given)
    spoil(snapshot)
    for here in (False, True):
        monkeypatch.setattr("flow_factory.utils.pretrained.unreachable", lambda here=here: None if here else "nobody answers")
        if here and "not in the hub" in said:  # a start downloads the rest
            check(given)
        else:
            assert re.search(f"{said}", refusal(lambda: check(given)))


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


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("part", ["transformer/diffusion_pytorch_model", "text_encoder_2/model", "vae/diffusion_pytorch_model"])
def test_weights_that_are_no_numbers_are_named_when_they_are_loaded(tmp_path: Path, value: str, part: str) -> None:
    folder = shutil.copytree(checkpoint(), tmp_path / "flux")
    last: list[str] = []

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        last.append(next(k for k in reversed(tensors) if tensors[k].ndim > 1))
        tensors[last[0]].view(-1)[3] = float(value)

    rewritten(folder / f"{part}.safetensors", spoil)
    with pytest.raises(LoadError, match=rf"{part.partition('/')[0]}: '.*{last[0].rpartition('.')[0]}.*' is not a number") as error:
        load_adapter(str(folder), "flux1")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("part", "name"), [
    ("text_encoder_2/model", "encoder.block.0.layer.0.SelfAttention.q.weight"), ("vae/diffusion_pytorch_model", "decoder.conv_in.weight"),
    ("text_encoder/model", "text_model.encoder.layers.0.mlp.fc1.weight"),
])  # fmt: skip
def test_weights_that_no_file_has_are_not_drawn_by_chance(tmp_path: Path, part: str, name: str) -> None:
    folder = shutil.copytree(checkpoint(), tmp_path / "flux")
    rewritten(folder / f"{part}.safetensors", lambda t: t.pop(next(k for k in t if k.endswith(name.removeprefix("text_model.")))))
    with pytest.raises(LoadError, match="lacks the tensor|does not load as FluxPipeline"):
        load_adapter(str(folder), "flux1")


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint(), tmp_path / "flux")
    (folder / WEIGHTS).unlink()
    torch.save({"x": torch.ones(1)}, folder / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(LoadError, match="does not load as FluxPipeline"):
        load_adapter(str(folder), "flux1")


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
