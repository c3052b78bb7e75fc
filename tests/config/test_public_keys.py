"""Sections and keys of newer public configs: each is read, with a line where it has no effect, or refused in one."""

from pathlib import Path
from typing import Any

import pytest

from flow_factory.config import ConfigError, RunConfig, load_config
from tests.config.cases import GOOD


def load(folder: Path, more: str = "", train: str = "", model: str = "", data: str = "", overrides: tuple[str, ...] = ()) -> RunConfig[Any]:
    text = GOOD
    for section, keys in (("train", train), ("model", model), ("data", data)):
        text = text.replace(f"{section}:\n", f"{section}:\n" + "".join(f"  {line}\n" for line in keys.splitlines()), 1)
    (folder / "run.yaml").write_text(text + more)
    return load_config(folder / "run.yaml", overrides)


ADAMW = """\
optimizers:
  - name: default
    optimizer: adamw
    learning_rate: 2.0e-4
    weight_decay: 1.0e-3
    betas: [0.9, 0.99]
    eps: 1.0e-8
    max_grad_norm: 0.5
    update_frequency: 1
"""
MUON = """\
optimizers:
  - {name: default, optimizer: muon, learning_rate: 2.0e-3, momentum: 0.9, nesterov: false, ns_steps: 6, adjust_lr_fn: original,
     fallback_betas: [0.8, 0.9], fallback_eps: 1.0e-9, eps: 1.0e-7, ns_coefficients: [3.4445, -4.775, 2.0315]}
"""


def test_the_optimiser_of_one_network_is_what_train_says(tmp_path: Path) -> None:
    train = load(tmp_path, ADAMW).train
    assert (train.optimizer, train.learning_rate, train.adam_weight_decay, train.adam_betas) == ("adamw", 2e-4, 1e-3, (0.9, 0.99))
    assert (train.adam_epsilon, train.max_grad_norm) == (1e-8, 0.5)
    train = load(tmp_path, MUON).train
    assert (train.optimizer, train.muon_momentum, train.muon_nesterov, train.muon_ns_steps) == ("muon", 0.9, False, 6)
    assert (train.muon_adjust_lr_fn, train.adam_betas, train.adam_epsilon) == ("original", (0.8, 0.9), 1e-9)
    assert load(tmp_path, ADAMW, overrides=("train.learning_rate=1e-5",)).train.learning_rate == 1e-5, "the command line wins"
    assert load(tmp_path, ADAMW, overrides=("optimizers.0.learning_rate=1e-5",)).train.learning_rate == 1e-5


ACCELERATION = """\
acceleration:
  shared:
    - {name: attention_backend, params: {backend: _native_math}}
    - {name: torch_compile, params: {mode: full, compile_kwargs: {backend: aot_eager, dynamic: true}}}
  rollout: []
"""


def test_acceleration_is_keys_of_the_model(tmp_path: Path) -> None:
    config = load(tmp_path, ACCELERATION)
    assert (config.model.attn_backend, config.model.compile, config.model.compile_backend) == ("_native_math", True, "aot_eager")
    assert config.notices[:2] == (
        "acceleration.shared.1.params.mode: full has no effect: blocks are compiled, which takes less time at the start",
        "acceleration.shared.1.params.compile_kwargs.dynamic has no effect: each shape of a call is compiled by itself",
    )
    single = "acceleration:\n  shared: {name: torch_compile}\n"
    assert load(tmp_path, single).model.compile and not load(tmp_path, "acceleration: null\n").model.compile


@pytest.mark.parametrize(("keys", "notices"), [
    ({"model": "trainable_parameters_dtype: bf16"}, ()),
    ({"model": "trainable_parameters_dtype: torch.bfloat16\nmaster_weight_dtype: bfloat16"}, ()),
    ({"model": "component_load_dtypes: {default: bf16, vae: null}\nfrozen_parameters_dtype: bfloat16"}, ()),
    ({"model": "component_load_dtypes: {vae: fp32}"},
     ("model.component_load_dtypes.vae: \"fp32\" has no effect: the VAE is loaded as its stock pipeline has it",)),
    ({"data": "sampler_type: group_tiled\nsampler_subgroup_size: null"},
     ("data.sampler_type: group_tiled has no effect: a group always lives on one process",)),
    ({"train": "shuffle_samples: true"}, ("train.shuffle_samples has no effect: micro-batches keep the order in which they were drawn",)),
    ({"train": "num_frames: null\nframe_rate: null\nenable_gradient_checkpointing: {mode: full}"}, ()),
    ({"more": "num_machines: 1\n", "train": "ref_param_device: same_as_model"}, ()),
    ({"overrides": ("train.trainer_type=nft", "scheduler.step_selection=branch", "scheduler.dynamics_type=ODE")},
     ("scheduler.step_selection: branch has no effect: nft has no stochastic steps",)),
])  # fmt: skip
def test_what_has_another_name_here_is_read(tmp_path: Path, keys: dict[str, Any], notices: tuple[str, ...]) -> None:
    config = load(tmp_path, **keys)
    assert config.notices == notices
    if "trainable_parameters_dtype" in keys.get("model", ""):
        assert config.model.master_weight_dtype == "bf16"


