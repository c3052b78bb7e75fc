"""The policy: the trained weights (LoRA or full), precision, checkpointing, attention backend, compilation."""

import difflib
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
from flow_factory.policy.gradient_checkpointing import Setting, checkpoint_blocks
from flow_factory.policy.lora import MAIN, add_loras, lora_layers, role_of, select, switch
from flow_factory.policy.precision import wanted_dtypes
from flow_factory.policy.vae import set_vae
from flow_factory.utils.errors import UserError
from flow_factory.utils.offload import offload_with_hook, store_in_8_bits


class Policy(nn.Module):
    """The trained transformers and what is asked of them: one forward is one whole sampling or one whole velocity.

    This, not a transformer, is what DDP, FSDP and DeepSpeed wrap, so that they see one forward for one backward however many
    guidance calls or experts are inside.
    """

    def __init__(self, adapter: ModelAdapter, names: Sequence[str], beside: Sequence[str] = (), roles: Sequence[str] = ()):
        """`names`: the transformers that are trained; `beside`: others that are shared out; `roles`: networks beside the policy."""
        super().__init__()
        self.adapter = adapter
        self.components = nn.ModuleDict({name: adapter.field.bare[name] for name in names})
        self.frozen = nn.ModuleDict({name: adapter.field.bare[name] for name in beside})
        """Transformers that are not trained, and are shared out like those that are."""
        models = (*self.components.values(), *self.frozen.values())
        blocks = (getattr(m, kind, None) or () for m in models for kind in ("_no_split_modules", "_repeated_blocks"))
        here = {type(m).__name__ for m in self.modules()}
        self._no_split_modules = sorted({name for names in blocks for name in names} & here)  # what FSDP shards one by one
        self.idle: list[UserCpuOffloadHook] = []
        """Of the parts that wait in main memory (`model.offload_idle`)."""
        self.wanted: dict[nn.Parameter, torch.dtype] = {}
        """Of weights that are still as the checkpoint's file has them, in which dtype they are to live: see `settle`."""
        self.roles = (MAIN, *roles)
        self.role = MAIN
        """The network that computes now."""

    @property
    def models(self) -> dict[str, Any]:
        """The trained diffusers models by the pipeline's names."""
        return dict(self.components.items())

    def forward(self, ask: str, *args: Any) -> Any:
        """Without autocast, which some engines have around this: see `precision`."""
        without_cudnn()  # a library may have switched it on
        with torch.autocast(self.adapter.pipe._execution_device.type, enabled=False):
            return getattr(self.adapter, ask)(*args)

    def settle(self, part: nn.Module, device: torch.device | None = None, own: bool = False) -> None:
        """Brings a part's weights to the device, and there to the dtype in which they live, one tensor after the other.

        A frozen weight that needs neither stays the file's memory, which all processes of a machine share.

        Args:
            device: None is where they are.
            own: whether frozen weights, too, become memory of this process, which may be written to.
        """
        for module, name, dtype in self.unsettled(part):
            p: nn.Parameter = module._parameters[name]  # type: ignore[assignment]
            read = p.data
            p.data = read.to(device or read.device).to(dtype)  # files mostly have fewer bits
            if (own or p.requires_grad) and p.data_ptr() == read.data_ptr():
                p.data = read.clone()

    def unsettled(self, part: nn.Module) -> list[tuple[nn.Module, str, torch.dtype]]:
        """Weights of a part that the caller is to settle, each once: (its module, its name there, the dtype in which it is to live)."""
        named = [(m, name, p) for m in part.modules() for name, p in m._parameters.items()]  # a module that rounds its weights lists others
        return [(m, name, self.wanted.pop(p)) for m, name, p in named if p in self.wanted]

    def set_aside(self) -> None:
        """What only a rollout needs goes back to main memory; it returns when it is called."""
        for hook in self.idle:
            hook.offload()

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """The base model without its LoRA."""
        layers = lora_layers(self.models.values())
        switch(layers, on=False)
        try:
            yield
        finally:
            switch(layers, on=True)

    @contextmanager
    def at_work(self, role: str) -> Iterator[None]:
        """The network of this role computes. No weight is moved: a backward needs the network at work that its forward had."""
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
        """The trained weights by name: of one network, or of all."""
        return {k: p for k, p in self.components.named_parameters() if p.requires_grad and role in (None, role_of(k))}

    def groups(self) -> list[Any]:
        """What an optimiser is made of: the trained weights, or where several networks are trained, a group of them each."""
        if len(self.roles) == 1:
            return list(self.trained().values())
        return [{"params": list(self.trained(role).values()), "role": role} for role in self.roles]


