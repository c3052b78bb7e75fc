"""What the YAML may say about each algorithm, what it may not and with which words, and what has no effect."""

from pathlib import Path

import pytest

from flow_factory.config import (
    AWMConfig,
    ConfigError,
    CRDConfig,
    DGPOConfig,
    DPOConfig,
    DPPOConfig,
    GRPOGuardConfig,
    NFTConfig,
    SFTConfig,
    load_config,
    plan_of,
)  # fmt: skip
from flow_factory.config.run import RunConfig
from flow_factory.config.translate import whole_pass

YAML = """\
data:
  dataset_dir: data
model:
  model_type: flux1
  model_name_or_path: tiny
  finetune_type: lora
scheduler:
  num_sde_steps: null
train:
  trainer_type: {name}
  max_epochs: 20
  per_device_batch_size: 4
  group_size: 8
  unique_sample_num_per_epoch: 2
  gradient_step_per_epoch: 2
  num_inference_steps: 10
rewards:
  - reward_model: shapes
"""


def load(folder: Path, name: str, train: str = "", scheduler: str = "") -> RunConfig:
    """The file, with lines added to two of its sections."""
    file = folder / "run.yaml"
    text = YAML.replace("step_per_epoch: 2", f"step_per_epoch: {1 if name == 'draft' else 2}").format(name=name)
    text = text.replace("train:\n", f"train:\n{train}").replace("scheduler:\n", f"scheduler:\n{scheduler}")
    file.write_text(text)
    return load_config(file)


