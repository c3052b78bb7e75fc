"""Configurations of the tests: a good one, a public one, and what a mistake in the good one is answered with."""

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
