"""The policy: the trained transformers with their LoRAs, precision, gradient checkpointing, attention backend and compilation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import UserCpuOffloadHook
from torch import nn

from flow_factory.config import ModelConfig
from flow_factory.models.base import ModelAdapter
from flow_factory.models.loading import DTYPES
from flow_factory.models.quantized_linear import DYNAMIC, compute_in_8_bits
from flow_factory.policy.attention import set_attention, without_cudnn
from flow_factory.policy.compilation import compile_blocks
from flow_factory.policy.dropout import Masks, key_dropout
from flow_factory.policy.gradient_checkpointing import Setting, checkpoint_blocks
from flow_factory.policy.lora import MAIN, add_loras, lora_layers, role_of, select, switch
from flow_factory.policy.precision import begin_as_base, wanted_dtypes
from flow_factory.policy.targets import components_of, dead_ends, layers_of_lora, target_names, train_fully
from flow_factory.policy.vae import set_vae
from flow_factory.utils.offload import offload_with_hook, store_in_8_bits


class Policy(nn.Module):
    """The trained transformers as one module: one forward is a whole sampling loop, or a whole velocity.

    DDP, FSDP and DeepSpeed wrap this module, not a transformer. So they see one forward for one backward, whatever the number of
    guidance calls and experts inside.
    """

    def __init__(self, adapter: ModelAdapter, names: Sequence[str], beside: Sequence[str] = (), roles: Sequence[str] = ()):
        """`names`: the trained transformers; `beside`: others that the engine shards; `roles`: the networks other than the policy."""
        super().__init__()
        self.adapter = adapter
        self.components = nn.ModuleDict({name: adapter.field.bare[name] for name in names})
        self.frozen = nn.ModuleDict({name: adapter.field.bare[name] for name in beside})
        """Transformers that are not trained, but sharded like the trained ones."""
        models = (*self.components.values(), *self.frozen.values())
        blocks = (getattr(m, kind, None) or () for m in models for kind in ("_no_split_modules", "_repeated_blocks"))
        here = {type(m).__name__ for m in self.modules()}
        self._no_split_modules = sorted({name for names in blocks for name in names} & here)  # FSDP2 shards these one by one
        self.idle: list[UserCpuOffloadHook] = []
        """The hooks of the parts that stay in main memory between rollouts (`model.offload_idle`)."""
        self.wanted: dict[nn.Parameter, torch.dtype] = {}
        """The final dtype of each weight that is still as in the checkpoint's file: see `materialize`."""
        self.roles = (MAIN, *roles)
        self.role = MAIN
        """The network that is active."""
        self.masks = Masks()
        """Of `model.lora_dropout`."""

    @property
    def models(self) -> dict[str, Any]:
        """The trained diffusers models, by their names in the pipeline."""
        return dict(self.components.items())

    def forward(self, method: str, *args: Any) -> Any:
        """Calls a method of the adapter without autocast, which some engines enable around this: see `precision`."""
        without_cudnn()  # a library may have enabled it
        with torch.autocast(self.adapter.pipe._execution_device.type, enabled=False):
            return getattr(self.adapter, method)(*args)

    def materialize(self, part: nn.Module, device: torch.device | None = None, own: bool = False) -> None:
        """Moves the weights of a part to the device, and casts them there to their final dtype, one tensor after the other.

        A frozen weight that needs neither remains a memory map of the file, which all processes of a machine share.

        Args:
            device: None leaves the weights where they are.
            own: whether frozen weights are copied too, so that they may be written to.
        """
        for _ in self.materializing(part, device, own):
            pass

    def materializing(self, part: nn.Module, device: torch.device | None = None, own: bool = False) -> Iterator[nn.Parameter]:
        """As `materialize`; yields each weight once it is cast, before the next one is read."""
        for module, name, dtype in self.unmaterialized(part):
            p: nn.Parameter = module._parameters[name]  # type: ignore[assignment]
            read = p.data
            p.data = read.to(device or read.device).to(dtype)  # the copy to the device is smaller before the cast
            if (own or p.requires_grad) and p.data_ptr() == read.data_ptr():
                p.data = read.clone()
            yield p

    def unmaterialized(self, part: nn.Module) -> list[tuple[nn.Module, str, torch.dtype]]:
        """The weights of a part that the caller must materialize, each once: (its module, its name there, its final dtype)."""
        # not `named_parameters`: it may list casts of the weights, see `precision.rounding`
        named = [(m, name, p) for m in part.modules() for name, p in m._parameters.items()]
        return [(m, name, self.wanted.pop(p)) for m, name, p in named if p in self.wanted]

    def offload_idle(self) -> None:
        """Moves the parts that only a rollout needs to main memory. A part returns to the device when it is called."""
        for hook in self.idle:
            hook.offload()

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base model computes without its LoRAs inside this context."""
        layers = lora_layers(self.models.values())
        switch(layers, on=False)
        try:
            yield
        finally:
            switch(layers, on=True)

    @contextmanager
    def active_network(self, role: str) -> Iterator[None]:
        """The network of this role is active inside this context. A backward needs the same active network as its forward."""
        if role == self.role:
            yield
            return
        layers, before = lora_layers(self.models.values()), self.role
        select(layers, role)
        self.role = role
        try:
            yield
        finally:
            select(layers, before)
            self.role = before

    def trained(self, role: str | None = None) -> dict[str, nn.Parameter]:
        """The trained weights by name, of one network or of all."""
        return {k: p for k, p in self.components.named_parameters() if p.requires_grad and role in (None, role_of(k))}

    def groups(self) -> list[Any]:
        """The argument of an optimiser: the trained weights; with several networks a parameter group for each."""
        if len(self.roles) == 1:
            return list(self.trained().values())
        return [{"params": list(self.trained(role).values()), "role": role} for role in self.roles]


def build_policy(
    adapter: ModelAdapter, config: ModelConfig, precision: str, checkpointing: Setting, seed: int, device: torch.device,
    shards: bool = False, materialized: bool = True, roles: Sequence[str] = (),
) -> Policy:  # fmt: skip
    """Freezes everything, then makes the chosen components trainable. The engine moves those to the device, whole or in shards.

    Args:
        precision: mixed_precision of the run. The transformers may have been loaded in another dtype.
        checkpointing: the blocks that are recomputed in the backward pass.
        shards: whether the engine shards the weights of all transformers, trained or not.
        materialized: False if the engine calls `Policy.materialize` itself, block by block.
        roles: networks that are trained with the policy, as LoRAs over the same base.

    Raises:
        UserError: no such component, target module or attention backend.
    """
    names = components_of(adapter, config)
    bare = {name: getattr(part, "bare", part) for name, part in adapter.pipe.components.items()}
    parts = {name: part.requires_grad_(False).eval() for name, part in bare.items() if isinstance(part, nn.Module)}
    transformers = adapter.field.bare
    if config.quantization in DYNAMIC:
        for module in transformers.values():
            compute_in_8_bits(module, config.quantization, device)
    wanted: dict[nn.Parameter, torch.dtype] = {}
    for name, module in transformers.items():
        if name in names:
            _make_trainable(adapter, config, name, seed, roles)
            begin_as_base(module, DTYPES[precision])
        wanted |= wanted_dtypes(module, config, DTYPES[precision])
    policy = Policy(adapter, names, [name for name in transformers if shards and name not in names], roles)
    policy.wanted, policy.masks = wanted, key_dropout(policy.models.values(), config.lora_dropout)
    if materialized or config.layerwise_casting is not None or config.quantization is not None:
        for module in transformers.values():
            policy.materialize(module)
    _place_frozen(policy, parts, config, DTYPES[precision], device)
    _set_computation(policy, config, DTYPES[precision], device)
    checkpoint_blocks(policy.models.values(), checkpointing)  # around the compiled blocks, so that recomputation runs the same code
    return policy


def _make_trainable(adapter: ModelAdapter, config: ModelConfig, name: str, seed: int, roles: Sequence[str]) -> None:
    """Adds the LoRAs of a component, or makes its own weights trainable."""
    module = adapter.field.bare[name]
    if config.finetune_type == "lora":
        add_loras(module, layers_of_lora(adapter, module, name, config), config, seed, roles)
    else:
        targets = target_names(module, name, config.target_modules, adapter.targets_in(module))
        train_fully(module, targets, dead_ends(module, adapter.dead_ends))


def _set_computation(policy: Policy, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Sets the attention backend, the compilation of the blocks, and how the VAE decodes."""
    field = policy.adapter.field
    if config.attn_backend is not None:
        for module in field.bare.values():
            set_attention(module, config.attn_backend, device, dtype)
    if config.compile:
        compile_blocks(field.bare.values(), config.compile_backend)
        field.compiled = True
    set_vae(getattr(policy.adapter.pipe, "vae", None), config)


def _place_frozen(policy: Policy, parts: dict[str, nn.Module], config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Moves the parts that the engine does not place: to the device, or into main memory with `offload_idle`."""
    for name, part in parts.items():
        if config.layerwise_casting is not None and name in policy.adapter.field.bare:
            store_in_8_bits(part, config.layerwise_casting, dtype)  # before the whole part is on the device
        if name in policy.components or name in policy.frozen:
            continue
        if config.offload_idle:
            policy.materialize(part)
            policy.idle.append(offload_with_hook(part, device))
        else:
            policy.materialize(part, device)
            part.to(device)  # no cast: diffusers keeps some modules in float32