FEW = "timestep_range: 0.1\n  time_sampling_strategy"
# Each case: the algorithm, the line of `train:` (or of `scheduler:`, after a bar) with the mistake, the key, what the message must say.
IDLE = [
    ("dppo", "reweight: true", "grpo-guard"),
    ("nft", "clip_range: 0.1", "grpo, grpo-guard, awm, dgpo"),
    ("crd", "clip_range: [1, 2, 3]", "grpo, grpo-guard, awm, dgpo"),
    ("dpo", "kl_beta: 0.1", "grpo, grpo-guard, dppo, nft, awm, dgpo, crd, draft"),
    ("awm", "nft_beta: 0.1", "nft"),
    ("grpo", "reweight: true", "grpo-guard"),
]
"""Keys of other algorithms, which public configs carry along, and whose they are."""
BAD = [
    ("dppo", "clip_range: 1.0e-4", "train.clip_range", ["does not clip the ratio", "write kl_mask_threshold, e.g. 1.0e-6"]),
    ("dppo", "kl_mask_type: velocity", "train.kl_mask_type", ["exact, v-based"]),
    ("dppo", "kl_mask_threshold: -1.0e-6", "train.kl_mask_threshold", ["greater than or equal to 0"]),
    ("dppo", "direction: noise", "train.direction", ["ratio, normalised"]),
    ("dppo", "kl_guidance_scale: 0.5", "train.kl_guidance_scale", ["greater than or equal to 1"]),
    ("dppo", "| dynamics_type: ODE", "scheduler.dynamics_type", ["dppo needs log-probabilities", "Flow-SDE, Dance-SDE, Flash-SDE or CPS"]),
    ("nft", "kl_type: x-based", "train.kl_type", ["v-based"]),
    # ranges
    ("nft", "nft_beta: 0.0", "train.nft_beta", ["greater than 0"]),
    ("nft", "adv_mode: all_of_it", "train.adv_mode", ["all, positive_only, negative_only, one_only, binary"]),
    ("awm", "awm_weighting: t**3", "train.awm_weighting", ["Uniform, t, t**2, huber, ghuber"]),
    ("awm", "ghuber_power: 1.5", "train.ghuber_power", ["less than or equal to 1"]),
    ("awm", "advantage_max: 0", "train.advantage_max", ["greater than 0"]),
    ("awm", "ratio_order: last", "train.ratio_order", ["exp_first, sum_first"]),
    ("dpo", "num_train_timesteps: 0", "train.num_train_timesteps", ["greater than or equal to 1"]),
    ("dpo", "weighting_scheme: mode", "train.weighting_scheme", ["logit_normal, uniform"]),
    ("dgpo", "kl_cfg: 0.5", "train.kl_cfg", ["greater than or equal to 1"]),
    ("dgpo", "ema_ref_max_decay: 1.0", "train.ema_ref_max_decay", ["less than 1"]),
    ("crd", "crd_loss_type: mae", "train.crd_loss_type", ["mse, bce"]),
    ("crd", "time_shift: 0.0", "train.time_shift", ["greater than 0"]),
    ("crd", "time_sampling_strategy: logit", "train.time_sampling_strategy", ["discrete_wo_init", "logit_normal"]),
    ("nft", "timestep_range: [0.9, 0.1]", "train.timestep_range", ["0 <= low < high <= 1", "[0.9, 0.1]", "e.g. 0.9 or [0.0, 0.9]"]),
    ("nft", "timestep_range: 1.5", "train.timestep_range", ["0 <= low < high <= 1", "[0.0, 1.5]"]),
    ("dpo", "timestep_range: most", "train.timestep_range", ["[low, high]", '"most"', "e.g. 0.9"]),
    ("crd", "timestep_range: [0.1, 0.5, 0.9]", "train.timestep_range", ["a share f for (0, f), or [low, high]"]),
    # decays
    ("nft", "old_model_decay: quick", "train.old_model_decay", ["no decay 'quick'", "none, slow, medium", "75-0.0-0.0075-0.999"]),
    ("awm", "old_model_decay: 9", "train.old_model_decay", ["no decay 9", "0 to 6"]),
    ("crd", "old_model_decay: 75-0.5-0.01", "train.old_model_decay", ["no decay '75-0.5-0.01'", "start_step-start-slope-cap"]),
    ("crd", "sampling_model_decay: 0-0.9-0.1-0.5", "train.sampling_model_decay", ["start <= cap <= 1", "start 0.9 and cap 0.5"]),
    ("crd", "sampling_model_decay: 0-0.9-0.1-1.5", "train.sampling_model_decay", ["start <= cap <= 1", "cap 1.5"]),
    # one key against another
    ("grpo", "best_of_n: 6", "train.best_of_n", ["6 must be even", "per_device_batch_size=4", "group_size=8", "write 8"]),
    ("dgpo", "drop_zero_variance: true\n  best_of_n: 2", "train.best_of_n", ["write 4"]),
    ("dgpo", "drop_zero_variance: true\n  gradient_accumulation_steps: 1", "train.drop_zero_variance", ["2 micro-batches", "write false"]),
    ("nft", "best_of_n: 2", "train.best_of_n", ["multiple of train.per_device_batch_size=4", "write 4"]),
    ("nft", "best_of_n: 5", "train.best_of_n", ["5 must be even", "write 4"]),
    ("crd", "best_of_n: 12", "train.best_of_n", ["at most group_size=8", "write 8"]),
    ("awm", "best_of_n: 1", "train.best_of_n", ["greater than or equal to 2"]),
    ("dpo", "best_of_n: 4", "train.best_of_n", ["the best and the worst of a group anyway", "write null"]),
    ("dpo", "init_same_noise: true", "train.init_same_noise", ["dpo rolls out by the ODE", "write false"]),
    ("nft", "drop_zero_variance: true", "train.drop_zero_variance", ["nft learns from samples of advantage 0 too", "write false"]),
    ("crd", "drop_zero_variance: true", "train.drop_zero_variance", ["crd learns from samples of advantage 0 too", "write false"]),
    ("nft", "adv_clip_range: [-1, 5]", "train.adv_clip_range", ["must be symmetric: nft divides by it", "write 5"]),
    ("awm", "adv_clip_range: [-4, 2.5]", "train.adv_clip_range", ["must be symmetric: awm divides by it", "write 2.5"]),
    ("crd", "adv_clip_range: [-4, 2.5]", "train.adv_clip_range", ["must be symmetric: crd divides by it"]),
    ("awm", "timestep_range: 0.05", "train.timestep_range", ["0 of the 10 steps and 1 are needed", "widen it, e.g. 1.0"]),
    ("nft", "timestep_range: [0.91, 0.99]\n  time_sampling_strategy: uniform", "train.timestep_range", ["0 of the 10 steps"]),
    ("crd", f"{FEW}: discrete_wo_init", "train.timestep_range", ["1 of the 10 steps and 2 are needed"]),
    ("dgpo", f"{FEW}: discrete_with_init", "train.timestep_range", ["and 2 are needed", "more steps"]),
    ("awm", "ema_kl_beta: 0.1\n  ema_decay: 0", "train.ema_kl_beta", ["distance to the averaged weights", "write e.g. ema_decay: 0.9"]),
    ("dpo", "offline: true", "train.group_size", ["8 with per_device_batch_size 4", "a given pair is a group of 2; write 2 for both"]),
    ("grpo-guard", "| dynamics_type: CPS", "train.reweight", ["true divides by |dt|", "write false, or scheduler.dynamics_type: Flow-SDE"]),
    ("grpo-guard", "| dynamics_type: ODE", "scheduler.dynamics_type", ["grpo-guard needs log-probabilities", "Flash-SDE or CPS"]),
    ("grpo-guard", "| noise_level: 0", "scheduler.noise_level", ["grpo-guard needs noise", "0.7"]),
    ("grpo", "| step_selection: some", "scheduler.step_selection", ["random, window, stratified, branch, sliding, fraction"]),
    ("draft", "draft_steps: 11", "train.draft_steps", ["more than the 10 steps of a rollout", "write 10 or 0"]),
    ("draft", "num_inner_epochs: 2", "train.num_inner_epochs", ["pictures of the current weights", "write 1"]),
    ("draft", "gradient_accumulation_steps: 1", "train.gradient_accumulation_steps", ["from earlier weights", "write auto, with"]),
    ("draft", "best_of_n: 4", "train.best_of_n", ["has no advantages", "write null"]),
    ("draft", "drop_zero_variance: true", "train.drop_zero_variance", ["has no advantages", "write false"]),
    ("grpo", "step_weight: 2.25", "train.step_weight", ["none, noise, rectified"]),
    ("grpo-guard", "step_weight: noise", "train.step_weight", ["grpo-guard's ratio has lost already", "write none"]),
    ("grpo", "| step_selection: fraction\n  sde_fraction: 0.1", "scheduler.sde_fraction", ["0.1 of the 9 steps", "write 0.11 or more"]),
    ("grpo", "| window_schedule: fast", "scheduler.window_schedule", ["progressive, decay, exp_decay, random"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "written", "owners"), IDLE)
def test_a_key_of_another_algorithm_is_a_line(tmp_path: Path, name: str, written: str, owners: str) -> None:
    (said,) = load(tmp_path, name, f"  {written}\n").notices
    key = written.partition(":")[0]
    assert said == f"train.{key} has no effect: it belongs to trainer_type: {owners}, and this is {name}"


@pytest.mark.parametrize(("name", "written", "key", "said"), BAD, ids=[f"{k}-{name}-{key}" for k, (name, _, key, _) in enumerate(BAD)])
def test_a_mistake_is_named_with_its_line_and_what_would_be_right(
    tmp_path: Path, name: str, written: str, key: str, said: list[str]
) -> None:
    section, line = ("scheduler", written[2:]) if written.startswith("| ") else ("train", written)
    with pytest.raises(ConfigError) as error:
        load(tmp_path, name, **{section: f"  {line}\n"})
    (message,) = str(error.value).splitlines()
    assert f": {key}: " in message and all(part in message for part in said), message
    text = (tmp_path / "run.yaml").read_text().splitlines()
    first = next((k for k, row in enumerate(text, 1) if row.strip().startswith(key.split(".")[1])), None)
    first = first or 1 + text.index(f"{key.split('.')[0]}:")  # a default: where its section stands
    assert f"run.yaml:{first}: " in message


def test_cps_has_no_noise_to_be_weighed_by(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.step_weight: noise is for a log-probability .* CPS's is not; write rectified or none"):
        load(tmp_path, "grpo", "  step_weight: noise\n", "  dynamics_type: CPS\n")
    assert load(tmp_path, "grpo", "  step_weight: rectified\n", "  dynamics_type: CPS\n").train.step_weight == "rectified"


@pytest.mark.parametrize(("train", "scheduler", "says"), [
    ("", "", r"scheduler.num_sde_steps: null: branch has one stochastic step in a group, .* write 1, or step_selection: stratified"),
    ("", "  branches_per_seed: 3\n", r"scheduler.branches_per_seed: 3 must divide train.group_size=8; write 2"),
    ("  init_same_noise: true\n", "  branches_per_seed: 4\n", r"scheduler.branches_per_seed: 4 asks for several initial noises in a group"),
])  # fmt: skip
def test_what_cannot_branch_is_refused(tmp_path: Path, train: str, scheduler: str, says: str) -> None:
    text = YAML.format(name="grpo").replace("train:\n", f"train:\n{train}")
    text = text.replace("num_sde_steps: null", "num_sde_steps: 1") if scheduler else text
    (tmp_path / "run.yaml").write_text(text.replace("scheduler:\n", f"scheduler:\n  step_selection: branch\n{scheduler}"))
    with pytest.raises(ConfigError, match=says):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(("written", "size"), [("group_size: 1\n  per_device_batch_size: 1", 1), ("group_size: 4", 4)])
@pytest.mark.parametrize("name", ["nft", "awm", "dpo", "dgpo", "crd", "grpo-guard", "dppo"])
def test_every_algorithm_compares_samples_of_a_row(tmp_path: Path, name: str, written: str, size: int) -> None:
    text = YAML.format(name=name).replace("  per_device_batch_size: 4\n  group_size: 8\n", f"  {written}\n")
    (tmp_path / "run.yaml").write_text(text)
    if size > 1:
        assert load_config(tmp_path / "run.yaml").train.group_size == size
        return
    with pytest.raises(ConfigError, match=rf"train.group_size: 1 leaves no advantage: {name} compares .* write 2 or more"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(("name", "train", "scheduler"), [
    ("grpo-guard", "  reweight: false\n", "  dynamics_type: CPS\n"), ("grpo-guard", "", "  dynamics_type: Dance-SDE\n"),
    ("nft", "  timestep_range: 0.05\n  time_sampling_strategy: uniform\n  num_train_timesteps: 2\n", ""),
    ("crd", "  timestep_range: 0.1\n  time_sampling_strategy: discrete_with_init\n  num_train_timesteps: 1\n", ""),
    ("dgpo", "  adv_clip_range: [-1, 5]\n  drop_zero_variance: true\n  best_of_n: 4\n", ""),
    ("awm", "  drop_zero_variance: true\n  ema_kl_beta: 0.1\n  ema_decay: 0.5\n  advantage_max: null\n", ""),
    ("dpo", "  drop_zero_variance: true\n", "  noise_level: 0\n"), ("nft", "", "  dynamics_type: ODE\n"),
])  # fmt: skip
def test_the_neighbours_of_a_mistake_are_fine(tmp_path: Path, name: str, train: str, scheduler: str) -> None:
    assert load(tmp_path, name, train, scheduler).notices == ()


def test_sft_takes_no_rewards_and_the_others_need_some(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rewards: sft learns from the column target, and uses no reward; write eval_rewards, or delete"):
        load(tmp_path, "sft", "  gradient_accumulation_steps: 1\n")
    file = tmp_path / "run.yaml"
    text = file.read_text().partition("rewards:")[0].replace("unique_sample_num_per_epoch: 2\n", "unique_sample_num_per_epoch: 0\n")
    file.write_text(text)
    config = load_config(file)
    assert isinstance(config.train, SFTConfig) and config.train.given == ("target",) and not config.rewards
    for steps, many, said in ((8, 100, ""), (128, 64, "64 of the 100 rows"), (256, 128, "128 of the 100 rows")):
        found, lines = whole_pass(load_config(file, [f"train.gradient_accumulation_steps={steps}"]), 100)
        assert found.train.unique_sample_num_per_epoch == many and (said in lines[0] if said else not lines)
    file.write_text(text.replace("trainer_type: sft", "trainer_type: grpo").replace("per_epoch: 0", "per_epoch: 2"))
    with pytest.raises(ConfigError, match="rewards: is required"):
        load_config(file)


def test_offline_dpo_is_dpo_that_is_offline(tmp_path: Path) -> None:
    config = load(tmp_path, "Offline_DPO")
    assert isinstance(config.train, DPOConfig) and config.train.offline and config.train.given == ("chosen", "rejected")
    assert (config.train.group_size, config.train.per_device_batch_size) == (2, 2)
    assert sum("a pair is a group of two" in line for line in config.notices) == 2


def test_values_come_in_every_spelling(tmp_path: Path) -> None:
    nft = load(tmp_path, "nft", "  timestep_range: 0.5\n  old_model_decay: 2\n  adv_clip_range: 3\n").train
    assert isinstance(nft, NFTConfig)
    assert (nft.timestep_range, nft.old_model_decay, nft.adv_clip_range) == ((0.0, 0.5), "2", (-3.0, 3.0))
    crd = load(tmp_path, "crd", "  timestep_range: [0.2, 1]\n  old_model_decay: offline\n").train
    assert isinstance(crd, CRDConfig) and (crd.timestep_range, crd.old_model_decay) == ((0.2, 1.0), "offline")


@pytest.mark.parametrize(("written", "name", "cls"), [
    ("Flow_DPPO", "dppo", DPPOConfig), ("DPPO", "dppo", DPPOConfig),
    ("GRPO_Guard", "grpo-guard", GRPOGuardConfig), ("NFT", "nft", NFTConfig), ("diffusion_nft", "nft", NFTConfig),
    ("AWM", "awm", AWMConfig), ("Diffusion-DPO", "dpo", DPOConfig), ("DGPO", "dgpo", DGPOConfig), ("Crd", "crd", CRDConfig),
])  # fmt: skip
def test_an_algorithms_name_is_canonical_however_it_was_written(tmp_path: Path, written: str, name: str, cls: type) -> None:
    config = load(tmp_path, written)
    assert type(config.train) is cls and config.train.trainer_type == name


@pytest.mark.parametrize(("name", "train", "scheduler", "said"), [
    ("nft", "", "  dynamics_type: Flow-SDE\n", "scheduler.dynamics_type: Flow-SDE has no effect: nft rolls out by the ODE"),
    ("dpo", "", "  dynamics_type: CPS\n", "scheduler.dynamics_type: CPS has no effect: dpo rolls out by the ODE"),
    ("grpo-guard", "", "  sde_steps: [3, 9]\n", "scheduler.sde_steps: noise of step 9, the last one, stays in the pictures"),
    ("dppo", "  kl_mask_type: x-based\n", "", "train.kl_mask_type: x-based -> exact, which is what it computes"),
    ("awm", "  ema_update_interval: 30\n", "", "train.ema_update_interval: 30 is more than the 20 epochs of the run"),
])  # fmt: skip
def test_what_has_no_effect_is_said(tmp_path: Path, name: str, train: str, scheduler: str, said: str) -> None:
    (notice,) = load(tmp_path, name, train, scheduler).notices
    assert said in notice


@pytest.mark.parametrize(("name", "train", "scheduler", "batches", "points"), [
    ("grpo", "", "", 4, 9), ("dppo", "", "", 4, 9), ("grpo-guard", "", "  step_selection: fraction\n", 4, 5), ("nft", "", "", 4, 9),
    ("awm", "  num_train_timesteps: 3\n", "", 4, 3), ("dgpo", "", "", 4, 6), ("crd", "  best_of_n: 4\n", "", 2, 9),
    ("dpo", "  num_train_timesteps: 2\n", "", 2, 2), ("nft", "  timestep_range: [0.25, 0.99]\n", "", 4, 7),
])  # fmt: skip
def test_the_plan_knows_what_is_trained_on(tmp_path: Path, name: str, train: str, scheduler: str, batches: int, points: int) -> None:
    plan = plan_of(load(tmp_path, name, train, scheduler))
    assert (plan.micro_batches_per_rank, plan.trained_batches_per_rank, plan.trained_points) == (4, batches, points)
    assert (plan.optimiser_steps_per_epoch, plan.micro_batches_per_update) == (2, batches // 2)
