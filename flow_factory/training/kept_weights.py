"""The copies of the trained weights that a run keeps, and the choice of the reference."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from torch import Tensor

from flow_factory.algorithms.base import Algorithm, LoraFile
from flow_factory.checkpoints.given_lora import read_given
from flow_factory.checkpoints.lora_fit import as_own
from flow_factory.config import RunConfig
from flow_factory.distributed.engines import Engine
from flow_factory.policy.lora import MAIN, scale_of
from flow_factory.policy.weight_store import WeightStore

Weights = Mapping[str, Tensor]


def copies_base(config: RunConfig, algorithm: Algorithm) -> bool:
    """Whether a copy of the checkpoint's own weights is kept as the reference. A LoRA needs none: its base model is the reference."""
    return "ref" in algorithm.weights and config.train.reference == "base" and config.model.finetune_type == "full"


def keep_copies(config: RunConfig, engine: Engine, algorithm: Algorithm, base: Weights = MappingProxyType({})) -> WeightStore:
    """Makes the copies that the run needs: the average, and those that the algorithm compares with or samples from.

    Args:
        base: the checkpoint's own weights as whole tensors, if they are the reference and the model has loaded others.
    """
    base_of_lora = config.model.finetune_type == "lora" and config.train.reference == "base"
    off = engine.policy.disable_adapter if base_of_lora and not config.train.moves_reference else None
    store = WeightStore(engine.policy.trained(), off, engine.part, engine.written, engine.policy.active_network)
    if "ref" in algorithm.weights:
        store.keep("ref", device_of(config.train.ref_param_device))
    if "ref" in algorithm.weights and base_of_lora and off is None:  # a copy that will change; it starts as a LoRA without effect
        for key, part in zip(store.networks[MAIN], store.copies["ref"], strict=True):
            part.mul_(0.0 if ".lora_B." in key else 1.0)
    for name, weights in base.items():
        engine.scatter(weights.to(store.params[name].dtype), store.copies["ref"][list(store.params).index(name)])
    for name, average in algorithm.averages.items():
        store.keep(name, device_of(average.device), average.of)
    for name, file in algorithm.files.items():
        store.keep_given(name, given_weights(config, engine, file), engine.scatter, device_of(file.device))
    if config.train.ema_decay > 0:
        store.keep("ema", device_of(config.train.ema_device))
    return store


def given_weights(config: RunConfig, engine: Engine, file: LoraFile) -> dict[str, Tensor]:
    """The weights of a LoRA file as whole tensors, by the names of the policy's parameters."""
    weights: dict[str, Tensor] = {}
    for component in engine.policy.models:
        params = {key: p for key, p in engine.policy.trained().items() if key.startswith(f"{component}.")}
        names = {key: key.removeprefix(f"{component}.").replace(".default.", ".") for key in params}
        saved = read_given(file.key, file.path, component)
        own = as_own(saved, {names[key]: engine.shape(p) for key, p in params.items()}, partial(scale_of, config.model))
        weights |= {key: own[name] for key, name in names.items()}
    return weights


def device_of(name: str) -> str | None:
    """The device of a copy; None for `auto`, which is the device of the weights."""
    return None if name == "auto" else name
