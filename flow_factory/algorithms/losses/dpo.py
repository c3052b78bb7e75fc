"""Diffusion-DPO (arXiv 2311.12908) for flow matching: prefer one sample of a pair to the other, relative to a reference."""

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(d_w: Tensor, d_l: Tensor, d_w_ref: Tensor, d_l_ref: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """-log sigmoid(m) and m = -beta/2 [(d_w - d_w_ref) - (d_l - d_l_ref)], both (P,) for P pairs; at the reference log 2 and 0.

    d is `matching_error` of the chosen (w) and the rejected (l) sample, under the policy and under the reference; both samples of a pair
    take the same noise and noise level. `beta` (2000 to 5000) contains the paper's number of steps. m > 0: the pair is in order.
    """
    margin = -beta / 2 * ((d_w - d_w_ref) - (d_l - d_l_ref))
    return -logsigmoid(margin), margin
