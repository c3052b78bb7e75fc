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
        part: what this process holds of a parameter, and copies; see `engines.Engine.part`.
        written: called after parts were written.
    """

    def __init__(
        self, params: Mapping[str, nn.Parameter], adapter_off: Callable[[], AbstractContextManager] | None = None,
        part: Callable[[nn.Parameter], Tensor] = lambda p: p, written: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        self.params, self.adapter_off, self.part, self.written = params, adapter_off, part, written
        self.copies: dict[str, list[Tensor]] = {}

    @property
    def live(self) -> list[Tensor]:
        """The policy's own weights, of which the model computes."""
        return [self.part(p).detach() for p in self.params.values()]

    @torch.no_grad()
    def keep(self, name: str, device: torch.device | str | None = None) -> None:
        """Copies the present weights under `name`, to their own device unless another is given. "ref" of a LoRA needs no copy."""
        if name == "ref" and self.adapter_off is not None:
            return
        self.copies[name] = [p.to(device or p.device, torch.float32, copy=True) for p in self.live]

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
            live = [p.clone() for p in self.live]
            self._write(self.copies[name])
            try:
                yield
            finally:
                self._write(live)

    @torch.no_grad()
    def blend(self, name: str, decay: float) -> None:
        """copy <- decay * copy + (1 - decay) * policy."""
        for kept, p in zip(self.copies[name], self.live, strict=True):
            kept.lerp_(p.to(kept.device, torch.float32), 1 - decay)

    @torch.no_grad()
    def _write(self, tensors: list[Tensor]) -> None:
        for p, t in zip(self.live, tensors, strict=True):
            p.copy_(t)
        self.written()

    def state_dict(self) -> State:
        """The parts of the copies by name, and of the live weights under "policy"."""
        return {name: dict(zip(self.params, kept, strict=True)) for name, kept in {"policy": self.live, **self.copies}.items()}
