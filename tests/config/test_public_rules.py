"""Small whole files with one key each of the public Flow-Factory of 2026: read, with what it comes to, or refused in one line."""

from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from flow_factory.config import ConfigError, RunConfig, load_config
from flow_factory.config.datasets import datasets_of

FILE = """\
{top}data:
{data}
model:
  finetune_type: lora
  model_name_or_path: checkpoints/some
{model}
train:
{train}
{rest}"""
PLAIN = {
    "top": "",
    "data": "  dataset_dir: dataset/shapes",
    "model": "  model_type: flux1",
    "train": "  trainer_type: grpo",
    "rest": "rewards:\n  - reward_model: shapes\n",
}
SMALL = "  group_size: 4\n  per_device_batch_size: 2\n  unique_sample_num_per_epoch: 2\n"
JUDGES = "eval_rewards:\n  - reward_model: shapes\n"


def load(folder: Path, parts: dict[str, str]) -> RunConfig[Any]:
    """A file with these lines; those of `train:` follow its name, and all others replace the plain ones."""
    text = PLAIN | parts
    text["train"] = (text["train"] if "trainer_type" in text["train"] else f"{PLAIN['train']}\n{text['train']}") + f"\n{SMALL}"
    (folder / "run.yaml").write_text(FILE.format(**text))
    return load_config(folder / "run.yaml")


def data(line: str) -> dict[str, str]:
    return {"data": f"{PLAIN['data']}\n  {line}"}


def model(line: str) -> dict[str, str]:
    return {"model": f"{PLAIN['model']}\n  {line}"}


def rest(text: str) -> dict[str, str]:
    return {"rest": PLAIN["rest"] + text}


