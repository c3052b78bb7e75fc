"""A start that is refused leaves a run's folder to the byte as it was, and a check says the same."""

import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from flow_factory.checkpoints.lora_file import LORA_FILE
from flow_factory.config import load_config
from flow_factory.runs.preflight import ready
from flow_factory.runs.resume import Finished, find_start, start_lines
from flow_factory.utils.errors import UserError
from tests.runs.folders import MORE, OWN, STATES, children, claimed, tree
from tests.tiny.run import tiny

REFUSED = {
    "another run's name": ((), "save/run holds a run already: choose another run_name, or resume with model.resume_path="),
    "another run's checkpoint": (("model.resume_path=save/elsewhere", "train.max_epochs=3"), "save/run holds a run already"),
    "finished": ((OWN,), "epoch_2 has 2 epochs, and train.max_epochs is 2: nothing is left to do; raise it to continue"),
    "finished auto": (("model.resume_path=auto",), "nothing is left to do"),
    "finished in another folder": (
        (OWN, "run_name=new"),
        "epoch_2 has 2 epochs, and train.max_epochs is 2: nothing is left to do; raise it to continue .a run in .*save/new would train",
    ),
    "finished in another save_dir": ((OWN, "run_name=null", "log.save_dir=mine"), "nothing is left to do; .* .a run in mine would train"),
    "finished, of another algorithm": ((OWN, "train.trainer_type=awm"), "another run: train.trainer_type was .grpo., and is .awm."),
    "finished, of another rank": ((OWN, "model.lora_rank=4", "run_name=new"), "another run: model.lora_rank was 8, and is 4"),
    "finished auto, of another rank": (("model.resume_path=auto", "model.lora_rank=4"), "another run: model.lora_rank was 8, and is 4"),
    "gone": (("model.resume_path=gone", "run_name=new"), "gone is not a checkpoint .no such folder or file."),
    "no checkpoint": (("model.resume_path=data", "run_name=new"), "data is not a checkpoint"),
    "rank": ((*MORE, "model.lora_rank=4"), "another run: model.lora_rank was 8, and is 4"),
    "alpha": ((*MORE, "model.lora_alpha=64"), "another run: model.lora_alpha was 16, and is 64"),
    "scale": ((*MORE, "model.use_rslora=true"), "another run: model.use_rslora was false, and is true"),
    "algorithm": ((*MORE, "train.trainer_type=awm"), "another run: train.trainer_type"),
    "no average": ((*MORE, "train.ema_decay=0"), "does not fit this run: the saved copies"),
    "targets": ((*MORE, "model.target_modules=[attn.to_q]"), "does not fit this run: first at"),
    "all weights": ((*MORE, "model.master_weight_dtype=fp32", "model.finetune_type=full"), "another run: model.finetune_type"),
    "weights alone in their folder": (
        (OWN, "model.resume_type=lora"),
        "save/run cannot go on from .*epoch_2: by resume_type: lora its weights alone are loaded; leave it out to resume, or",
    ),
    "a file in its run's folder": (
        (f"model.resume_path=save/run/checkpoints/epoch_2/{LORA_FILE}",),
        f"save/run cannot go on from .*epoch_2/{LORA_FILE}: a file has weights alone, and no training state; choose another",
    ),
    "no such layer": (("run_name=new", "model.target_modules=attn.to_w"), "fits no linear layer"),
    "no such tracker": (("run_name=new", "log.logging_backend=swanlab"), "swanlab, which is not installed"),
    "no such tracker later": ((*MORE, "log.logging_backend=tests.runs.test_refused_starts.Unwilling"), "not today"),
    "an untidy tracker": (("run_name=new", "log.logging_backend=tests.runs.test_refused_starts.Untidy"), "not today"),
    "out of save_dir": (("run_name=../new",), "log.run_name: '../new' is not inside log.save_dir"),
    "out of save_dir, absolute": (("run_name=/tmp/new",), "log.run_name: '/tmp/new' is not inside"),
    "save_dir itself": (("run_name=.",), "log.run_name: '.' is not inside"),
    "a new save_dir": (("log.save_dir=deep/down", "model.target_modules=attn.to_w"), "fits no linear layer"),
    "a file as save_dir": (("log.save_dir=tiny.yaml",), "log.save_dir: .*tiny.yaml.*: "),
}  # fmt: skip


class Unwilling:
    """A tracker that does not start."""

    def __init__(self, *given: object):
        raise UserError("not today")


