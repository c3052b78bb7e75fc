"""What the YAML may say of teachers, and what is refused with which words."""

from pathlib import Path

import pytest

from flow_factory.config import ConfigError, OPDConfig, RunConfig, dump_config, load_config

YAML = """\
data:
  datasets:
    - {name: words, dataset_dir: words, train: {weight: 1}}
    - {name: shapes, dataset_dir: shapes, train: {weight: 2}}
    - {name: held, dataset_dir: held, eval: {}}
model:
  model_type: flux1
  model_name_or_path: tiny
  finetune_type: lora
train:
  trainer_type: diffusion-opd
  unique_sample_num_per_epoch: 6
  teachers:
    - {path: saves/ocr/checkpoints/epoch_4, name: ocr, applicable_datasets: [words]}
    - {path: saves/shapes, applicable_datasets: [shapes], guidance_scale: 1.0}
eval_rewards:
  - reward_model: shapes
"""


def load(folder: Path, *overrides: str, text: str = YAML) -> RunConfig[OPDConfig]:
    (folder / "run.yaml").write_text(text)
    return load_config(folder / "run.yaml", overrides)  # type: ignore[return-value]


def test_teachers_have_names_and_rollouts_are_the_odes_unless_something_else_is_written(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert [t.name for t in config.train.teachers] == ["ocr", "shapes"] and config.scheduler.dynamics_type == "ODE"
    assert not config.rewards and not config.notices and config.train.points_per_batch(config.scheduler) == 9
    assert load(tmp_path, "scheduler.dynamics_type=Flow-SDE").scheduler.dynamics_type == "Flow-SDE"
    for overrides in ((), ("scheduler.dynamics_type=Flow-SDE",)):
        config = load(tmp_path, *overrides)
        (tmp_path / "again.yaml").write_text(dump_config(config))
        assert load_config(tmp_path / "again.yaml") == config


def test_one_teacher_without_names_teaches_the_only_data_set(tmp_path: Path) -> None:
    text = YAML.partition("data:")[0] + "data:\n  dataset_dir: data\n" + YAML[YAML.index("model:") :]
    config = load(tmp_path, "train.teachers=[{path: saves/ocr}]", text=text)
    assert config.train.teachers[0].teaches("") and config.train.teachers[0].name == "ocr"


WRONG = [
    ("train.teachers=[]", r"train.teachers: wants a list of teachers, such as \[\{path: saves/ocr, applicable_datasets: \[ocr\]\}\]"),
    ("train.teachers=[{path: a, applicable_datasets: [words]}]",
     r"data.datasets.1: no teacher for it; name shapes in applicable_datasets of one of train.teachers, or leave its train: out"),
    ("train.teachers=[{path: a}, {path: b, applicable_datasets: [words]}]",
     r"train.teachers.1.applicable_datasets: the data set 'words' has the teacher 'a' already, and a row has only one"),
    ("train.teachers=[{path: x/a, applicable_datasets: [words]}, {path: y/a, applicable_datasets: [shapes]}]",
     r"train.teachers.1.name: 'a' is the name of train.teachers.0 too; write another"),
    ("train.teachers=[{path: a}, {path: b, applicable_datasets: [held]}]",
     r"train.teachers.1.applicable_datasets: none of its data sets has train:, so it would never be asked"),
    ("train.teachers=[{path: a, applicable_datasets: [wrods, shapes]}]",
     r"train.teachers.0.applicable_datasets: no data set \"wrods\"\. Did you mean 'words'"),
    ("train.teachers=[{path: a, nmae: b}]", r"train.teachers.0.nmae: unknown key.* 'name'"),
    ("train.teachers=[{path: a, name: b/c}]", r"train.teachers.0.name: .*without /"),
    ("model.finetune_type=full", r"model.finetune_type: full: teachers are LoRAs.*; write lora"),
    ("rewards=[{reward_model: shapes}]", r"rewards: diffusion-opd takes no rewards; name them in eval_rewards"),
    ("train.drop_zero_variance=true", r"train.drop_zero_variance: diffusion-opd has no advantages; write false"),
    ("scheduler={dynamics_type: CPS, noise_level: 0}",
     r"scheduler.noise_level: 0: CPS draws with noise.*write e.g. 0.7, or dynamics_type: ODE"),
    ("train.timestep_range=[0.0, 0.05]", r"train.timestep_range: has none of the 10 steps of a rollout; widen it"),
    ("scheduler={dynamics_type: Flow-SDE, num_sde_steps: 12}", r"scheduler.num_sde_steps: 12 is more than the 9 steps"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "said"), WRONG)
def test_what_cannot_be_learnt_is_refused_with_what_would_be_right(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, override)


def test_a_range_that_noise_leaves_no_effect_is_noticed(tmp_path: Path) -> None:
    (line,) = load(tmp_path, "scheduler.dynamics_type=Flow-SDE", "train.timestep_range=0.5").notices
    assert line.startswith("train.timestep_range has no effect: with noise, xt trains on the stochastic steps")
