"""Runs of every algorithm on every model: what the YAML of each says, and its trainer."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from flow_factory.algorithms import ALGORITHMS
from flow_factory.config import TRAIN_CONFIGS, RunConfig, load_config, pipeline_kwargs, plan_of
from flow_factory.config.engine import EngineSettings
from flow_factory.data.given import GivenMedia
from flow_factory.data.mp4 import save_video
from flow_factory.distributed.engines import Engine
from flow_factory.models.loading import sketch_adapter
from flow_factory.policy.optimizer import make_optimizer
from flow_factory.policy.policy import Policy
from flow_factory.rewards.scoring import load_rewards
from flow_factory.runs.fitting import checkpoint_of, fitted
from flow_factory.runs.training_state import Progress
from flow_factory.train import arguments
from flow_factory.training.context import TrainingContext
from flow_factory.training.kept_weights import keep_copies
from flow_factory.training.meter import Meter
from flow_factory.training.schedule import make_schedule
from flow_factory.training.trainer import Trainer
from flow_factory.types import Clip
from tests.models.cases import CASES, call_of, row
from tests.models.harness import STEPS, Tiny, lora
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


def experts(name: str) -> list[str]:
    return ["transformer", "transformer_2"] if "a14b" in name else ["transformer"]


SINGLE = [name for name, schema in TRAIN_CONFIGS.items() if not schema.networks]
"""Those that train one network."""
STUDENTS = [name for name in TRAIN_CONFIGS if name not in SINGLE]
UNGUIDED = ("draft", *STUDENTS)


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