def build_policy(
    adapter: ModelAdapter, config: ModelConfig, precision: str, checkpointing: Setting, seed: int, device: torch.device,
    shards: bool = False, settled: bool = True, roles: Sequence[str] = (),
) -> Policy:  # fmt: skip
    """Freezes everything, then makes the chosen components trainable. The engine brings those to the device, whole or in shards.

    Args:
        precision: mixed_precision of the run; the transformers may have been loaded in another one.
        checkpointing: which blocks are computed again in the backward pass.
        shards: whether the engine shares weights out; then those of all transformers.
        settled: False leaves it to the engine to call `Policy.settle`, a block at a time where it will be.
        roles: networks that are trained beside the policy, as LoRAs over the same base.

    Raises:
        UserError: no such component, target module or attention backend.
    """
    names = components_of(adapter, config)
    frozen = DTYPES[precision]
    bare = {name: getattr(part, "bare", part) for name, part in adapter.pipe.components.items()}
    parts = {name: part.requires_grad_(False).eval() for name, part in bare.items() if isinstance(part, nn.Module)}
    if config.quantization in DYNAMIC:
        for module in adapter.field.bare.values():
            compute_in_8_bits(module, config.quantization, device)
    wanted: dict[nn.Parameter, torch.dtype] = {}
    for name, module in adapter.field.bare.items():
        if name not in names:
            wanted |= wanted_dtypes(module, config, frozen)
            continue
        if config.finetune_type == "lora":
            add_loras(module, layers_of_lora(adapter, module, name, config), config, seed, roles)
        else:
            targets = target_names(module, name, config.target_modules, adapter.targets_in(module))
            train_fully(module, targets, dead_ends(module, adapter.dead_ends))
        wanted |= wanted_dtypes(module, config, frozen)
    policy = Policy(adapter, names, [name for name in adapter.field.bare if shards and name not in names], roles)
    policy.wanted = wanted
    if settled or config.layerwise_casting is not None or config.quantization is not None:
        for module in adapter.field.bare.values():
            policy.settle(module)
    for name, part in parts.items():
        if config.layerwise_casting is not None and name in adapter.field.bare:
            store_in_8_bits(part, config.layerwise_casting, frozen)  # before the device has to hold the whole of it
        if name in policy.components or name in policy.frozen:
            continue
        if config.offload_idle:
            policy.settle(part)
            policy.idle.append(offload_with_hook(part, device))
        else:
            policy.settle(part, device)
            part.to(device)  # no cast: diffusers keeps some modules in float32
    for module in adapter.field.bare.values():
        if config.attn_backend is not None:
            set_attention(module, config.attn_backend, device, frozen)
    if config.compile:
        compile_blocks(adapter.field.bare.values(), config.compile_backend)
        adapter.field.compiled = True
    checkpoint_blocks(policy.models.values(), checkpointing)  # around what is compiled: it runs once more, the same
    set_vae(adapter.pipe.vae, config)
    return policy


def components_of(adapter: ModelAdapter, config: ModelConfig) -> list[str]:
    """The checkpoint's components that `target_components` names."""
    wanted = [config.target_components] if isinstance(config.target_components, str) else list(config.target_components)
    here = list(adapter.field.bare)
    for name in wanted:
        if name not in here:
            raise UserError(f"model.target_components: {name!r} is not a trainable part of this checkpoint; it has {', '.join(here)}")
    return wanted


def layers_of_lora(adapter: ModelAdapter, module: nn.Module, component: str, config: ModelConfig) -> list[str]:
    """Full names of one component's linear layers that the run's LoRA is of."""
    targets = target_names(module, component, config.target_modules, adapter.targets_in(module))
    unreached = dead_ends(module, adapter.dead_ends)
    return [name for name in targets or linear_names(module) if reached(name, unreached)]


def linear_names(module: nn.Module) -> list[str]:
    """Full names of the linear layers."""
    return [name for name, m in module.named_modules() if isinstance(m, nn.Linear)]


def target_names(module: nn.Module, component: str, target: str | Sequence[str], default: Sequence[str]) -> list[str] | None:
    """Full names of the linear layers of one component that `target_modules` chooses; None stands for all of them.

    Each entry is `all`, `default`, an ending such as `attn.to_q`, or one of these behind `component.`.

    Raises:
        UserError: an ending that fits no linear layer; the message has the nearest one.
    """
    endings: list[str] = []
    for written in [target] if isinstance(target, str) else target:
        entry = written.removeprefix(f"{component}.") if written in (f"{component}.all", f"{component}.default") else written
        if entry == "all":
            return None
        if entry == "default" and not default:
            raise UserError("model.target_modules: default: the family names no layers (lora_targets); write all, or name endings")
        endings += default if entry == "default" else [entry]
    linear = linear_names(module)
    chosen: set[str] = set()
    for ending in endings:
        of, _, rest = ending.partition(".")
        if rest and of != component and of in ("transformer", "transformer_2"):
            continue  # meant for the other component
        want = rest if of == component else ending
        hits = [name for name in linear if name == want or name.endswith("." + want)]
        if not hits:
            ends = (name.split(".")[k:] for name in linear for k in range(name.count(".") + 1))
            known = sorted({".".join(parts) for parts in ends if not parts[0].isdigit()})
            near = difflib.get_close_matches(want, known, n=3, cutoff=0.3)
            raise UserError(
                f"model.target_modules: {want!r} fits no linear layer of {component}; near ones: {', '.join(near or known[:8])}"
            )
        chosen.update(hits)
    return sorted(chosen)


def dead_ends(module: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Full names of the modules that `ModelAdapter.dead_ends` names, those that this checkpoint lacks left out."""
    found = []
    for pattern in patterns:
        blocks, _, rest = pattern.partition(".-1.")
        name = f"{blocks}.{len(module.get_submodule(blocks)) - 1}.{rest}" if rest else pattern  # type: ignore[arg-type]
        if any(n == name for n, _ in module.named_modules()):
            found.append(name)
    return tuple(found)


def reached(name: str, unreached: Sequence[str]) -> bool:
    return not any(name == dead or name.startswith(f"{dead}.") for dead in unreached)


def train_fully(module: nn.Module, targets: list[str] | None, unreached: Sequence[str]) -> None:
    for name in targets or [""]:
        module.get_submodule(name).requires_grad_(True)
    for name in unreached:
        module.get_submodule(name).requires_grad_(False)