class Untidy(Unwilling):
    """One that has written by then."""

    def __init__(self, project: str, run_name: str, run_dir: Path, config: object):
        (run_dir / "logs").mkdir()
        super().__init__()


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_start_changes_no_byte(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "swanlab", None)
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    keys, message = REFUSED[name]
    before = tree(home)
    with pytest.raises((UserError, Finished), match=message) as error:
        tiny(home, *STATES, *keys)
    assert "\n" not in str(error.value)
    assert tree(home) == before


def test_weights_alone_are_not_emptied_by_auto(tmp_path: Path) -> None:
    tiny(tmp_path, "train.max_epochs=1", "eval.eval_freq=0")()
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"save/run cannot go on from \S+epoch_1: of it weights are loaded, and no training state"):
        tiny(tmp_path, *STATES, "model.resume_path=auto")
    assert tree(tmp_path) == before


def test_what_a_refusal_of_a_taken_folder_advises_is_a_start(home: Path) -> None:
    """Of a run that failed in its first epoch, and of one that saved weights alone."""
    run = home / "save" / "run"
    shutil.move(run / "checkpoints", home / "aside")
    for keys in ((), ("model.resume_path=aside/epoch_2", "train.max_epochs=3")):
        with pytest.raises(UserError, match="save/run holds a run without a checkpoint: .* in this folder with model.resume_path=auto$"):
            tiny(home, *STATES, *keys)
    with pytest.raises(UserError, match="a run without a checkpoint; .*; with its run_name, model.resume_path=auto starts it anew$"):
        tiny(home, *STATES, OWN)
    assert not tiny(home, *STATES, "model.resume_path=auto").context.progress.epoch
    shutil.move(home / "aside", run / "checkpoints")
    for checkpoint in (run / "checkpoints").iterdir():
        shutil.rmtree(checkpoint / "state")
    with pytest.raises(UserError, match="without a training state .*: choose another run_name, and to start from its weights .*save/run$"):
        tiny(home, *STATES)
    assert find_start(load_config(home / "tiny.yaml", [*STATES, OWN, "run_name=new"])).kind == "lora"


def test_a_state_that_is_not_among_the_checkpoints_of_its_run_is_said_to_be_elsewhere(home: Path) -> None:
    shutil.copytree("save/run/checkpoints/epoch_2", "save/run/kept/deep/epoch_2")
    with pytest.raises(
        UserError, match="cannot go on from save/run/kept/deep/epoch_2: it is not in .*save/run/checkpoints; choose another"
    ):
        tiny(home, *STATES, "model.resume_path=save/run/kept/deep/epoch_2", "train.max_epochs=3")


def test_another_base_model_is_refused(home: Path) -> None:
    """Of the same architecture, and as large; the same one elsewhere is the same."""
    config = load_config(home / "tiny.yaml", [*STATES, *MORE])
    shutil.copytree(config.model.model_name_or_path, home / "other")
    (file,) = (home / "other" / "transformer").glob("*.safetensors")
    tensors = {name: t.clone() for name, t in load_file(file).items()}
    save_file(tensors | {"proj_out.weight": tensors["proj_out.weight"] * 1.01}, file)
    before = tree(home)
    with pytest.raises(UserError, match="another run: model.model_name_or_path has other weights than it was trained on"):
        tiny(home, *STATES, *MORE, "model.model_name_or_path=other")
    assert tree(home) == before
    shutil.rmtree(home / "other")
    shutil.copytree(config.model.model_name_or_path, home / "other")
    tiny(home, *STATES, *MORE, "model.model_name_or_path=other")


@pytest.mark.parametrize(("file", "text", "message"), [
    ("save/run/metrics.jsonl", b'{"step": 1}\nno\n', "metrics.jsonl is damaged: ValueError: .*metrics.jsonl:2: not JSON"),
    ("save/run/metrics.jsonl", b"[1]\n", "metrics.jsonl is damaged: ValueError: .*metrics.jsonl:1: no metrics of a step"),
    ("save/run/metrics.jsonl", b"\xff\n", "metrics.jsonl is damaged: UnicodeDecodeError"),
    ("save/run/monitor.jsonl", b"x\n", "monitor.jsonl is damaged: ValueError: .*monitor.jsonl:1: not JSON"),
    ("save/run/monitor.jsonl", b"{}\n", "monitor.jsonl is damaged: ValueError: .*monitor.jsonl:1: no alarm of a step"),
    ("other/transformer/diffusion_pytorch_model.safetensors", b"no", "diffusion_pytorch_model.safetensors is damaged: "),
    ("other/transformer/diffusion_pytorch_model.safetensors", b"\xff" * 40, "diffusion_pytorch_model.safetensors is damaged: "),
])  # fmt: skip
def test_a_damaged_file_is_named_and_nothing_changes(home: Path, file: str, text: bytes, message: str) -> None:
    shutil.copytree(load_config(home / "tiny.yaml").model.model_name_or_path, home / "other")
    (home / file).write_bytes(text)
    before = tree(home)
    with pytest.raises(UserError, match=message) as error:
        tiny(home, *STATES, *MORE, "model.model_name_or_path=other")
    assert "\n" not in str(error.value)
    assert tree(home) == before