ALWAYS = "a group always lives on one process"
NEW_NAMES = ("group_tiled", "subgroup_tile", "global_random", "contiguous_shard", "rank_local", "global_batch", "global_tile")
OLD_NAMES = ("distributed_k_repeat", "group_contiguous", "group_distributed")
READ: list[tuple[dict[str, str], dict[str, Any], tuple[str, ...]]] = [
    *((data(f"sampler_type: {name}"), {"data.sampler_type": "auto" if name in NEW_NAMES else name},
       (f"data.sampler_type: {name} has no effect: {ALWAYS}",)) for name in (*NEW_NAMES, *OLD_NAMES)),
    (data("preprocess_parallelism: global"), {"data.preprocess_parallelism": "global"}, ()),
    (data("preprocess_parallelism: local"), {"data.preprocess_parallelism": "local"}, ()),
    (data("enable_preprocess: false"), {"data.enable_preprocess": False}, ()),
    (data("force_reprocess: false"), {"data.force_reprocess": False}, ()),
    (data("force_reprocess: true"), {"data.force_reprocess": True},
     ("data.force_reprocess is not needed: rows are cached by content, so what has changed is always encoded anew",)),
    (data("preprocessing_batch_size: 4"), {},
     ("data.preprocessing_batch_size has no effect: rows are encoded one by one, since the bits of a row in a batch depend on its "
      "neighbours",)),
    (data("dataloader_num_workers: 4"), {},
     ("data.dataloader_num_workers has no effect: encoded rows are read from the cache, without worker processes",)),
    (model("frozen_parameters_dtype: {default: bf16, text_encoders: null, vae: fp32}"), {},
     ('model.frozen_parameters_dtype.vae: "fp32" has no effect: the VAE is loaded as its stock pipeline has it',)),
    (model("component_load_dtypes: bfloat16"), {}, ()),
    *(({"model": f"  model_type: {name}"}, {"model.model_type": ours}, ()) for name, ours in (
        ("qwen_image_2_1", "qwen-image-2.1"), ("ltx2_t2av", "ltx2_t2av"), ("ltx2_i2av", "ltx2_i2av"), ("wan2_t2v", "wan2_t2v"),
        ("wan2_i2v", "wan2_i2v"), ("wan2_v2v", "wan2_v2v"))),
    ({"model": "  model_type: qwen-image-2.1", "train": "  use_kv_cache: true"}, {"train.call": {"use_kv_cache": True}}, ()),
    ({"model": "  model_type: ltx2_t2av", "train": "  num_frames: 9\n  frame_rate: 24",
      "rest": f"eval:\n  num_frames: 17\n{PLAIN['rest']}"},
     {"train.call": {"num_frames": 9, "frame_rate": 24}, "eval.call": {"num_frames": 17, "frame_rate": 24}}, ()),
    (rest("eval:\n  num_frames: null\n  frame_rate: null\n"), {"eval.call": {}}, ()),
    (rest("acceleration:\n  shared: {name: torch_compile, params: {mode: regional}}\n  rollout: null\n"), {"model.compile": True}, ()),
    (rest("optimizers:\n  - {name: generator, weight_decay: 0.1, betas: null}\n"),
     {"train.adam_weight_decay": 0.1, "train.adam_betas": (0.9, 0.999), "train.learning_rate": 3e-4}, ()),
    ({"rest": "rewards:\n  - {reward_model: shapes, async_reward: true, num_workers: 2}\n"},
     {"rewards.0.async_reward": True, "rewards.0.num_workers": 2}, ()),
    ({"rest": "rewards:\n  - {reward_model: shapes, num_workers: 2}\n"}, {},
     ("rewards.0.num_workers: 2 has no effect without async_reward: true",)),
    ({"train": "  reward_optimization_overlap: true\n  reward_optimization_overlap_mode: ordered\n  global_std: false",
      "rest": "rewards:\n  - {reward_model: shapes, async_reward: true}\n"}, {"train.reward_optimization_overlap": True},
     ("train.reward_optimization_overlap_mode has no effect: groups are trained on in the order in which they were drawn",)),
    ({"train": "  reward_optimization_overlap: false\n  reward_optimization_overlap_mode: ready\n"
               "  reward_optimization_overlap_poll_interval: 0.05"}, {"train.reward_optimization_overlap": False}, ()),
    ({"train": "  shuffle_samples: false"}, {},
     ("train.shuffle_samples has no effect: micro-batches keep the order in which they were drawn",)),
    *(({"train": f"  enable_gradient_checkpointing: {written}"}, {"train.enable_gradient_checkpointing": found}, ()) for written, found in (
        ("{mode: none}", False), ("{mode: full}", True), ("{mode: fraction, fraction: 0.5}", {"fraction": 0.5}),
        ("{mode: every_n, every_n: 2}", {"every": 2}), ("{mode: layers, layers: [0, 3]}", {"layers": [0, 3]}))),
    ({"train": "  latent_storage_dtype: null"}, {"train.latent_storage_dtype": "fp32"}, ()),
    ({"train": "  latent_storage_dtype: fp16"}, {"train.latent_storage_dtype": "fp16"}, ()),
    ({}, {"train.ema_decay_schedule": "power", "train.latent_storage_dtype": "fp16", "train.ref_param_device": "auto"}, ()),
    ({"train": "  ref_param_device: cuda"}, {"train.ref_param_device": "cuda"}, ()),
    ({"train": "  trainer_type: dppo\n  global_std: true\n  advantage_aggregation: gdpo\n  kl_guidance_scale: 4.5\n  kl_beta: 1.0e-3"},
     {"train.kl_guidance_scale": 4.5, "train.kl_mask_type": "exact"}, ()),
    ({"train": "  trainer_type: dmd2\n  gradient_step_per_epoch: 1\n  num_inner_epochs: 1", "rest": JUDGES},
     {"train.num_inference_steps": 4}, ()),
    ({"train": "  trainer_type: tdm-r1\n  advantage_aggregation: gdpo\n  global_std: true"}, {"train.global_std": True}, ()),
    ({"train": "  trainer_type: sft\n  gradient_accumulation_steps: 2", "rest": JUDGES}, {"train.weighting_scheme": "logit_normal"}, ()),
    ({"top": "num_machines: 2\nnum_processes: 2\n"}, {"num_processes": 2}, ()),
    *(({"top": f"config_file: config/{name}.yaml\nnum_processes: 2\n"}, {},
       (f"config_file: there is no config/{name}.yaml; using Flow-Factory's own {name.rpartition('/')[2]}.yaml",)) for name in (
        "accelerate_configs/multi_gpu", "accelerate_configs/multi_node", "deepspeed/deepspeed_zero1", "deepspeed/deepspeed_zero2")),
]  # fmt: skip


def at(config: RunConfig[Any], key: str) -> Any:
    return reduce(lambda part, name: part[int(name)] if name.isdigit() else getattr(part, name), key.split("."), config)


@pytest.mark.parametrize(("parts", "found", "notices"), READ, ids=map(str, range(len(READ))))
def test_a_file_with_the_key_is_read(tmp_path: Path, parts: dict[str, str], found: dict[str, Any], notices: tuple[str, ...]) -> None:
    config = load(tmp_path, parts)
    assert {key: at(config, key) for key in found} == found
    assert config.notices == notices


CACHE = "a cache in the rollout changes what is sampled"
UNIRL = ("add_kl_coefficient", "advantage_group", "branch_steps_per_rollout", "weight_scale", "rectification_indices", "adv_std_saturate",
         "ref_deviation_coef", "mid_timestep", "final_timestep")  # fmt: skip
