"""Weights that FSDP2 gathers in the dtype in which their module computes, whatever dtype they are trained in.

`MixedPrecisionPolicy.param_dtype` would say it for a whole block, of which diffusers keeps parts in float32 (Wan's norms and tables). This
says it weight by weight: one gathering brings them all, each in its own dtype. Gradients are added and reduced in the trained dtype.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

from flow_factory.policy.policy import Policy
from flow_factory.utils.stock_dtypes import dtype_of

POLICY = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
ABLE = hasattr(Tensor, "grad_dtype")
"""Whether this torch (2.10 or later) adds the gradients of a weight in another dtype than the weight's; else all is gathered as it is."""


class NarrowParam(FSDPParam):
    """A weight with an own `gathers`: the dtype."""

    gathers: torch.dtype

    def init_dtype_attrs(self, mp_policy: MixedPrecisionPolicy) -> None:
        super().init_dtype_attrs(mp_policy)
        self.param_dtype = self.gathers

    def init_unsharded_param(self) -> None:
        super().init_unsharded_param()
        self._unsharded_param.grad_dtype = self.orig_dtype


def gathered_dtypes(policy: Policy, precision: torch.dtype) -> dict[Tensor, torch.dtype]:
    """The dtypes of the trained weights that are stored in more bits than they compute in.

    Args:
        precision: the run's.
    """
    named = [(model, name, p) for model in policy.models.values() for name, p in model.named_parameters() if p.requires_grad]
    wanted = {p: dtype_of(model, name, precision) for model, name, p in named}
    return {p: dtype for p, dtype in wanted.items() if dtype.itemsize < p.element_size()}


def narrow(policy: Policy, dtypes: Mapping[Tensor, torch.dtype]) -> None:
    """Makes FSDP2 gather the weights of a sharded policy in these dtypes."""
    for module in policy.modules() if ABLE else ():
        group = module._get_fsdp_state()._fsdp_param_group if isinstance(module, FSDPModule) else None
        for param in group.fsdp_params if group is not None else ():
            if (dtype := dtypes.get(param.sharded_param)) is not None:
                param.__class__, param.gathers = NarrowParam, dtype  # type: ignore[attr-defined]