# -- a check says the same ------------------------------------------------------------------------------------------------------------


def test_a_check_says_what_a_start_would_do(home: Path) -> None:
    def said(*keys: str) -> list[str]:
        found = ready(load_config(home / "tiny.yaml", [*STATES, *keys]))
        return [str(found.finished)] if found.finished else start_lines(found.requested, found.start, found.changed)

    before, last = tree(home), "save/run/checkpoints/epoch_2"
    run = home / "save" / "run"
    assert said("run_name=new") == [f"a new run, in {home}/save/new"]
    assert said("run_name=null") == [f"a new run, in a new folder in {home}/save"]
    assert said(*MORE, "train.seed=1") == [f"resumes from {last}, after epoch 2, in {run}", "train.seed was 42 and is 1"]
    assert said(f"model.resume_path={last}", "model.resume_type=lora", "run_name=b") == [
        f"a new run from the weights of {last}, in {home}/save/b"
    ]
    assert said(OWN) == [f"{last} has 2 epochs, and train.max_epochs is 2: nothing is left to do; raise it to continue"]
    for name in (
        "another run's name",
        "rank",
        "finished in another folder",
        "finished, of another algorithm",
        "gone",
        "weights alone in their folder",
        "out of save_dir",
        "a file as save_dir",
    ):
        with pytest.raises(UserError, match=REFUSED[name][1]):
            said(*REFUSED[name][0])
    with children(1, lambda _: claimed(run)):
        for keys in (MORE, (), REFUSED["another run's checkpoint"][0]):
            with pytest.raises(UserError, match="is in use by another run"):
                said(*keys)
    assert not (before.keys() ^ tree(home).keys()) - {"save/run/.lock", "save/run/summary.md"}, "but what the other run has begun with"


def test_a_lora_of_a_higher_rank_is_refused_before_anything_is_loaded(home: Path) -> None:
    (home / "lora").mkdir()
    shutil.copy(home / "save/run/checkpoints/epoch_2" / LORA_FILE, home / "lora" / "mine.safetensors")
    keys = ["run_name=b", "model.resume_path=lora/mine.safetensors"]
    assert find_start(load_config(home / "tiny.yaml", keys)).kind == "lora"
    with pytest.raises(UserError, match="mine.safetensors does not fit: it has rank 8, and this run's LoRA 4; write model.lora_rank: 8"):
        ready(load_config(home / "tiny.yaml", [*keys, "model.lora_rank=4"]))


def test_what_the_yaml_does_not_say_of_a_lora_is_found_in_its_file(home: Path) -> None:
    """Its rank, its alpha and its layers; without an alpha that is the rank."""
    whole = load_file(home / "save/run/checkpoints/epoch_2" / LORA_FILE)
    some = {name: t[:4] if ".lora_A." in name else t[:, :4] for name, t in whole.items() if "attn.to_q" in name}
    (home / "few").mkdir()
    save_file({name: t.contiguous() for name, t in some.items()}, home / "few" / "mine.safetensors")
    text = (home / "tiny.yaml").read_text()
    (home / "few.yaml").write_text(text.replace("  target_modules: default\n", ""))
    keys = ["run_name=b", "model.resume_path=few/mine.safetensors"]
    model = ready(load_config(home / "few.yaml", keys)).requested.model
    assert (model.lora_rank, model.lora_alpha, model.target_modules) == (4, 4, ("attn.to_q",)) and not model.rank_pattern
    model = ready(
        load_config(home / "few.yaml", [*keys, "model.lora_rank=16", "model.target_modules=[attn.to_q,attn.to_k]"])
    ).requested.model
    assert (model.lora_rank, model.lora_alpha) == (16, 32)
