"""Bytes that a process of a run holds, counted, and the same by the estimate of `--check`."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from flow_factory.config import RunConfig
from flow_factory.memory.estimate import estimate
from flow_factory.memory.sizes import shape_of, stored_parameters
from flow_factory.models import MODELS
from flow_factory.training.run import Run

STATIC = {
    "frozen": ("frozen weights", "VAE and other parts"), "trained": ("trained weights (",),
    "optimiser": ("optimiser state", "DeepSpeed's own"), "copies": ("copies of trained",), "gradients": ("gradients",),
}  # fmt: skip
"""What can be counted in a run -> the beginnings of the estimate's lines for it."""


def inner(x: Tensor) -> Iterable[Tensor]:
    """The plain tensors that a tensor of a subclass consists of."""
    names = x.__tensor_flatten__()[0] if hasattr(x, "__tensor_flatten__") else ()
    return [t for name in names if isinstance(part := getattr(x, name), Tensor) for t in inner(part)] or [x]


def size_of(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for x in tensors for t in inner(x))


def counted(run: Run) -> dict[str, int]:
    """Bytes that a process of a run holds after a backward and an optimiser step."""
    trainer = run.trainer
    mine = list(trainer.context.policy.trained().values())
    ours = {id(p) for p in mine}
    held, modules = trainer.context.engine.part, [getattr(part, "bare", part) for part in trainer.context.adapter.pipe.components.values()]
    shared = {id(p) for p in trainer.context.policy.parameters()}
    frozen = [p for m in modules if isinstance(m, nn.Module) for p in m.parameters() if id(p) not in ours]
    state = [
        t for values in trainer.context.engine.optimizer.state.values() for t in values.values() if isinstance(t, Tensor) and t.numel() > 1
    ]
    return {
        "frozen": size_of(held(p) if id(p) in shared else p for p in frozen),
        "trained": size_of(map(held, mine)),
        "optimiser": size_of(state),
        "copies": size_of(t for kept in trainer.context.store.copies.values() for t in kept),
        "gradients": size_of(p.grad for p in mine if p.grad is not None),
    }


def static_bytes(config: RunConfig) -> dict[str, float]:
    """The same by the estimate, on the device and in main memory together."""
    folder = Path(config.model.model_name_or_path)
    family = MODELS[config.model.model_type].of(str(folder), config.model.pipeline_class)
    shape = shape_of(family, config.model.target_components[0], folder)
    parts = estimate(config, family, stored_parameters(folder), shape)
    found = {k: [p for p in parts if p.name.startswith(names) and not p.name.endswith("wait")] for k, names in STATIC.items()}
    return {k: 1e9 * sum(p.gb for p in of) for k, of in found.items()}