REFUSED: list[tuple[dict[str, str], str]] = [
    (data("preprocess_parallelism: node"), 'run.yaml:3: data.preprocess_parallelism: wants one of local, global; got "node"'),
    (data("sampler_type: tiled"), "run.yaml:3: data.sampler_type: wants one of auto, distributed_k_repeat"),
    *((model(f"{key}: {{transformers: fp32}}"), f'run.yaml:7: model.{key}.transformers: "fp32" is not offered: frozen parts are loaded')
      for key in ("frozen_parameters_dtype", "component_load_dtypes")),
    *(({"model": f"  model_type: {name}"}, f"run.yaml:6: model.model_type: no model '{name}'") for name in (
        "sensenova", "minimax-h3-t2va", "minimax-h3-fl2va", "minimax-h3-ref2va")),
    (model("resume_path: hf://owner/name/folder@main"),
     'model.resume_path: "hf://owner/name/folder@main": a checkpoint is read from disk; download it, and name the folder'),
    *(({"train": f"  trainer_type: {name}"}, f"run.yaml:8: train.trainer_type: no algorithm '{name}'. Did you mean 'dmd2'?")
      for name in ("dmdr", "dmd")),
    *(({"train": f"  {key}: null"}, f"run.yaml:9: train.{key}: unknown key") for key in UNIRL),
    ({"train": "  branches_per_seed: 6"}, "run.yaml:9: train.branches_per_seed: unknown key here; it belongs in scheduler:"),
    ({"train": "  use_kv_cache: true"}, "run.yaml:9: train.use_kv_cache: unknown key"),
    ({"train": "  num_frames: 9"}, "run.yaml:9: train.num_frames: unknown key"),
    ({"train": "  enable_gradient_checkpointing: {mode: some}"}, "train.enable_gradient_checkpointing: wants true, false, auto, {fraction"),
    ({"train": "  trainer_type: dppo\n  clip_range: 1.0e-4"}, "run.yaml:9: train.clip_range: dppo does not clip the ratio"),
    (rest("acceleration:\n  rollout:\n    - {name: diffusers_cache, params: {policy: magcache, threshold: 0.1}}\n"),
     f"acceleration.rollout.0: diffusers_cache: {CACHE}"),
    (rest("acceleration:\n  shared: {name: torch_compile, params: {fullgraph: true}}\n"),
     "acceleration.shared.params.fullgraph: unknown key. Known: compile_kwargs, mode"),
    (rest("acceleration:\n  shared: {name: torch_compile, params: {compile_kwargs: [inductor]}}\n"),
     'acceleration.shared.params.compile_kwargs: wants a mapping, got ["inductor"]'),
    (rest("acceleration:\n  shared:\n    - {name: torch_compile, parms: {mode: full}}\n"),
     "acceleration.shared.0.parms: unknown key. Known: name, params"),
    (rest("acceleration:\n  shared: {name: attention_backend, params: {backend: flash, fallback: true}}\n"),
     "acceleration.shared.params.fallback: unknown key. Known: backend"),
    (model("attn_backend: native") | rest("acceleration:\n  shared: {name: attention_backend, params: {backend: flash}}\n"),
     'acceleration.shared.params.backend: is "flash" here and "native" in model.attn_backend; keep one'),
    (rest("optimizers:\n  - {name: surrogate}\n"), "optimizers.0.name: surrogate: grpo trains no network of this name; write default"),
    ({"train": "  trainer_type: sft"}, "rewards: sft learns from the column target, and uses no reward"),
    ({"train": "  trainer_type: diffusion-opd\n  teachers: [{path: a}]"}, "rewards: diffusion-opd takes no rewards"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "line"), REFUSED, ids=map(str, range(len(REFUSED))))
def test_a_file_with_the_key_is_refused_in_one_line(tmp_path: Path, parts: dict[str, str], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, parts)
    (said,) = str(error.value).splitlines()
    assert line in said, said


def test_the_keys_of_a_data_set(tmp_path: Path) -> None:
    entry = """\
  datasets:
    - name: ocr
      dataset_dir: dataset/ocr
      video_dir: clips
      train: {weight: 2, max_dataset_size: 5}
      eval: {split: val, max_dataset_size: 3, num_inference_steps: 7, guidance_scale: 2.0, resolution: 64}
    - name: held
      dataset_dir: dataset/held
      image_dir: pictures
      audio_dir: sounds
      eval: {}
    - {name: unused, dataset_dir: dataset/unused}"""
    ocr, held, unused = datasets_of(load(tmp_path, {"data": entry}))
    assert (ocr.weight, ocr.config.data.max_dataset_size, ocr.evaluated, ocr.most_tested) == (2, 5, True, 3)
    found, tested = ocr.config.data, ocr.config.eval
    assert (found.image_dir, found.video_dir, found.audio_dir) == ("dataset/ocr/images", "clips", "dataset/ocr/audios")
    assert (found.test_split, tested.num_inference_steps, tested.guidance_scale, tested.resolution) == ("val", 7, 2.0, (64, 64))
    assert (held.weight, held.evaluated, held.config.data.image_dir, held.config.data.audio_dir) == (0, True, "pictures", "sounds")
    assert (unused.weight, unused.evaluated) == (0, False)
    (one,) = datasets_of(load(tmp_path, {"data": "  datasets:\n    - {name: one, dataset_dir: dataset/one, train: {}}"}))
    assert (one.name, one.config.data.dataset_dir, one.weight) == ("one", "dataset/one", 1), "a list of one is that one"