def test_keys_of_public_rewards(tmp_path: Path) -> None:
    text = """\
eval_rewards:
  - {reward_model: geneval2_soft_tifa, name: geneval2, data_path: dataset/GenEval2, aggregation: gm}
  - {reward_model: hpsv2, hps_version: v2.1}
"""
    config = load(tmp_path, text)
    assert config.eval_rewards is not None
    assert [(r.reward_model, r.extra_kwargs) for r in config.eval_rewards] == [("GenEval2", {"mean": "geometric"}), ("hpsv2", {})]
    assert config.notices == ("eval_rewards.0.data_path has no effect: questions are the data set's column vqa_list",)
    with pytest.raises(ConfigError, match=r'eval_rewards.1.hps_version: "v2.0" is not offered; write v2.1'):
        load(tmp_path, text.replace("v2.1", "v2.0"))


def test_no_end_is_written_as_a_negative_number(tmp_path: Path) -> None:
    for many in (-1, -5):
        config = load(tmp_path, overrides=(f"train.max_epochs={many}",))
        assert config.train.max_epochs is None
        assert config.notices == (f"train.max_epochs: {many} is null here: the run goes on until it is stopped",)


@pytest.mark.parametrize(("keys", "line"), [
    ({"more": ADAMW, "train": "learning_rate: 1.0e-5"},
     "run.yaml:28: optimizers.0.learning_rate: is 0.0002 here and 1.0e-05 in train.learning_rate; keep one"),
    ({"more": ADAMW.replace("frequency: 1", "frequency: 5")}, "run.yaml:32: optimizers.0.update_frequency: 5: the policy is trained"),
    ({"more": ADAMW.replace("betas:", "beta:")}, "run.yaml:29: optimizers.0.beta: unknown key. Known: betas, eps"),
    ({"more": ADAMW.replace("optimizer: adamw", "optimizer: lion")}, "run.yaml:26: optimizers.0.optimizer: wants one of adamw, adamw8bit"),
    ({"more": MUON.replace("2.0315", "2.0")}, "optimizers.0.ns_coefficients: [3.4445, -4.775, 2.0]: torch's Muon is run with"),
    ({"more": "acceleration:\n  rollout:\n    - {name: diffusers_cache, params: {policy: first_block}}\n"},
     "run.yaml:26: acceleration.rollout.0: diffusers_cache: a cache in the rollout changes what is sampled"),
    ({"more": "acceleration:\n  rollout: {name: torch_compile}\n"}, "run.yaml:25: acceleration.rollout: torch_compile for rollouts alone"),
    ({"more": "acceleration:\n  shared: {name: my.Own}\n"}, "run.yaml:25: acceleration.shared.name: \"my.Own\" is not offered; known:"),
    ({"more": "acceleration: fast\n"}, "run.yaml:24: acceleration: wants shared: and rollout:, got \"fast\""),
    ({"more": "acceleration:\n  shared: [fast]\n"}, "run.yaml:25: acceleration.shared.0: wants a mapping such as {name: torch_compile"),
    ({"more": "acceleration:\n  shared: {name: torch_compile, params: {mode: wild}}\n"}, "shared.params.mode: wants auto, regional"),
    ({"model": "component_load_dtypes: {text_encoders: fp16}"},
     "run.yaml:5: model.component_load_dtypes.text_encoders: \"fp16\" is not offered: frozen parts are loaded"),
    ({"model": "trainable_parameters_dtype: fp32\nmaster_weight_dtype: bf16"}, "run.yaml:5: model.trainable_parameters_dtype: is"),
    ({"data": "sampler_subgroup_size: 2"}, "run.yaml:3: data.sampler_subgroup_size: 2 has no effect here"),
    ({"model": "use_kv_cache: true"}, "model.use_kv_cache: unknown key"),
    ({"overrides": ("model.model_type=qwen-image-3",)}, "model_type: diffusers runs most stock pipelines; or give a dotted path"),
    ({"overrides": ("train.trainer_type=tdm-r1", "train.use_huber=true")}, "train.use_huber: wants false; got true"),
])  # fmt: skip
def test_what_cannot_work_is_refused_in_one_line(tmp_path: Path, keys: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, **keys)
    (said,) = str(error.value).splitlines()
    assert line in said, said


