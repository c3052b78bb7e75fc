"""The model of a run: opened, given the weights that it starts from, brought to the devices, proven."""

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
    """The pipeline in the run's precision, behind its family's adapter; its transformers as their files have them, see `Policy.settle`.

    Where those have several dtypes, what is trained in full is loaded in the master weights'. Text encoders are loaded when a row is to be
    encoded, see `Encoders`.

    Raises:
        LoadError: it does not load.
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


def share_out(config: RunConfig, adapter: ModelAdapter, engine: Engine, start: Start, keep: bool) -> dict[str, Tensor]:
    """Makes the policy, gives it the weights that it starts from, and brings it to the devices.

    Returns:
        The base model's weights, see `load_weights`.
    """
    accelerator = engine.accelerator
    liveness.set_activity("building the policy")
    policy = build_policy(
        adapter, config.model, config.mixed_precision, config.train.enable_gradient_checkpointing, config.train.seed, accelerator.device,
        shards=config.engine.shards_weights, settled=False, roles=config.train.networks,
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
    """Loads the weights that a new run starts from, where it has any; returns those of the base model by name, if they are to be kept.

    Raises:
        CheckpointError: they do not fit.
    """
    if start.path is None or start.saved is not None:
        return {}
    base = {name: p.detach() for name, p in policy.trained().items()} if keep else {}  # of files; the saved ones take their place
    load_model(start.path, policy)
    return base


def require_proofs(config: RunConfig, adapter: ModelAdapter, engine: Engine, cond: Cond) -> None:
    """Of a model that the tests do not know, or whose sequences are shared out, see `prove`; of attention, see `prove_attention`."""
    here = to_device(cond, engine.accelerator.device)
    wait_for_everyone("sharing out the policy")
    limit_groups(config.distributed_timeout)  # which libraries have made
    liveness.set_activity("verifying that training computes what sampling computed")
    unknown = config.model.model_type not in MODELS or config.model.model_type == "diffusers"
    if unknown or config.model.context_parallel > 1:
        with engine.accumulating(last=False):
            prove(adapter, here, pipeline_kwargs(config.train), config.train.per_device_batch_size, engine)
    prove_attention(config, engine, here)
