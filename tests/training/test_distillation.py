"""On-policy distillation as a run does it: two teachers over the rows of two data sets, a tiny FLUX.1."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import FluxTransformer2DModel
from torch import Tensor

from flow_factory.checkpoints.given_lora import read_given
from flow_factory.checkpoints.lora_file import LORA_FILE
from flow_factory.config import load_config
from flow_factory.training.run import Run
from flow_factory.utils.errors import UserError
from tests.tiny.run import ROOT, forwards, logged, read_state, tiny, trained
from tests.tiny.several import assert_same_run, several
from tests.tiny.teachers import write_teachers
from tests.tiny.two_datasets import write_two

pytestmark = pytest.mark.exhaustive
NAMES, RANK = ("words", "shapes"), 4
SHORT = ("eval.eval_freq=0", "train.gradient_step_per_epoch=1", "train.group_size=2", "train.ema_decay=0", "train.learning_rate=1e-2")


def write_teaching(folder: Path) -> None:
    """The YAML, and a LoRA for each data set in `<data set>.lora`."""
    file = write_two(folder, rewards=[{"reward_model": "tests.tiny.rewards.Bright", "name": "bright"}])
    tree = yaml.safe_load(file.read_text())
    tree["eval_rewards"] = tree.pop("rewards")
    teachers = [{"path": str(folder / f"{name}.lora"), "applicable_datasets": [name]} for name in NAMES]
    tree["train"] |= {"trainer_type": "diffusion-opd", "teachers": teachers}
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    write_teachers(load_config(file), RANK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("teachers")
    write_teaching(here)
    return here


def distilled(folder: Path, name: str, *overrides: str) -> Run:
    return tiny(folder, *SHORT, f"log.run_name={name}", *overrides)


def test_a_row_asks_its_teacher_and_no_velocity_too_many(folder: Path) -> None:
    run = distilled(folder, "counted")
    rollouts = run.trainer.collector(0)
    run.trainer.judge(rollouts)
    with forwards(FluxTransformer2DModel) as seen:
        run.trainer.learner.learn(run.trainer.groups(rollouts))
    assert {r.row.dataset for r in rollouts} == set(NAMES)
    assert len(seen) == 4 * 2 * (1 + 1) + 1, "of the student and of one teacher, and one that sees the first update's effect"
    for rollout in rollouts:
        assert rollout.x0 is None, "which nothing reads"
        assert [step.index for step in rollout.steps] == [0, 1]
        assert all(set(kept) == {f"teacher {rollout.row.dataset}"} for kept in rollout.frozen.values())
        for step, after in zip(rollout.steps, rollout.steps[1:], strict=False):
            assert step.x1.data_ptr() == after.x.data_ptr(), "a step's end is kept once"


def test_a_teachers_velocity_is_that_of_its_file(folder: Path) -> None:
    """Which the policy has, once the file is loaded as its own weights; nothing of the policy changes meanwhile."""
    alike = (f"model.lora_rank={RANK}", f"model.lora_alpha={RANK}")
    run = distilled(folder, "loaded", *alike)
    before, rollout = trained(run), run.trainer.collector(0)[0]
    rollout.advantage = torch.zeros(2)
    mine = rollout.row.dataset
    point = next(iter(run.trainer.learner.points(rollout)))
    with torch.no_grad():
        asked = {name: run.trainer.learner.velocity(point, f"teacher {name}") for name in NAMES}
    assert all(torch.equal(p, before[k]) for k, p in trained(run).items())
    assert not torch.equal(asked["words"], asked["shapes"])
    start = distilled(folder, "as_policy", f"model.resume_path={folder}/{mine}.lora", "model.resume_type=lora", *alike)
    with torch.no_grad():
        own = start.trainer.learner.velocity(point)
    assert torch.equal(own, asked[mine])
    saved = read_given("", str(folder / f"{mine}.lora"), "transformer").tensors
    kept = dict(zip(run.context.store.networks["policy"], run.context.store.copies[f"teacher {mine}"], strict=True))
    assert all(torch.equal(kept[f"transformer.{k.replace('.weight', '.default.weight')}"], t) for k, t in saved.items())


@pytest.mark.parametrize("more", [
    (), ("train.loss_target=x0", "train.self_normalize=true"), ("scheduler.dynamics_type=Flow-SDE", "scheduler.num_sde_steps=2"),
])  # fmt: skip
def test_a_student_comes_nearer_to_both_teachers(folder: Path, more: Sequence[str]) -> None:
    run = distilled(folder, f"near_{len(more)}_{more[-1:]}".replace("/", "")[:30], "train.max_epochs=12", *more)
    run()
    lines = logged(run.folder)
    for name in ("teacher_error", *(f"teacher_error/{name}" for name in NAMES)):
        assert lines[-1][f"train/{name}"] < 0.7 * lines[0][f"train/{name}"]
    assert all("train/reward_mean" not in line for line in lines)


def test_a_run_goes_on_exactly_and_its_state_has_no_teacher(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = ("log.save_freq=1", "log.save_model_only=false", "train.lr_scheduler=linear", "train.max_epochs=3", "train.num_inner_epochs=2")
    distilled(folder, "straight", *keys)()
    saved = folder / "save" / "straight" / "checkpoints"
    distilled(folder, "second", *keys, f"model.resume_path={saved / 'epoch_1'}")()
    straight, resumed = (read_state(folder / "save" / name / "checkpoints" / "epoch_3") for name in ("straight", "second"))
    assert straight.keys() == resumed.keys() and all(torch.equal(straight[k], resumed[k]) for k in straight)
    assert {name.split("/")[1] for name in straight if name.startswith("weights/")} == {"policy"}


ENGINES = {"ddp": "", "fsdp2": "fsdp2.yaml", "zero3": "deepspeed_zero3.yaml"}
DEALT = (
    "train.unique_sample_num_per_epoch=6", "train.gradient_step_per_epoch=1", "train.group_size=2", "train.learning_rate=1e-2",
    "train.adam_epsilon=1e-3", "log.save_freq=1", "log.save_model_only=false", "eval.eval_freq=2",
)  # fmt: skip


def test_two_processes_do_what_one_does_whichever_rows_they_have(tmp_path: Path) -> None:
    """Of six groups two are of words: forwards that are of all processes together are as many on each."""
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        write_teaching(folder)
        files = {name: (f"config_file={ROOT}/examples/launch/{file}",) if file else () for name, file in ENGINES.items()}
        several(folder, processes, {name: [*DEALT, *keys] for name, keys in files.items() if processes > 1 or not keys})
    for name in ENGINES:
        assert_same_run(tmp_path / "2" / "save" / name, tmp_path / "1" / "save" / "ddp")


SPOILT = {
    "rank": (("model.lora_rank=2",), r"train.teachers.0.path: .*it has rank 4, and this run's LoRA 2; write model.lora_rank"),
    "layers": (("model.target_modules=attn.to_q",), r"train.teachers.0.path: .*model.target_modules leaves out layers that it is of"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_teacher_that_does_not_fit_is_refused_before_weights_are_loaded(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("flow_factory.train.open_adapter", loaded)
    overrides, said = SPOILT[name]
    with pytest.raises(UserError, match=said):
        distilled(folder, f"spoilt_{name}", *overrides)


def test_a_teacher_of_another_rank_and_scale_is_the_same_function(folder: Path) -> None:
    """A wider student has it with rows of 0."""
    run, wide = distilled(folder, "narrow"), distilled(folder, "wide", "model.lora_rank=128", "model.lora_alpha=16")
    rollout = run.trainer.collector(0)[0]
    rollout.advantage = torch.zeros(2)
    point = next(iter(run.trainer.learner.points(rollout)))
    with torch.no_grad():
        a, b = (one.trainer.learner.velocity(point, "teacher words") for one in (run, wide))
    assert_alike(a, b)


def assert_alike(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_another_file_of_a_teacher_is_told_as_a_run_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("log.save_model_only=false", "train.max_epochs=2", "log.save_freq=1")
    distilled(folder, "told", *keys)()
    place = folder / "save" / "told" / "checkpoints" / "epoch_1"
    other = folder / "other.lora"
    other.mkdir()
    (other / LORA_FILE).write_bytes((folder / "words.lora" / LORA_FILE).read_bytes())
    again = f"train.teachers=[{{path: {folder}/shapes.lora, name: words, applicable_datasets: [words]}}, " \
            f"{{path: {other}, name: shapes, applicable_datasets: [shapes]}}]"  # fmt: skip
    capsys.readouterr()
    distilled(folder, "told_again", *keys, f"model.resume_path={place}", again)
    said = capsys.readouterr()
    assert "train.teachers.words was" in said.out + said.err and "train.teachers.shapes was" in said.out + said.err
