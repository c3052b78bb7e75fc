"""Named copies of the trained weights: the reference, the rollout's, the average."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

State = dict[str, dict[str, Tensor]]


class WeightStore:
    """Keeps float32 copies of the trained parameters under names, and swaps them in.

    Args:
        params: the trained parameters by name.
        adapter_off: for LoRA, a context in which the adapter is off: the base model then is "ref" and costs no copy.
    """

    def __init__(self, params: Mapping[str, nn.Parameter], adapter_off: Callable[[], AbstractContextManager] | None = None):
        self.params, self.adapter_off = params, adapter_off
        self.copies: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def keep(self, name: str, device: torch.device | str | None = None) -> None:
        """Copies the present weights under `name`, to their own device unless another is given. "ref" of a LoRA needs no copy."""
        if name == "ref" and self.adapter_off is not None:
            return
        self.copies[name] = [p.detach().to(device or p.device, torch.float32, copy=True) for p in self.params.values()]

    @property
    def reported(self) -> str:
        """The weights that are evaluated and saved: the average, where one is kept."""
        return "ema" if "ema" in self.copies else "policy"

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """The model computes with the copy; the live weights return afterwards, to the bit.

        Swaps with `Tensor.copy_`, so that autograd raises if a swap falls between a forward and its backward.
        """
        if name == "policy":
            yield
        elif name == "ref" and self.adapter_off is not None:
            with self.adapter_off():
                yield
        else:
            live = [p.detach().clone() for p in self.params.values()]
            self._write(self.copies[name])
            try:
                yield
            finally:
                self._write(live)

    @torch.no_grad()
    def blend(self, name: str, decay: float) -> None:
        """copy <- decay * copy + (1 - decay) * policy."""
        for kept, p in zip(self.copies[name], self.params.values(), strict=True):
            kept.lerp_(p.detach().to(kept.device, torch.float32), 1 - decay)

    @torch.no_grad()
    def _write(self, tensors: list[Tensor]) -> None:
        for p, t in zip(self.params.values(), tensors, strict=True):
            p.copy_(t)

    def state_dict(self) -> State:
        """The copies by name, and the live weights under "policy"."""
        live = {"policy": {k: p.detach() for k, p in self.params.items()}}
        return live | {name: dict(zip(self.params, kept, strict=True)) for name, kept in self.copies.items()}

    @torch.no_grad()
    def load_state_dict(self, state: State) -> None:
        """Exact inverse of `state_dict`.

        Raises:
            ValueError: other copies, or parameters of other names or shapes.
        """
        if set(state) != {"policy", *self.copies}:
            raise ValueError(f"the saved copies are {sorted(state)}, this run keeps {sorted({'policy', *self.copies})}")
        mine = {name: dict(zip(self.params, kept, strict=True)) for name, kept in self.copies.items()}
        mine["policy"] = dict(self.params)
        for name, tensors in state.items():
            here = mine[name]
            wrong = sorted(set(tensors) ^ set(here)) or [k for k, t in tensors.items() if t.shape != here[k].shape]
            if wrong:
                raise ValueError(
                    f"the saved weights {name!r} do not fit this model, first at {wrong[0]!r}: other lora_rank or target_modules?"
                )
        for name, tensors in state.items():
            for key, tensor in tensors.items():
                mine[name][key].copy_(tensor)
