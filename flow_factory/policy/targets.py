"""The weights that `model.target_components` and `model.target_modules` choose."""

import difflib
from collections.abc import Sequence

from peft.utils.other import get_pattern_key
from torch import nn

from flow_factory.config import ModelConfig
from flow_factory.models.base import ModelAdapter
from flow_factory.utils.errors import UserError


def components_of(adapter: ModelAdapter, config: ModelConfig) -> list[str]:
    """The components of the checkpoint that `target_components` names.

    Raises:
        UserError: the checkpoint has no such component.
    """
    wanted = [config.target_components] if isinstance(config.target_components, str) else list(config.target_components)
    here = list(adapter.field.bare)
    for name in wanted:
        if name not in here:
            parts = ", ".join(here) or f"none of {', '.join(adapter.components)}, which {type(adapter).__name__}.components names"
            raise UserError(f"model.target_components: {name!r} is not a trainable part of this checkpoint; it has {parts}")
    return wanted


def layers_of_lora(adapter: ModelAdapter | type[ModelAdapter], module: nn.Module, component: str, config: ModelConfig) -> list[str]:
    """Full names of the linear layers of one component that get a LoRA.

    Raises:
        UserError: `exclude_modules` leaves none, or an ending or pattern fits no layer.
    """
    default = adapter.targets_in(module)
    targets = target_names(module, component, config.target_modules, default) or linear_names(module)
    unreached = dead_ends(module, adapter.dead_ends)
    chosen = [name for name in targets if reached(name, unreached)]
    left_out = target_names(module, component, config.exclude_modules, default) or chosen if config.exclude_modules else []
    if not (kept := [name for name in chosen if name not in left_out]):
        raise UserError(f"model.exclude_modules: no linear layer of {component} is left to train; remove some of its entries")
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, key):
            if not any(get_pattern_key([pattern], layer) == pattern for layer in kept):
                near = difflib.get_close_matches(pattern, known_endings(kept), n=3, cutoff=0.3)
                text = f"{pattern!r} fits no layer of {component} that is trained"
                raise UserError(f"model.{key}: {text}; near ones: {', '.join(near or known_endings(kept)[:8])}")
    return kept


def linear_names(module: nn.Module) -> list[str]:
    """Full names of the linear layers."""
    return [name for name, m in module.named_modules() if isinstance(m, nn.Linear)]


def target_names(module: nn.Module, component: str, target: str | Sequence[str], default: Sequence[str]) -> list[str] | None:
    """Full names of the linear layers of one component that `target_modules` chooses; None for all of them.

    Each entry is `all`, `default`, or an ending such as `attn.to_q`. The prefix `component.` restricts it to one component.

    Raises:
        UserError: an ending matches no linear layer; the message names the nearest ones.
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
            continue  # this entry belongs to the other component
        want = rest if of == component else ending
        hits = [name for name in linear if name == want or name.endswith("." + want)]
        if not hits:
            known = known_endings(linear)
            near = difflib.get_close_matches(want, known, n=3, cutoff=0.3)
            raise UserError(
                f"model.target_modules: {want!r} fits no linear layer of {component}; near ones: {', '.join(near or known[:8])}"
            )
        chosen.update(hits)
    return sorted(chosen)


def known_endings(layers: Sequence[str]) -> list[str]:
    """All endings of these names that begin with no number."""
    ends = (name.split(".")[k:] for name in layers for k in range(name.count(".") + 1))
    return sorted({".".join(parts) for parts in ends if not parts[0].isdigit()})


def dead_ends(module: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Full names of the modules of `ModelAdapter.dead_ends` that this checkpoint has. No gradient reaches them."""
    found = []
    for pattern in patterns:
        blocks, _, rest = pattern.partition(".-1.")
        name = f"{blocks}.{len(module.get_submodule(blocks)) - 1}.{rest}" if rest else pattern  # type: ignore[arg-type]
        if any(n == name for n, _ in module.named_modules()):
            found.append(name)
    return tuple(found)


def reached(name: str, unreached: Sequence[str]) -> bool:
    """Whether a gradient reaches the module of this full name."""
    return not any(name == dead or name.startswith(f"{dead}.") for dead in unreached)


def train_fully(module: nn.Module, targets: list[str] | None, unreached: Sequence[str]) -> None:
    """Makes the weights of these modules trainable, or of the whole component if `targets` is None."""
    for name in targets or [""]:
        module.get_submodule(name).requires_grad_(True)
    for name in unreached:
        module.get_submodule(name).requires_grad_(False)
