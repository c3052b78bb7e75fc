"""Proxies that replace the transformers in a pipeline."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

if TYPE_CHECKING:
    from flow_factory.core.velocity import VelocityField


class Stop(Exception):
    """Stops a pipeline at its first transformer call, when nothing after it is needed.

    Args:
        shapes: of the latents that the transformer was called with.
    """

    def __init__(self, shapes: tuple[torch.Size, ...]):
        super().__init__(shapes)
        self.shapes = shapes


def fills_cache(arguments: dict[str, Any]) -> bool:
    """Whether this call keeps keys and values of the condition for the calls after it, as diffusers' pipelines ask for."""
    return arguments.get("kv_cache_mode") == "extract"


def shapes_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Size, ...]:
    """The latents' shapes in the arguments of a transformer.

    Without the prompt's length: it differs between processes, and a forward on one process alone would hang FSDP.
    """
    latents = [args[0] if args else next(iter(kwargs.values())), kwargs.get("audio_hidden_states")]
    return tuple(x.shape for x in tree_leaves(latents) if isinstance(x, Tensor))


class TransformerProxy:
    """Replaces a transformer, and skips its forward in the first of a velocity call's two steps, whose output is not used."""

    def __init__(self, field: "VelocityField", name: str, bare: nn.Module):
        self.field, self.name, self.bare = field, name, bare

    def __getattr__(self, name: str) -> Any:
        if name in ("field", "bare"):  # missing while copy or pickle builds the object
            raise AttributeError(name)
        return getattr(self.bare, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        field = self.field
        shapes = shapes_of(args, kwargs)
        if field.ends_here:
            raise Stop(shapes)
        priming = field.priming and not fills_cache(kwargs)
        blank = field.blanks.get(shapes) if priming else None
        wanted = torch.is_grad_enabled() and not priming
        if wanted and isinstance(latents := kwargs.get("hidden_states"), Tensor):  # the pipeline may write into it before the backward pass
            kwargs["hidden_states"] = latents.clone()
        with torch.set_grad_enabled(wanted or field.recording):
            outs = {name: field.bare[name](*args, **kwargs) for name in field.called(self.name if blank is None else None)}
        if field.recording and not wanted:  # the recorded graph is freed at once
            outs = tree_map_only(Tensor, Tensor.detach, outs)
        if blank is not None:
            return blank
        out = outs.pop(self.name)
        if shapes not in field.blanks:
            field.blanks[shapes] = tree_map_only(Tensor, lambda x: x.new_zeros(()).expand(x.shape), out)
        for other in outs.values():  # its backward pass must run too; it adds zeros
            out = tree_map(lambda x, y: x + 0 * y if isinstance(x, Tensor) else x, out, other)
        return out
