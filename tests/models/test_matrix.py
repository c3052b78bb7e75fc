"""Every algorithm on every model: two epochs of a LoRA, and what a cell that cannot work says."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor

from flow_factory.algorithms import ALGORITHMS
from flow_factory.config import TRAIN_CONFIGS, RunConfig, load_config, pipeline_kwargs, plan_of
from flow_factory.config.engine import EngineSettings
from flow_factory.data.given import GivenMedia
from flow_factory.data.mp4 import save_video
from flow_factory.distributed.engines import Engine
from flow_factory.models import MODELS
from flow_factory.models.loading import load_adapter, sketch_adapter
from flow_factory.policy.optimizer import make_optimizer
from flow_factory.policy.policy import Policy
from flow_factory.rewards.scoring import load_rewards
from flow_factory.runs.fitting import checkpoint_of, fitted
from flow_factory.runs.training_state import Progress
from flow_factory.train import arguments
from flow_factory.training.context import TrainingContext
from flow_factory.training.encoding import call_of_training
from flow_factory.training.kept_weights import keep_copies
from flow_factory.training.meter import Meter
from flow_factory.training.schedule import make_schedule
from flow_factory.training.trainer import Trainer
from flow_factory.types import Clip
from flow_factory.utils.errors import UserError
from tests.conftest import cells, fresh_policy
from tests.models.breadth import NAMED
from tests.models.cases import CASES, EACH, call_of, row
from tests.models.harness import LORA, STEPS, Tiny, counted, lora, small
from tests.tiny.pipelines import saved
from tests.tiny.run import write_rows
from tests.tiny.teachers import write_teachers

EARLY_AND_LATE = {"scheduler.sde_steps": [1, 3], "scheduler.num_sde_steps": None}
"""One step of each expert, where there are two."""
PAIRED = {"train.gradient_step_per_epoch": 1}
STUDENT = {"train.learning_rate": 1e-3}
BOTH = {"train.time_shift": 10.0}
"""Noise levels of each expert are drawn, in the few draws that there are."""
KEYS: dict[str, dict[str, Any]] = {
    "grpo": EARLY_AND_LATE | {"train.kl_beta": 0.01},
    "grpo-guard": EARLY_AND_LATE,
    "dppo": EARLY_AND_LATE,
    "nft": {"train.kl_beta": 0.01, "train.off_policy": True, "train.num_train_timesteps": 2},
    "awm": {"train.ratio_order": "sum_first", "train.num_train_timesteps": 2},
    "dpo": PAIRED | BOTH | {"train.num_train_timesteps": 4},
    "sft": BOTH | {"train.num_train_timesteps": 4, "rewards": None},
    "dgpo": {"train.num_train_timesteps": 2, "train.timestep_range": 1.0},
    "crd": {"train.num_train_timesteps": 2},
    "diffusion-opd": {"train.teachers": [{"path": "{folder}/teacher", "name": "teacher"}], "train.loss_target": "v", "rewards": None},
    "draft": {"train.draft_steps": 4, "train.kl_beta": 0.01, "rewards": {"reward_model": "tests.tiny.rewards.Warm"}},
    "dmd2": STUDENT | BOTH | {"train.ttur_fake_updates": 2, "rewards": None},
    "tdm": STUDENT | {"rewards": None},
    "tdm-r1": STUDENT,
}
VELOCITIES = {
    "grpo": 8, "grpo-guard": 4, "dppo": 4, "nft": 12, "awm": 4 + 2 + 2, "dpo": 8, "sft": 8,
    "dgpo": 12 + 8, "crd": 12 + 8, "draft": 16, "diffusion-opd": 16,
}  # fmt: skip
"""Of an epoch of two micro-batches of two points, each half a group and an update of its own (DPO: one pair of four): the policy's, those
of kept weights, and those of the survey; AWM has the latter two only after the first update. DRaFT has four points and one
update; distillation has four points, each of the policy and of its teacher."""


def experts(name: str) -> list[str]:
    return ["transformer", "transformer_2"] if "a14b" in name else ["transformer"]


def config_of(name: str, algorithm: str, folder: Path, **extra: Any) -> RunConfig:
    """One row an epoch, a group of four in two micro-batches."""
    case = CASES[name]
    asked = row(case)
    files = {"images": list(asked.images), "videos": list(asked.videos)}
    target = {"target": target_of(name, folder)} if algorithm == "sft" else {}
    write_rows(folder / "train.jsonl", [{"prompt": asked.prompt, **{k: v for k, v in files.items() if v}, **target}])
    keys = {
        "mixed_precision": "no", "data.dataset_dir": str(folder), "model.model_name_or_path": str(saved(case.checkpoint)),
        "model.model_type": case.model_type, "model.finetune_type": "lora", "model.target_modules": "default",
        "model.target_components": experts(name), "train.trainer_type": algorithm,
        "train.num_inference_steps": STEPS, "train.max_epochs": 2, "train.group_size": 4, "train.per_device_batch_size": 2,
        "train.unique_sample_num_per_epoch": 1, "train.learning_rate": 1e-2, "train.ema_decay": 0,
        "rewards": {"reward_model": "jpeg_compressibility"}, **KEYS[algorithm],
    } | {f"train.{k}": v for k, v in (call_of(case) | (case.off if algorithm in UNGUIDED else {})).items()} | extra  # fmt: skip
    file = folder / "cell.yaml"
    file.write_text("{}\n")
    config = load_config(file, [f"{k}={json.dumps(v)}".replace("{folder}", str(folder)) for k, v in keys.items()])
    if algorithm == "diffusion-opd":
        write_teachers(config)
    return config


def target_of(name: str, folder: Path) -> str:
    """A picture or a clip of what the case draws."""
    case = CASES[name]
    call = call_of(case)
    frames = call.get("num_frames", case.frames)
    pictures = [Image.new("RGB", (call["width"], call["height"]), (30 + 20 * k, 200, 90)) for k in range(frames or 1)]
    path = folder / ("target.mp4" if frames else "target.png")
    save_video(Clip(pictures, 16), path) if frames else pictures[0].save(path)
    return str(path)


def fit(config: RunConfig) -> RunConfig:
    return fitted(config, sketch_adapter(*checkpoint_of(config)))


def guided_reference(name: str, algorithm: str) -> dict[str, Any]:
    """CRD's, where the case's condition has a negative prompt and its guidance can be set."""
    return {"train.kl_cfg": 2.0 if CASES[name].guided else 1.0} if algorithm == "crd" else {}


def trainer_of(name: str, algorithm: str, folder: Path, made: tuple[Tiny, Policy] | None = None, **keys: Any) -> Trainer:
    """As a run builds it, over these networks; None: the one LoRA of this case."""
    AcceleratorState._reset_state(reset_partial_state=True)
    t, policy = made or lora(name)
    config = fit(config_of(name, algorithm, folder, **guided_reference(name, algorithm), **keys))
    accelerator = Accelerator(cpu=True)
    method = ALGORITHMS[algorithm](config.train, config.scheduler, t.adapter.times_per_sample)
    engine = Engine(EngineSettings(), accelerator, config.train.max_grad_norm)
    engine.wrap(policy, partial(make_optimizer, config.train))
    store = keep_copies(config, engine, method)
    schedule = make_schedule(config.train, engine.optimizer, 2)
    rewards, _ = load_rewards(arguments(config.rewards), None, accelerator)
    parts = (config, plan_of(config), pipeline_kwargs(config.train), accelerator, t.adapter, method, engine, store, schedule, rewards)
    train, asked = config.train, row(CASES[name])
    given = GivenMedia({"": config.data}, t.adapter, train.given, pipeline_kwargs(train)) if train.given else None
    asked = replace(asked, columns={"target": target_of(name, folder)}) if given else asked
    return Trainer(TrainingContext(*parts, [asked], t.conds[:1], given, Progress(), Meter(accelerator)))


def encodes(name: str) -> bool:
    return MODELS[CASES[name].model_type].encodes_media is None


SINGLE = [name for name, schema in TRAIN_CONFIGS.items() if not schema.networks]
"""Those that train one network."""
STUDENTS = [name for name in TRAIN_CONFIGS if name not in SINGLE]
UNGUIDED = ("draft", *STUDENTS)
UNTAUGHT = {("hunyuan_video15", name) for name in STUDENTS}
TAUGHT = [(name, algorithm) for name in EACH for algorithm in STUDENTS if (name, algorithm) not in UNTAUGHT]
NONE = {("hunyuan_video15", "draft"), *((name, "sft") for name in EACH if not encodes(name))}
"""Cells that are refused, see below."""
CELLS = [(name, algorithm) for name in EACH for algorithm in SINGLE if (name, algorithm) not in NONE]
DIAGONAL = {
    (name, algorithm)
    for j, name in enumerate(EACH)
    for k, algorithm in enumerate(key for key in SINGLE if (name, key) in CELLS)
    if (k - j) % sum((name, key) in CELLS for key in SINGLE) == 0
}
"""Every model with one algorithm, and every algorithm with three models or four; the other cells take turns."""


@pytest.fixture
def untrained(name: str) -> Iterator[dict[str, Tensor]]:
    """The weights of the case's one LoRA, which it has again afterwards."""
    _, policy = lora(name)
    start = {k: p.detach().clone() for k, p in policy.trained().items()}
    yield start
    with torch.no_grad():
        for k, p in policy.trained().items():
            p.copy_(start[k])


