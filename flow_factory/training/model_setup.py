"""The set-up of a run's model: loading, the initial weights, the devices, and the proofs."""

from functools import partial
from pathlib import Path

from torch import Tensor

from flow_factory.checkpoints.model_files import load_model
from flow_factory.config import RunConfig, pipeline_kwargs
from flow_factory.distributed import liveness
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.distributed.engines import Engine
from flow_factory.distributed.rendezvous import limit_groups
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.models.diffusers import Diffusers
from flow_factory.models.loading import download, family_of, load_adapter, stored_dtypes
from flow_factory.models.proof import prove
from flow_factory.policy.context_parallel import split_sequences
from flow_factory.policy.optimizer import make_optimizer
from flow_factory.policy.policy import Policy, build_policy
from flow_factory.runs.fitting import checkpoint_of
from flow_factory.runs.resume import Start
from flow_factory.training.attention_proof import prove_attention
from flow_factory.training.text_encoders import loaded_later
from flow_factory.types import Cond
from flow_factory.utils.offload import to_device
from flow_factory.utils.terminal import note


def open_adapter(config: RunConfig) -> ModelAdapter:
    """The adapter with its pipeline in the run's precision. Transformers are in the dtype of their files, see `Policy.materialize`.

    If the files have several dtypes, fully trained transformers are loaded in the dtype of the master weights. Text encoders are loaded
    when the first row is encoded, see `Encoders`.

    Raises:
        LoadError: the checkpoint does not load.
    """
    model, (name, kind, overrides, pipeline) = config.model, checkpoint_of(config)
    trained = model.target_components if model.finetune_type == "full" else ()
    dtypes: dict[str, str] = dict.fromkeys(trained, model.master_weight_dtype)
    family = family_of(name, kind, pipeline)
    if not Path(name).is_dir():
        download(name, family)
    if model.quantization is None and model.layerwise_casting is None:
        dtypes |= stored_dtypes(name, family)
    return load_adapter(name, kind, config.mixed_precision, dtypes, overrides, pipeline, model.quantization, loaded_later(config))


def prepare_policy(config: RunConfig, adapter: ModelAdapter, engine: Engine, start: Start, keep: bool) -> dict[str, Tensor]:
    """Builds the policy, loads its initial weights, and moves it to the devices.

    Returns:
        The base model's weights, see `load_weights`.
    """
    accelerator = engine.accelerator
    liveness.set_activity("building the policy")
    policy = build_policy(
        adapter, config.model, config.mixed_precision, config.train.enable_gradient_checkpointing, config.train.seed, accelerator.device,
        shards=config.engine.shards_weights, materialized=False, roles=config.train.networks,
    )  # fmt: skip
    wait_for_everyone("building the policy")
    split_sequences(adapter, config.model.context_parallel, accelerator.device)
    base = load_weights(start, policy, keep)
    wait_for_everyone("loading weights")
    engine.wrap(policy, partial(make_optimizer, config.train, networks=config.optimizers))
    if accelerator.is_main_process and (accelerator.num_processes > 1 or engine.settings.kind != "ddp"):
        note(engine.describe())
    several = bool(config.train.given) or len(policy.components) + len(policy.frozen) > 1
    if engine.settings.in_step and accelerator.num_processes > 1 and several:
        adapter.field.agree = engine.needed
    return base


def load_weights(start: Start, policy: Policy, keep: bool) -> dict[str, Tensor]:
    """Loads the weights from which a new run starts, if any. Returns the base model's trained weights by name if `keep`.

    Raises:
        CheckpointError: the weights do not fit the model.
    """
    if start.path is None or start.saved is not None:
        return {}
    base = {name: p.detach() for name, p in policy.trained().items()} if keep else {}  # mapped files, which the loaded weights replace
    load_model(start.path, policy)
    return base


def require_proofs(config: RunConfig, adapter: ModelAdapter, engine: Engine, cond: Cond) -> None:
    """Runs the proof of the model if it is untested or its sequences are split (`prove`), and that of attention (`prove_attention`)."""
    here = to_device(cond, engine.accelerator.device)
    wait_for_everyone("sharding the policy")
    limit_groups(config.distributed_timeout)  # which libraries have made
    liveness.set_activity("verifying that training computes what sampling computed")
    unknown = config.model.model_type not in MODELS or isinstance(adapter, Diffusers)
    if unknown or config.model.context_parallel > 1:
        with engine.accumulating(last=False):
            prove(adapter, here, pipeline_kwargs(config.train), config.train.per_device_batch_size, engine)
    prove_attention(config, engine, here)
