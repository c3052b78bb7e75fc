"""The YAML: what is accepted, what is refused and with which words, and what it works out to."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flow_factory.algorithms import ALGORITHMS
from flow_factory.config import TRAIN_CONFIGS, ConfigError, GRPOConfig, RunConfig, config_help, dump_config, load_config, plan_of
from flow_factory.config.help import SECTIONS
from flow_factory.config.monitor import WatchConfig
from flow_factory.config.networks import NetworkConfig
from flow_factory.config.plan import Deal
from flow_factory.config.signature import call_arguments, scheduler_arguments
from tests.conftest import ROOT

GOOD = """\
num_processes: 2
data:
  dataset_dir: dataset/shapes
model:
  model_type: flux1
  model_name_or_path: assets/tiny
  finetune_type: lora
scheduler:
  dynamics_type: Flow-SDE
  num_sde_steps: 2
train:
  trainer_type: grpo
  max_epochs: 50
  per_device_batch_size: 4
  group_size: 8
  unique_sample_num_per_epoch: 6
  gradient_step_per_epoch: 3
  num_inference_steps: 8
  max_sequence_length: 10
eval:
  eval_freq: 1
rewards:
  - reward_model: shapes
"""

PUBLIC = """\
launcher: "accelerate"  # Options: accelerate
config_file: config/deepspeed/deepspeed_zero2.yaml
num_processes: 8
main_process_port: 29500
mixed_precision: "bf16"

data:
  dataset_dir: "dataset/t2is"
  preprocessing_batch_size: 8
  dataloader_num_workers: 16
  force_reprocess: true
  cache_dir: "~/.cache/flow_factory/datasets"
  max_dataset_size: 1000
  sampler_type: "auto"

model:
  finetune_type: 'lora'
  lora_rank : 64
  lora_alpha : 128
  target_modules: "default"
  model_name_or_path: "black-forest-labs/FLUX.1-dev"
  model_type: "flux1"
  resume_path: null
  resume_type: null

log:
  run_name: null
  project: "Flow-Factory"
  logging_backend: "wandb"
  save_dir: "saves/"
  save_freq: 20
  save_model_only: true

train:
  trainer_type: 'grpo'
  advantage_aggregation: 'gdpo'
  clip_range: 1.0e-4
  adv_clip_range: 5.0
  kl_type: 'v-based'
  kl_beta: 0
  ref_param_device: 'cuda'
  resolution: 512
  num_inference_steps: 10
  guidance_scale: 3.5
  max_sequence_length: 256
  per_device_batch_size: 2
  group_size: 16
  global_std: false
  unique_sample_num_per_epoch: 48
  gradient_step_per_epoch: 2
  gradient_accumulation_steps: auto
  learning_rate: 3.0e-4
  adam_weight_decay: 1.0e-4
  adam_betas: [0.9, 0.999]
  adam_epsilon: 1.0e-8
  max_grad_norm: 1.0
  ema_decay: 0.9
  ema_update_interval: 4
  ema_device: "cuda"
  enable_gradient_checkpointing: false
  seed: 42

scheduler:
  dynamics_type: "Flow-SDE"
  noise_level: 0.7
  num_sde_steps: 1
  sde_steps: [1, 2, 3]
  seed: 42

eval:
  resolution: 1024
  per_device_batch_size: 1
  guidance_scale: 3.5
  num_inference_steps: 20
  eval_freq: 20
  seed: 42

rewards:
  - name: "pickscore_rank"
    reward_model: "PickScore_Rank"
    weight: 1.0
    batch_size: 16
    device: "cuda"
    dtype: bfloat16

eval_rewards:
  name: "pickscore"
  reward_model: "PickScore"
  batch_size: 16
  device: "cuda"
  dtype: bfloat16