@pytest.mark.slow
@cells("name", "algorithm", CELLS, {*CELLS} - DIAGONAL)
def test_two_epochs_of_an_algorithm_move_a_model(name: str, algorithm: str, tmp_path: Path, untrained: dict[str, Tensor]) -> None:
    """The second epoch's velocities are counted: none too many, and those of forward-process algorithms without guidance."""
    t, policy = lora(name)
    trainer = trainer_of(name, algorithm, tmp_path)
    with small(t.adapter.pipe):
        first = trainer.epoch()
        rollouts = trainer.collector(1)
        trainer.judge(rollouts)
        with counted(t.transformers) as seen:
            trainer.learner.learn(trainer.groups(rollouts))
    metrics = trainer.context.meter.means()
    assert all(map(torch.isfinite, map(torch.tensor, (first | metrics).values())))
    assert first["train/first_update_effect"] > 0
    if algorithm in ("grpo", "dppo"):
        assert first["train/on_policy_error"] == metrics["train/on_policy_error"] == 0
    case = CASES[name]
    free = not trainer.context.config.train.stochastic
    distils = algorithm == "diffusion-opd"
    guided, left_out = not free or distils, 4 * case.first * distils  # of a video that is given, the first steps are not drawn
    reference = 4 if algorithm == "crd" and free and case.forwards == (1, 1) else 0  # its negative prompts
    assert len(seen) == (VELOCITIES[algorithm] - left_out) * (len(case.forwards) if guided else 1) + reference
    still = [k for k, p in policy.trained().items() if torch.equal(p, untrained[k])]
    assert len(still) <= (len(untrained) // 4 if t.adapter.find_unused else 0), still[:3]


@pytest.mark.slow
@cells("name", "algorithm", TAUGHT, {*TAUGHT} - {("flux1", "tdm")})
def test_two_epochs_of_every_network_of_a_student(name: str, algorithm: str, tmp_path: Path) -> None:
    """Of a base that is guided, where it can be; rows are encoded as a run encodes them."""
    without = {"train.real_guidance_scale": None, "train.tdm_weight": 0, "train.surrogate_guidance_scale": 1}
    guided = {"train.real_guidance_scale": 2.0} if CASES[name].guided else without if algorithm == "tdm-r1" else {}
    config = config_of(name, algorithm, tmp_path, **guided)
    sketch, method = sketch_adapter(*checkpoint_of(config)), ALGORITHMS[algorithm](config.train, config.scheduler)
    t = Tiny(name, **call_of_training(config, sketch, method))
    model = LORA | {"target_components": tuple(experts(name))}
    policy = fresh_policy(t.adapter, roles=TRAIN_CONFIGS[algorithm].networks, **model)
    trainer = trainer_of(name, algorithm, tmp_path, (t, policy), **guided)
    before = {k: p.detach().clone() for role in policy.roles for k, p in policy.trained(role).items()}
    with small(t.adapter.pipe):
        told = [trainer.epoch() for _ in range(2)]
    assert all(map(torch.isfinite, map(torch.tensor, (told[0] | told[1]).values())))
    for role in policy.roles:
        still = [k for k, p in policy.trained(role).items() if torch.equal(p, before[k])]
        assert len(still) <= (len(before) // 4 if t.adapter.find_unused else 0), (role, still[:3])


def test_the_matrix_has_every_model_type_and_every_algorithm() -> None:
    assert {CASES[name].model_type for name in EACH} == {*MODELS} - {*NAMED.values()}
    assert set(KEYS) == {*SINGLE, *STUDENTS} and set(VELOCITIES) == set(SINGLE)
    assert {name for name, _ in DIAGONAL} == set(EACH) and {algorithm for _, algorithm in DIAGONAL} == set(SINGLE)


HIGH = {"model.target_components": ["transformer"]}


@pytest.mark.parametrize(
    ("name", "algorithm", "keys", "said"),
    [
        ("flux2", "crd", {}, r"train.kl_cfg: this Flux2 has no classifier-free guidance; write 1.0"),
        ("flux2-klein", "dgpo", {"train.kl_cfg": 4.5}, r"train.kl_cfg: this Flux2Klein has"),
        ("ltx2-t2av", "sft", {}, r"train.trainer_type: media cannot be encoded for LTX2"),
        ("ltx2-t2av", "dpo", {"train.offline": True, "train.group_size": 2}, r"train.offline: media cannot be encoded for LTX2"),
        ("wan22-a14b-t2v", "nft", HIGH, r"train.timestep_range: .* write \[0, 0.4\], or train both experts"),
        (
            "wan22-a14b-t2v",
            "awm",
            HIGH | {"train.time_sampling_strategy": "uniform"},
            r"train.time_sampling_strategy: .* train both experts",
        ),
        ("wan22-a14b-t2v", "diffusion-opd", HIGH, r"train.timestep_range: transformer_2 draws steps .* train both experts"),
        (
            "flux2",
            "diffusion-opd",
            {"train.teachers": [{"path": "a", "guidance_scale": 4.0}]},
            r"train.teachers.0.guidance_scale: this Flux2 has no classifier-free guidance; write 1.0",
        ),
        ("wan22-a14b-t2v", "draft", HIGH, r"train.draft_steps: transformer_2 draws steps .* train both experts"),
        ("hunyuan_video15", "draft", {}, r"train.guidance_scale: is classifier-free guidance here"),
        ("wan22-a14b-t2v", "dpo", HIGH, r"train.timestep_range: .* train both experts"),
        ("hunyuan_video15", "tdm", {}, r"train.trainer_type: HunyuanVideo15Pipeline samples with the guider of its checkpoint, and tdm "),
        ("ltx2-t2av", "dmd2", {"train.stg_scale": 1.0}, r"train: LTX2Pipeline would sample .* write stg_scale: 0, and the same in eval:"),
        ("wan22-a14b-t2v", "tdm", HIGH, r"model.target_components: .* train both experts"),
        ("flux2", "tdm-r1", {}, r"real_guidance_scale: this Flux2 has no .*; write 1.0, with tdm_weight: 0 and"),
    ],
)
def test_a_cell_that_cannot_work_is_refused_with_the_reason(
    name: str, algorithm: str, keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_rows(tmp_path / "train.jsonl", [{"prompt": "a"}])
    with pytest.raises(UserError, match=said):
        fit(config_of(name, algorithm, tmp_path, **keys))


def test_a_scale_that_a_distilled_checkpoint_does_not_read_is_no_further_guidance(tmp_path: Path) -> None:
    config = config_of("flux2-klein", "dmd2", tmp_path)
    assert config.train.guidance_scale > 1 and fit(config).train == config.train


def test_one_expert_alone_is_trained_at_its_own_noise_levels(tmp_path: Path) -> None:
    config = config_of("wan22-a14b-t2v", "nft", tmp_path, **HIGH, **{"train.timestep_range": 0.4})
    assert fit(config) == config


def test_guidance_that_is_an_input_of_an_unknown_pipelines_model_stays_what_it_is() -> None:
    adapter = load_adapter(str(saved("flux1")), "diffusers", "fp32")
    assert adapter.takes(adapter.with_guidance({"guidance_scale": 3.5}, 1.0)) == {"guidance_scale": 3.5, "true_cfg_scale": 1.0}
