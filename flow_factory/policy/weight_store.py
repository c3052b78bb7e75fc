"""Named copies of the trained weights: the reference, the old policy, the average."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from flow_factory.policy.lora import MAIN, role_of

State = dict[str, dict[str, Tensor]]


class WeightStore:
    """Keeps float32 copies of the trained parameters under names, and swaps them into the model.

    With several networks, a copy belongs to one of them, and the name of a network's own weights is its role.

    Args:
        params: the trained parameters by name, of all networks.
        disable_adapter: for LoRA, a context in which the adapter is disabled: then "ref" is the base model and needs no copy.
        part: returns the part of a parameter that this process holds and copies; see `engines.Engine.part`.
        written: called after parts were overwritten.
        active_network: a context in which the network of a role is active.
    """

    def __init__(
        self, params: Mapping[str, nn.Parameter], disable_adapter: Callable[[], AbstractContextManager] | None = None,
        part: Callable[[nn.Parameter], Tensor] = lambda p: p, written: Callable[[], None] = lambda: None,
        active_network: Callable[[str], AbstractContextManager] = lambda role: nullcontext(),
    ):  # fmt: skip
        self.params, self.part, self.written = params, part, written
        self.disable_adapter, self.active_network = disable_adapter, active_network
        self.networks: dict[str, list[str]] = {MAIN: []}
        """The names of each network's parameters."""
        for name in params:
            self.networks.setdefault(role_of(name), []).append(name)
        self.copies: dict[str, list[Tensor]] = {}
        self.owners: dict[str, str] = {}
        """The network of each copy."""
        self.given: set[str] = set()
        """Copies whose weights come from files. They are not part of the training state."""

    @property
    def live(self) -> list[Tensor]:
        """The policy's own weights."""
        return self.live_of(MAIN)

    def live_of(self, role: str) -> list[Tensor]:
        """The own weights of another network."""
        return [self.part(self.params[name]).detach() for name in self.networks[role]]

    @torch.no_grad()
    def keep(self, name: str, device: torch.device | str | None = None, of: str = MAIN) -> None:
        """Copies a network's present weights under `name`, to the given device or their own. "ref" of a LoRA needs no copy."""
        if name == "ref" and self.disable_adapter is not None:
            return
        self.copies[name] = [p.to(device or p.device, torch.float32, copy=True) for p in self.live_of(of)]
        self.owners[name] = of

    def keep_given(
        self, name: str, weights: Mapping[str, Tensor], scatter: Callable[[Tensor, Tensor], None], device: torch.device | str | None = None
    ) -> None:
        """Keeps the weights of a file under `name`, as if they were a copy of the policy's.

        Args:
            weights: whole tensors, by the names of the policy's parameters.
            scatter: writes the part of a whole tensor that this process holds.
        """
        self.keep(name, device)
        self.given.add(name)
        for parameter, part in zip(self.networks[MAIN], self.copies[name], strict=True):
            scatter(weights[parameter], part)

    @property
    def reported(self) -> str:
        """The name of the weights that are evaluated and saved: the average, if one is kept."""
        return "ema" if "ema" in self.copies else "policy"

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Inside this context the model computes with the copy, or as the network of this role. Afterwards it has the live weights again.

        Swaps with `Tensor.copy_`, so that autograd raises if a swap falls between a forward and its backward.
        """
        if name in self.networks:
            with self.active_network(name):
                yield
        elif name == "ref" and self.disable_adapter is not None:
            with self.disable_adapter():
                yield
        else:
            role = self.owners.get(name, MAIN)
            live = [p.clone() for p in self.live_of(role)]
            self._write(self.copies[name], role)
            try:
                with self.active_network(role):
                    yield
            finally:
                self._write(live, role)

    @torch.no_grad()
    def blend(self, name: str, decay: float) -> None:
        """copy <- decay * copy + (1 - decay) * the weights of its network."""
        for kept, p in zip(self.copies[name], self.live_of(self.owners.get(name, MAIN)), strict=True):
            kept.lerp_(p.to(kept.device, torch.float32), 1 - decay)

    @torch.no_grad()
    def _write(self, tensors: list[Tensor], role: str) -> None:
        for p, t in zip(self.live_of(role), tensors, strict=True):
            p.copy_(t)
        self.written()

    def state_dict(self) -> State:
        """This process's parts of the copies by name, except those from files, and of the live weights by role."""
        live = {role: dict(zip(names, self.live_of(role), strict=True)) for role, names in self.networks.items()}
        own = {name: kept for name, kept in self.copies.items() if name not in self.given}
        copies = {name: (self.networks[self.owners.get(name, MAIN)], kept) for name, kept in own.items()}
        return live | {name: dict(zip(names, kept, strict=True)) for name, (names, kept) in copies.items()}