"""


@pytest.fixture
def load(tmp_path):
    """load(text, *overrides) -> RunConfig"""

    def load(text: str = GOOD, *overrides: str) -> RunConfig:
        file = tmp_path / "run.yaml"
        file.write_text(text, "utf-8")
        return load_config(file, overrides)

    return load


# Each case: what is replaced in GOOD, by what (the line with the mistake ends in "#!"), and what the message must say.
TRAIN, SCHEDULER, MODEL, DATA, REWARDS = "train:\n", "scheduler:\n", "model:\n", "data:\n", "  - reward_model: shapes\n"
BAD = [
    # names
    (TRAIN, "train:\n  learing_rate: 0.1 #!\n", ["train.learing_rate", "unknown key", "'learning_rate'"]),
    (TRAIN, "train:\n  noise_level: 0.5 #!\n", ["train.noise_level", "belongs in scheduler:"]),
    (TRAIN, "train:\n  max_sequence_lenght: 10 #!\n", ["unknown key", "'max_sequence_length'"]),
    (TRAIN, "train:\n  call: {} #!\n", ["train.call", "unknown key"]),
    (DATA, "data:\n  dataset_dri: x #!\n", ["data.dataset_dri", "'dataset_dir'"]),
    (DATA, "data:\n  zzz: x #!\n", ["data.zzz", "Known: audio_dir, cache_dir"]),
    (MODEL, "model:\n  lora_rnk: 4 #!\n", ["model.lora_rnk", "'lora_rank'"]),
    (SCHEDULER, "scheduler:\n  base_shft: 0.5 #!\n", ["scheduler.base_shft", "'base_shift'"]),
    ("eval:\n", "eval:\n  eval_frequency: 3 #!\n", ["eval.eval_frequency", "'eval_freq'"]),
    ("eval:\n", "log:\n  save_frq: 3 #!\neval:\n", ["log.save_frq", "'save_freq'"]),
    ("num_processes: 2\n", "num_process: 2 #!\n", ["num_process:", "'num_processes'"]),
    ("num_processes: 2\n", "learning_rate: 0.1 #!\n", ["learning_rate", "belongs in train:"]),
    ("rewards:\n", "reward: #!\n", ["reward: unknown key", "'rewards'"]),
    (REWARDS, "  - reward_model: shapes\n    strickt: true #!\n", ["rewards.0.strickt", "'strict'"]),
    ("model_type: flux1", "model_type: flux-11 #!", ["model.model_type", "no model 'flux-11'", "Did you mean 'flux1'"]),
    ("model_type: flux1", "model_type: no_such_package.models.Mine #!", ["model.model_type", "no module 'no_such_package.models'"]),
    ("trainer_type: grpo", "trainer_type: gpro #!", ["train.trainer_type", "no algorithm", "'grpo'"]),
    (REWARDS, "  - reward_model: pikscore #!\n", ["rewards.0.reward_model", "no reward 'pikscore'", "'PickScore'"]),
    ("eval:\n", "log:\n  logging_backend: wanbd #!\neval:\n", ["log.logging_backend", "no tracker 'wanbd'", "'wandb'"]),
    (MODEL, "model:\n  attn_backend: flsh_hub #!\n", ["model.attn_backend", "'flash_hub'"]),
    (
        "dynamics_type: Flow-SDE",
        "dynamics_type: flow-sde #!",
        ["scheduler.dynamics_type", "Flow-SDE, Dance-SDE, Flash-SDE, CPS, ODE", "'Flow-SDE'"],
    ),
    ("finetune_type: lora", "finetune_type: loar #!", ["model.finetune_type", "full, lora", "'lora'"]),
    (REWARDS, "  - reward_model: shapes\n    device: gpu #!\n", ["rewards.0.device", "no device", "cuda:0"]),
    (REWARDS, "  - reward_model: shapes\n    dtype: fp8 #!\n", ["rewards.0.dtype", "bf16, fp16, fp32"]),
    # types
    (TRAIN, "train:\n  learning_rate: 1e-4 #!\n", ["train.learning_rate", "reads 1e-4 as text", "write 1.0e-4"]),
    (TRAIN, "train:\n  learning_rate: 2.5e4 #!\n", ["train.learning_rate", "write 2.5e+4"]),
    (TRAIN, "train:\n  clip_range: [-1e-4, 1.0e-4] #!\n", ["train.clip_range.0", "write -1.0e-4"]),
    (TRAIN, 'train:\n  learning_rate: "0.1" #!\n', ["train.learning_rate", "wants a number", "write 0.1 without quotes"]),
    ("group_size: 8", 'group_size: "8" #!', ["train.group_size", "wants a whole number", "write 8 without quotes"]),
    ("group_size: 8", "group_size: 8.0 #!", ["train.group_size", "write 8"]),
    ("group_size: 8", "group_size: true #!", ["train.group_size", "wants a whole number, got true"]),
    (TRAIN, "train:\n  learning_rate: true #!\n", ["train.learning_rate", "wants a number, got true"]),
    (TRAIN, "train:\n  learning_rate: .inf #!\n", ["train.learning_rate", "finite"]),
    (TRAIN, 'train:\n  global_std: "true" #!\n', ["train.global_std", "wants true or false", "write true without quotes"]),
    (TRAIN, "train:\n  global_std: 1 #!\n", ["train.global_std", "write true"]),
    (TRAIN, "train:\n  adam_betas: 0.9 #!\n", ["train.adam_betas", "wants two numbers", "[0.9, 0.999]"]),
    (TRAIN, "train:\n  resolution: [64, 64, 3] #!\n", ["train.resolution", "512 or [512, 768]"]),
    (TRAIN, "train:\n  gradient_accumulation_steps: some #!\n", ["train.gradient_accumulation_steps", "wants auto or a whole number"]),
    ("max_sequence_length: 10", 'max_sequence_length: "10" #!', ["train.max_sequence_length", "wants int", '"10"']),
    (SCHEDULER, "scheduler:\n  shift: wide #!\n", ["scheduler.shift", "wants float"]),
    ("eval:\n", "log:\n  run_name: 7 #!\neval:\n", ["log.run_name", "wants text", 'write "7"']),
    ("dataset_dir: dataset/shapes", "max_dataset_size: many #!", ["data.max_dataset_size", "wants a whole number"]),
    ("data:\n  dataset_dir: dataset/shapes\n", "data: dataset/shapes #!\n", ["data: wants a mapping"]),
    ("model:\n", "eval_rewards: [{reward_model: CLIP, weight: x}] #!\nmodel:\n", ["eval_rewards.0.weight", "wants a number"]),
    ("eval:\n  eval_freq: 1\n", "eval:\n  eval_freq:1\n", ["eval: wants a mapping", "a space follows the colon"]),
    ("num_processes: 2\n", "seed: 1 #!\n", ["seed: unknown key", "belongs in train:"]),
    # ranges
    (TRAIN, "train:\n  learning_rate: 0 #!\n", ["train.learning_rate", "must be greater than 0"]),
    (TRAIN, "train:\n  ema_decay: 1.0 #!\n", ["train.ema_decay", "must be less than 1"]),
    (TRAIN, "train:\n  clip_range: 0 #!\n", ["train.clip_range", "low < 0 < high"]),
    (TRAIN, "train:\n  adv_clip_range: [1, 5] #!\n", ["train.adv_clip_range", "low < 0 < high", "[-5.0, 5.0]"]),
    (MODEL, "model:\n  lora_rank: 0 #!\n", ["model.lora_rank", "greater than or equal to 1"]),
    (
        MODEL,
        "model:\n  rank_pattern: {'attn.(to_q': 4} #!\n",
        ["model.rank_pattern", "is not an ending of a layer's name"],
    ),
    (MODEL, "model:\n  alpha_pattern: {attn.to_q: 0} #!\n", ["model.alpha_pattern.attn.to_q", "must be greater than 0"]),
    (MODEL, "model:\n  lora_dropout: 0.1 #!\n", ["model.lora_dropout", "0.1: grpo compares velocities of training", "write 0, or sft"]),
    (MODEL, "log:\n  save_formats: [comfyui] #!\nmodel:\n  use_dora: true\n", ["log.save_formats", "does not carry a DoRA"]),
    (MODEL, "model:\n  use_dora: true #!\n  quantization: bnb_4bit\n", ["model.use_dora", "takes the norms of whole weights"]),
    (
        "finetune_type: lora",
        "finetune_type: full\n  use_dora: true #!",
        ["model.use_dora", "is of a LoRA, and model.finetune_type is full"],
    ),
    (SCHEDULER, "scheduler:\n  noise_level: -0.7 #!\n", ["scheduler.noise_level", "greater than or equal to 0"]),
    ("num_processes: 2\n", "num_processes: 2\nmain_process_port: 70000 #!\n", ["main_process_port", "65535"]),
    # what the trainer supplies itself
    (TRAIN, "train:\n  latents: null #!\n", ["train.latents", "cannot be set", "train.seed"]),
    (TRAIN, "train:\n  negative_prompt: ugly #!\n", ["train.negative_prompt", "columns of the data set"]),
    ("eval:\n", "eval:\n  num_images_per_prompt: 4 #!\n", ["eval.num_images_per_prompt", "train.group_size"]),
    # the file
    (TRAIN, "train:\n  seed: 1\n  seed: 2 #!\n", ["train.seed", "written twice, first on line 12"]),
    (TRAIN, "train:\n\tseed: 1 #!\n", ["not valid YAML", "tabs"]),
    (TRAIN, "train:\n  on: 1 #!\n", ["a key must be text"]),
    ("  model_name_or_path: assets/tiny\n", "", ["model.model_name_or_path: is required", "run.yaml:4: "]),
    ("rewards:\n  - reward_model: shapes\n", "", ["rewards: is required"]),
    ("rewards:\n  - reward_model: shapes\n", "rewards: [] #!\n", ["rewards: wants a reward", "reward_model"]),
    ("rewards:\n  - reward_model: shapes\n", "rewards: {} #!\n", ["rewards.reward_model: is required"]),
    ("rewards:\n  - reward_model: shapes\n", "rewards: shapes #!\n", ["rewards: wants a reward", "reward_model"]),
    (
        "rewards:\n  - reward_model: shapes\n",
        "eval_rewards: [shapes] #!\nrewards: {reward_model: shapes}\n",
        ["eval_rewards.0: wants a mapping"],
    ),
    # one key against another
    ("group_size: 8", "group_size: 6 #!", ["train.group_size", "multiple of train.per_device_batch_size=4", "write 4 or 8"]),
    ("  per_device_batch_size: 4\n  group_size: 8\n", "  group_size: 1 #!\n", ["train.group_size", "no advantage", "write 2 or more"]),
    (GOOD[:16], "num_processes: 8", ["_per_epoch", "6 rows make 12 micro-batches", "num_processes=8", "write 4 or 8"]),
    (GOOD[:16], "num_processes: 16", ["_per_epoch", "6 rows make 12 micro-batches", "num_processes=16", "write 8"]),
    ("_per_epoch: 6", "_per_epoch: 5", ["train.gradient_step_per_epoch", "3 must divide the 5 micro-batches", "write 1 or 5"]),
    ("step_per_epoch: 3", "step_per_epoch: 4 #!", ["train.gradient_step_per_epoch", "divide the 6 micro-batches", "write 3 or 6"]),
    (TRAIN, "train:\n  gradient_accumulation_steps: 5 #!\n", ["train.gradient_accumulation_steps", "divide the 6", "write 3 or 6"]),
    ("Flow-SDE", "ODE #!", ["scheduler.dynamics_type", "grpo needs log-probabilities", "Flow-SDE, Dance-SDE, Flash-SDE or CPS"]),
    (SCHEDULER, "scheduler:\n  noise_level: 0 #!\n", ["scheduler.noise_level", "0.7"]),
    (SCHEDULER, "scheduler:\n  sde_steps: [2, 9] #!\n", ["scheduler.sde_steps", "from 0 to 7", "write [2]"]),
    (SCHEDULER, "scheduler:\n  sde_steps: [3, 1, 1] #!\n", ["scheduler.sde_steps", "rising", "write [1, 3]"]),
    (SCHEDULER, "scheduler:\n  sde_steps: [] #!\n", ["scheduler.sde_steps", "write null"]),
    ("num_sde_steps: 2", "num_sde_steps: 8 #!", ["scheduler.num_sde_steps", "more than the 7 steps", "write 7 or null"]),
    ("Flow-SDE", "CPS\n  sde_steps: [5, 6, 7] #!", ["scheduler.sde_steps", "no noise at the last step", "write [5, 6]"]),
    ("num_inference_steps: 8", "num_inference_steps: 1 #!", ["train.num_inference_steps", "2 or more"]),
    ("max_epochs: 5", "lr_scheduler: cosine #!", ["train.lr_scheduler", "set train.max_epochs or train.lr_total_steps"]),
    ("max_epochs: 5", "ema_decay_schedule: cosine #!", ["train.ema_decay_schedule", "set train.max_epochs or train.total_steps"]),
    ("max_epochs: 50", "lr_warmup_steps: 0.1 #!", ["train.lr_warmup_steps", "0.1 is a share of a run that has no end"]),
    (MODEL, "model:\n  resume_type: lora #!\n", ["model.resume_type", "set model.resume_path"]),
    (MODEL, "model:\n  resume_path: x\n  resume_type: full #!\n", ["model.resume_type", "do not fit model.finetune_type: lora"]),
    (REWARDS, "  - reward_model: shapes\n  - reward_model: CLIP\n    name: shapes #!\n", ["rewards.1.name", "rewards.0 too", "shapes_2"]),
    ("eval:\n", "project: a #!\nlog:\n  project: b\neval:\n", ["project", '"a" here and "b" in log:']),
]


@pytest.mark.parametrize(("old", "new", "said"), BAD, ids=[f"{k}-{case[2][0]}" for k, case in enumerate(BAD)])
def test_a_mistake_is_named_with_its_line_and_what_would_be_right(load, old, new, said):
    assert GOOD.count(old) >= 1
    text = GOOD.replace(old, new, 1)
    marked = [number for number, line in enumerate(text.splitlines(), 1) if line.endswith("#!")]
    with pytest.raises(ConfigError) as error:
        load(text)
    message = str(error.value)
    (line,) = [line for line in message.splitlines() if said[0] in line]
    for part in said:
        assert part in line
    if marked:
        assert f"run.yaml:{marked[0]}: " in line


def test_the_table_of_mistakes_starts_from_a_good_config(load):
    assert load().notices == ()


def test_all_mistakes_are_reported_together_in_the_order_of_the_file(load):
    text = GOOD.replace("num_processes: 2", "num_processes: two").replace("group_size: 8", "group_siz: 8").replace("flux1", "flux9")
    with pytest.raises(ConfigError) as error:
        load(text.replace("max_epochs: 5", "learning_rate: 1e-4"))
    lines = str(error.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["num_processes", "model.model_type", "train.learning_rate"]


def test_all_rules_are_reported_together(load):
    with pytest.raises(ConfigError) as error:
        load(GOOD.replace("group_size: 8", "group_size: 6").replace("Flow-SDE", "ODE"))
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == ["scheduler.dynamics_type", "train.group_size"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b\n", "not a mapping"),
        (b"model: {a: 1\n", "not valid YAML"),
        (b"a: 1\nb: \xe9\n", "run.yaml:2: not UTF-8"),
        (b"? [a]\n: 1\n", "a key must be text"),
        (b"a: 1\n---\nb: 1\n", "run.yaml:2: not valid YAML"),
        (b"a: \x07\n", "not valid YAML"),
        (b"a: &x [*x]\n", "alias"),
        (b"a: !!python/object:os.system {}\n", "not valid YAML"),
        (b"a: !!set {b}\n", "run.yaml:1: not valid YAML: a config has no values of the kind tag:yaml.org,2002:set"),
        (b"a: 1\nb: " + b"9" * 5000, "b: is too large; a whole number is at most 9223372036854775807"),
        (b"a: !!bool 3\n", "not valid YAML: a value is not a number, or not what its tag says"),
        (b"a: 1\nb: " + b"[" * 3000 + b"]" * 3000, "run.yaml:2: not valid YAML: nested more than 32 deep"),
        (
            b"a: &a [x, x, x, x, x, x, x, x]\n"
            + b"".join(b"%c: &%c [%s]\n" % (k, k, b", ".join([b"*%c" % (k - 1)] * 8)) for k in b"bcdefgh"),
            "more than 50000 values, with those of its aliases",
        ),
        (b'a: 1\nb: \'x\\n\n"\\ud83d"\'\nc: "\\ud83d"\n', "run.yaml:4: not valid YAML: the character 0xd83d cannot be used"),
        (b'a: "\\U7fffffff"\n', "no character has the number that an escape names"),
        (b"model: 3\nmixed_precision: 'no'\n", "model: wants a mapping of keys to values, got 3"),
    ],
)
def test_a_file_that_is_no_configuration_is_said_to_be_none(tmp_path, content, said):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_config(file)


def test_a_message_is_one_line_whatever_it_quotes(load):
    """A terminal obeys some characters, and others end the line."""
    with pytest.raises(ConfigError) as error:
        load(GOOD + f'"a\\tb\\x1b\\u2028c": 1\neval_rewards: {"x" * 5000}\n')
    assert len(str(ConfigError("a/" * 5000))) < 2100
    one, other = str(error.value).splitlines()
    assert r"a\tb\x1b\u2028c: unknown key" in one and one.isprintable()
    assert "eval_rewards: " in other and other.endswith("(5002 characters)") and len(other) < 500


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    (tmp_path / "flux.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"no such file.*flux\.yaml"):
        load_config(tmp_path / "flx.yaml")
    with pytest.raises(ConfigError, match="a folder, where a YAML file belongs"):
        load_config(tmp_path)


# -- what is accepted ---------------------------------------------------------------------------------------------------------------


def test_a_public_config_loads_unchanged(load, monkeypatch):
    monkeypatch.chdir(ROOT)  # it names a file of the launcher
    config = load(PUBLIC)
    assert isinstance(config.train, GRPOConfig)
    assert config.train.clip_range == (-1e-4, 1e-4)
    assert config.train.adv_clip_range == (-5, 5)
    assert config.train.call == config.eval.call == {"max_sequence_length": 256}
    assert (config.model.target_modules, config.model.lora_alpha) == (("default",), 128)
    assert config.log.logging_backend == ("wandb",)
    assert [r.name for r in config.rewards] == ["pickscore_rank"]
    assert [(r.name, r.dtype) for r in config.eval_rewards or ()] == [("pickscore", "bf16")]
    notice, launcher = sorted(config.notices, key=lambda line: line.startswith("config_file"))
    assert launcher == "config_file: there is no config/deepspeed/deepspeed_zero2.yaml; using Flow-Factory's own deepspeed_zero2.yaml"
    assert "force_reprocess" in notice


@pytest.mark.parametrize("text", [GOOD, PUBLIC], ids=["good", "public"])
def test_a_dump_loads_to_an_equal_configuration(load, text, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load(text, "train.height=256", 'log.run_name="1e-4"', "scheduler.shift=3", "mixed_precision=no")
    again = load(dump_config(config))
    assert again == config
    assert dump_config(again) == dump_config(config)


def test_a_dump_lists_every_key(load):
    tree = yaml.safe_load(dump_config(load(GOOD, "profile={}")))
    tree["optimizers"], tree["monitor"] = NetworkConfig.own_keys(), WatchConfig.own_keys()  # lists that are empty here
    for name, (schema, *_) in SECTIONS.items():
        held = tree if name == "run" else tree["rewards"][0] if name == "rewards" else tree[name]
        assert set(schema.own_keys()) - set(held) <= {"height", "width"}


def test_defaults_follow_other_keys(load):
    config = load(GOOD, "train.resolution=[64, 96]", "train.width=128", "model.lora_rank=32", "data.dataset_dir=here")
    assert (config.train.height, config.train.width) == (64, 128)
    assert config.model.lora_alpha == 64
    assert config.data.image_dir == "here/images"
    assert config.model.master_weight_dtype == "fp32"
    assert load(GOOD, "model.finetune_type=full").model.master_weight_dtype == "bf16"


def test_log_keys_may_stand_at_the_top_level(load):
    config = load("run_name: mine\nproject: p\nlogging_backend: tensorboard, wandb\n" + GOOD)
    assert (config.log.run_name, config.log.project, config.log.logging_backend) == ("mine", "p", ("tensorboard", "wandb"))
    assert load("logging_backend: wandb\n" + GOOD, "logging_backend=none").log.logging_backend == ()
    assert load(GOOD, "log.logging_backend=[swanlab, my_package.trackers.Mine]").log.logging_backend == (
        "swanlab",
        "my_package.trackers.Mine",
    )


def test_equal_log_keys_in_both_places_are_fine(load):
    assert load("project: p\nlog:\n  project: p\n" + GOOD).log.project == "p"


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("rewards: {reward_model: shapes}", ["shapes"]),
        ("rewards: {easy: {reward_model: shapes}, hard: {reward_model: shapes, strict: true}}", ["easy", "hard"]),
        ("rewards: [{reward_model: PickScore_Rank}, {reward_model: CLIP, name: c}]", ["pickscore_rank", "c"]),
    ],
)
def test_rewards_are_one_mapping_or_a_list_or_by_name(load, written, names):
    config = load(GOOD.replace("rewards:\n  - reward_model: shapes", written))
    assert [reward.name for reward in config.rewards] == names


def test_a_reward_of_ones_own_takes_any_key(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text("class Mine:\n    pass\n")
    config = load(GOOD + "  - reward_model: my_rewards.Mine\n    server_url: http://x\n")
    assert config.rewards[-1].extra_kwargs == {"server_url": "http://x"}
    assert config.rewards[-1].name == "mine"


# -- overrides ----------------------------------------------------------------------------------------------------------------------


def test_overrides_win_and_are_read_as_yaml(load):
    config = load(
        GOOD,
        "train.learning_rate=1e-4",
        "train.learning_rate=2e-4",
        "model.target_modules=[to_q, to_k]",
        "rewards.0.weight=2",
        "eval.max_sequence_length=20",
        "train.max_epochs=",
    )
    assert config.train.learning_rate == 2e-4
    assert config.model.target_modules == ("to_q", "to_k")
    assert config.rewards[0].weight == 2
    assert (config.train.call, config.eval.call) == ({"max_sequence_length": 10}, {"max_sequence_length": 20})
    assert config.train.max_epochs is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.learning_rate", "section.key=value"),
        ("=3", "section.key=value"),
        ("train.learing_rate=1", "train.learing_rate: unknown key. Did you mean 'learning_rate'"),
        ("train.group_size=many", "train.group_size: wants a whole number"),
        ("train.group_size=6", "train.group_size: 6 must be a multiple"),
        ("rewards.1.weight=2", "rewards has no entry 1; it has 0 to 0"),
        ("rewards.shapes.weight=2", "rewards is a list"),
        ("train.seed.x=1", "train.seed is not a mapping"),
        ("train.adam_betas=[1", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_named(load, text, said):
    with pytest.raises(ConfigError) as error:
        load(GOOD.replace("trainer_type: grpo", "seed: 1"), text)
    assert f'override "{text}"' in str(error.value)
    assert said in str(error.value)


# -- arguments read from source -----------------------------------------------------------------------------------------------------


def test_call_arguments_are_those_of_the_pipeline():
    import inspect

    from diffusers import FluxPipeline

    real = list(inspect.signature(FluxPipeline.__call__).parameters)[1:]
    assert list(call_arguments("flow_factory.models.flux1:Flux1")) == real


def test_scheduler_arguments_are_those_of_the_flow_schedulers():
    import inspect

    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    real = {p for cls in (FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler) for p in inspect.signature(cls).parameters}
    assert set(scheduler_arguments()) == real
    assert scheduler_arguments()["shift_terminal"].problem(0.1) is None


def test_an_adapter_of_ones_own_is_read_with_its_bases(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_pipes.py").write_text(
        "class Base:\n    def __call__(self, prompt: str, frames: int = 5, scale: float | None = None): ...\nclass Pipe(Base): ...\n"
    )
    (tmp_path / "parent.py").write_text("class Parent:\n    pipeline: str = 'my_pipes:Pipe'\n")
    (tmp_path / "mine.py").write_text("from parent import Parent as P\nclass Mine(P):\n    extra_call_arguments = ('auto_resize',)\n")
    text = GOOD.replace("flux1", "mine.Mine").replace("max_sequence_length: 10", "frames: 9\n  scale: 1\n  auto_resize: true")
    assert load(text).train.call == {"frames": 9, "scale": 1, "auto_resize": True}
    with pytest.raises(ConfigError, match=r"train\.scale: wants float \| None, got true"):
        load(text.replace("scale: 1", "scale: true"))
    with pytest.raises(ConfigError, match=r"train\.max_sequence_length: unknown key"):
        load(text.replace("frames", "max_sequence_length"))


def test_an_adapter_that_does_not_name_its_pipeline_takes_no_extra_argument(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vague.py").write_text("class Mine:\n    pipeline = object\n")
    with pytest.raises(ConfigError, match="train.max_sequence_length: .*must be written as a literal"):
        load(GOOD.replace("flux1", "vague.Mine"))


def test_scheduler_arguments_go_to_overrides(load):
    config = load(GOOD, "scheduler.flow_shift=3", "scheduler.use_dynamic_shifting=false")
    assert config.scheduler.overrides == {"flow_shift": 3, "use_dynamic_shifting": False}


# -- batches ------------------------------------------------------------------------------------------------------------------------


def test_the_plan_of_an_epoch(load):
    plan = plan_of(load(GOOD, "train.num_inner_epochs=2"))
    assert (plan.rows_per_epoch, plan.groups, plan.samples_per_epoch) == (6, 6, 48)
    assert (plan.micro_batches_per_rank, plan.trained_points) == (6, 2)
    assert (plan.micro_batches_per_update, plan.optimiser_steps_per_epoch) == (2, 6)
    assert plan_of(load(GOOD, "train.gradient_accumulation_steps=6")).optimiser_steps_per_epoch == 1
    assert plan_of(load(GOOD, "scheduler.num_sde_steps=null")).trained_points == 7
    assert ("samples an epoch", "48 = 6 groups of 8") in plan.describe()


@pytest.mark.parametrize(("groups", "batches", "steps"), [(8, 4, 2), (8, 4, 8), (2, 4, 2), (3, 4, 3), (48, 4, 2), (1, 8, 1)])
def test_an_optimiser_step_learns_from_the_same_on_any_number_of_processes(groups: int, batches: int, steps: int) -> None:
    """And a group stays on one process wherever steps of whole groups divide over the processes."""
    alone = [set(part) for part in parts(Deal(groups, batches, 1, True).of(0), steps)]
    for processes in (2, 4, 8, 16, 32, 64):
        if groups * batches % (processes * steps):
            continue
        whole = groups % processes == 0 and groups * batches // (processes * steps) % batches == 0
        deal = Deal(groups, batches, processes, whole)
        shares = [parts(deal.of(p), steps) for p in range(processes)]
        assert {len(part) for share in shares for part in share} == {groups * batches // (processes * steps)}
        assert [set().union(*(share[k] for share in shares)) for k in range(steps)] == alone
        homes = {g: {p for p, share in enumerate(shares) for part in share for h, _ in part if h == g} for g in range(groups)}
        assert not whole or all(len(home) == 1 for home in homes.values())


def parts(order: list[tuple[int, int]], steps: int) -> list[list[tuple[int, int]]]:
    size = len(order) // steps
    return [order[k : k + size] for k in range(0, len(order), size)]


def test_only_an_explicit_auto_sampler_rounds_up_and_says_so(load):
    uneven = ["train.group_size=6", "train.unique_sample_num_per_epoch=6", "train.gradient_step_per_epoch=4"]
    config = load(GOOD, *uneven, "data.sampler_type=auto")
    assert (config.train.group_size, config.train.unique_sample_num_per_epoch) == (8, 8)
    assert config.notices == ("data.sampler_type: auto rounded up train.group_size 6 -> 8, train.unique_sample_num_per_epoch 6 -> 8",)
    with pytest.raises(ConfigError, match="multiple"):
        load(GOOD, *uneven)
    assert load(GOOD, "data.sampler_type=auto").notices == ()


def test_keys_without_effect_give_a_line_each(load):
    config = load(GOOD, "scheduler.seed=1", "eval.seed=42", "data.sampler_type=group_contiguous")
    assert [notice.split(" ")[0] for notice in config.notices] == ["data.sampler_type:", "scheduler.seed:"]


def test_noise_at_the_last_step_is_allowed_and_gives_a_line(load):
    (notice,) = load(GOOD, "scheduler.sde_steps=[6, 7]").notices
    assert "step 7, the last one" in notice


# -- help and weight ----------------------------------------------------------------------------------------------------------------


def test_help_lists_every_key_with_its_meaning():
    for name, schemas in SECTIONS.items():
        for schema in schemas:
            lines = config_help(name)
            for key in schema.own_keys():
                field = schema.model_fields[key]
                if name == "run" and (key in SECTIONS or key == "eval_rewards"):
                    continue
                assert field.description, f"{name}.{key}"
                assert any(line.startswith(f"{key} ") for line in lines.splitlines())
    assert set(TRAIN_CONFIGS) == set(ALGORITHMS)
    assert all(len(line) <= 150 for line in config_help().splitlines())
    with pytest.raises(ConfigError, match="'train'"):
        config_help("trian")


def test_help_on_an_algorithm_is_its_train_section_alone():
    assert "\noff_policy " in config_help("nft") and "\nclip_range " not in config_help("nft")
    assert config_help("GRPO_Guard").startswith("train: with trainer_type: grpo-guard")
    assert config_help("flow_factory.algorithms.nft.NFT") == config_help("nft")


def test_a_loaded_configuration_cannot_be_changed(load):
    config = load()
    with pytest.raises(ValueError, match="frozen"):
        config.train.seed = 3


def test_loading_imports_nothing_heavy(tmp_path):
    (tmp_path / "run.yaml").write_text(PUBLIC)
    code = (
        "import sys; from flow_factory.config import load_config; load_config(sys.argv[1]);"
        "print(*{'torch', 'diffusers', 'transformers', 'numpy', 'accelerate'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.yaml")], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
