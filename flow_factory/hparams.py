"""What a reward is constructed with; part of the public interface that users' own rewards import."""

from dataclasses import dataclass, field
from typing import Any

import torch

from flow_factory.utils.errors import UserError

__all__ = ["RewardArguments"]

_DTYPES = {
    "fp16": torch.float16, "float16": torch.float16,
    "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
    "fp32": torch.float32, "float32": torch.float32,
}  # fmt: skip


@dataclass(kw_only=True)
class RewardArguments:
    """One entry of `rewards:` or `eval_rewards:`. `dtype` and `device` may be given by name.

    Raises:
        UserError: an unknown name of a dtype, or a batch size below 1.
    """

    name: str = "reward"
    """What logs and errors call it; unique among its neighbours."""
    reward_model: str = "PickScore"
    """A name of the table `flow_factory.rewards.REWARDS`, an entry point, or a dotted path."""
    weight: float | dict[str, float] = 1.0
    """Of all data sets, or by the name of each."""
    applicable_datasets: tuple[str, ...] | None = None
    """Names of the data sets whose samples it scores; None: of all."""
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cuda"))
    """Plain "cuda" means the device of this process, whatever it is."""
    batch_size: int = 16
    """Samples a call of a pointwise reward."""
    max_seconds: float | None = None
    """Longest time of a call; beyond it the run ends."""
    max_missing: float = 0.5
    """Largest share of an epoch's scores that may be missing; with more the run ends."""
    transform: dict[str, Any] | None = None
    """What becomes of its scores before they are weighted, see `transform.transformed`; no concern of the reward's."""
    async_reward: bool = False
    """Whether it is called in threads of its own, beside the sampling."""
    num_workers: int = 1
    """So many threads, where `async_reward`."""
    extra_kwargs: dict[str, Any] = field(default_factory=dict)
    """Every other key of the entry; readable as attributes too."""

    def __post_init__(self) -> None:
        if isinstance(self.dtype, str):
            if self.dtype not in _DTYPES:
                raise UserError(f"reward {self.name!r}: no dtype {self.dtype!r}. Known: {', '.join(_DTYPES)}")
            self.dtype = _DTYPES[self.dtype]
        self.device = torch.device(self.device)
        if self.batch_size < 1:
            raise UserError(f"reward {self.name!r}: batch_size is {self.batch_size}, must be at least 1")

    def __getattr__(self, name: str) -> Any:
        if name != "extra_kwargs" and name in self.extra_kwargs:  # the first half: pickle asks before any field is set
            return self.extra_kwargs[name]
        raise AttributeError(f"reward {self.__dict__.get('name')!r} has no key {name!r}")