EXACT = "what is trained on is computed as it was rolled out"
PAIR = "a pair is a group of two, in a forward of its own"
TRAINERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "flow-dppo": ("dppo", "kl_type: x-based\nkl_guidance_scale: null\nkl_mask_type: v-based\nkl_mask_threshold: 1.0e-6", ()),
    "sft": ("sft", "weighting_scheme: logit_normal\nnum_train_timesteps: 1\ntimestep_range: 0.99\ntime_shift: 1\nlogit_std: 1\n"
            "gradient_accumulation_steps: 3", ()),
    "offline-dpo": ("dpo", "beta: 2000\nadv_clip_range: 5.0", (
        f"train.group_size: 8 -> 2: {PAIR}", f"train.per_device_batch_size: 4 -> 2: {PAIR}",
        "train.adv_clip_range has no effect: it belongs to trainer_type: grpo, grpo-guard, dppo, nft, awm, dgpo, crd, and this is dpo")),
    "dmd2": ("dmd2", "ttur_fake_updates: 5\nperturbation_timestep_range: [0.02, 0.98]\nreal_guidance_scale: null\nreplay_rtol: 1.0e-4\n"
             "replay_atol: 1.0e-4", (f"train.replay_rtol has no effect: {EXACT}", f"train.replay_atol has no effect: {EXACT}")),
    "tdm": ("tdm", "use_huber: true\nhuber_c: 1.0e-3\ntdm_snr_gamma: 5\ntdm_importance_clip: 20\ntdm_query_interval: trajectory\n"
            "tdm_query_distribution: actual_uniform\ntdm_query_max_sigma: 1\ntdm_query_logit_mean: 0\ntdm_query_logit_std: 1", ()),
    "tdm-r1": ("tdm-r1", "use_huber: false\ntdm_weight: 0.3\nsurrogate_preference_beta: 10\nadvantage_clip_range: 5\n"
               "cfg_reward_scale: 4.5\nsurrogate_reference_beta: 1.0e-3\nsurrogate_reference_threshold: 0.05\n"
               "surrogate_clip_range: 1.0e-3\nuse_time_weighting: true\nsurrogate_slow_decay_min: 1.0e-3\n"
               "surrogate_slow_decay_max: 0.3", ()),
    "diffusion-opd": ("diffusion-opd", "teachers:\n  - {name: one, path: one, applicable_datasets: null, guidance_scale: null}\n"
                      "teacher_param_device: cuda\ntimestep_range: 0.99\nloss_target: xt\nself_normalize: false", ()),
}  # fmt: skip
"""Name in public files -> name here, keys of its public `train:`, and the notices."""


@pytest.mark.parametrize("name", TRAINERS)
def test_newer_trainers_take_their_public_keys(tmp_path: Path, name: str) -> None:
    ours, keys, notices = TRAINERS[name]
    judged = name in ("flow-dppo", "tdm-r1")
    overrides = (f"train.trainer_type={name}", *([] if judged else ["rewards=null"]), *([] if ours == "dppo" else ["scheduler=null"]))
    config = load(tmp_path, train=keys, overrides=overrides)
    assert (config.train.trainer_type, config.notices) == (ours, notices)
    if name == "tdm":
        assert (config.train.tdm_query_interval, config.train.tdm_query_distribution) == ("trajectory", "actual_uniform")


def test_muon_is_for_whole_matrices(tmp_path: Path) -> None:
    (tmp_path / "fsdp.yaml").write_text("distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\n")
    with pytest.raises(ConfigError, match=r"optimizers.0.optimizer: muon cannot be sharded by FSDP2 \(it steps whole matrices\)"):
        load(tmp_path, MUON + f"config_file: {tmp_path}/fsdp.yaml\n")
    line = "train.muon_momentum, train.muon_ns_steps: no effect with optimizer: adamw"
    assert line in load(tmp_path, train="muon_momentum: 0.9\nmuon_ns_steps: 4").notices


@pytest.mark.parametrize("name", ["public_several_data_sets", "public_dppo"])
def test_a_whole_file_of_2026_is_read(name: str) -> None:
    config = load_config(Path(__file__).with_name(f"{name}.yaml"))
    assert (config.train.learning_rate, config.train.adam_epsilon, config.model.finetune_type) == (3e-4, 1e-8, "lora")
    assert len(config.data.datasets) > 1 and not any("reward_optimization_overlap" in line for line in config.notices)
