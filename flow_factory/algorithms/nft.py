"""DiffusionNFT (arXiv 2509.16117): towards good samples and away from bad ones, relative to the policy that drew them."""

from typing import ClassVar

from torch import Tensor

from flow_factory.algorithms.forward import AgainstOldPolicy, ends, mixed
from flow_factory.algorithms.held import kl_term
from flow_factory.algorithms.losses.nft import nft_loss, optimality
from flow_factory.config import NFTConfig, TrainConfig
from flow_factory.types import Metrics, Point, Velocity


class NFT(AgainstOldPolicy):
    """c (r L+ + (1 - r) L-) / beta with c = nft_saturation, plus kl_beta times the distance to the reference."""

    Config: ClassVar[type[TrainConfig]] = NFTConfig
    config: NFTConfig

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        config, (x0, noise) = self.config, ends(point)
        clip = config.nft_saturation
        v, old = velocity(point).float(), velocity(point, "old").float()
        r = optimality(point.advantage, clip, config.adv_mode)
        parts = nft_loss(v, old, mixed(x0, noise, point.s), x0, point.s, r, config.nft_beta, clip)
        policy = loss = parts["loss"].mean()
        metrics = {"policy_loss": policy, "loss_positive": parts["positive"], "loss_negative": parts["negative"],
                   "optimality": r, "policy_shift": ((v - old) ** 2).mean()}  # fmt: skip
        if config.kl_beta > 0:
            term, term_metrics = kl_term(config, point, self.kl(point, v, velocity))
            loss, metrics = policy + term, metrics | term_metrics
        return loss, {k: m.detach() for k, m in ({"loss": loss} | metrics).items()}
