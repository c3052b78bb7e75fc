"""The memory of a rollout or an evaluation beyond the weights: a forward without gradients, the VAE, and waiting images."""

from collections.abc import Iterator, Sequence
from typing import Any

from flow_factory.config import EvalConfig, RunConfig, TrainConfig, plan_of
from flow_factory.config.datasets import evaluations
from flow_factory.config.rewards import RewardConfig
from flow_factory.memory.parts import ACTIVATIONS, Part
from flow_factory.memory.sizes import width_of
from flow_factory.models.base import ModelAdapter
from flow_factory.models.loading import DTYPES
from flow_factory.rewards.executors import AHEAD

DRAWING = "forward or decoding of a rollout or evaluation"
"""The name of the part that `model.vae_slicing` and `vae_tiling` reduce."""
INPUTS, BLOCK, WHOLE = 1.07, 3.0, 7.7
"""Memory of a VAE's backward in units of `decoding_of`, traced with AutoencoderKL on the meta device. With recomputed blocks: the inputs of
all blocks, and one block at work. Without: everything."""


def pictures(config: RunConfig, family: type[ModelAdapter]) -> Iterator[Part]:
    """The images that wait for rewards, and those that are logged."""
    train, plan = config.train, plan_of(config)
    filled, size = max((reward.batch_size for reward in config.rewards), default=1), train.per_device_batch_size
    submitted, ahead = plan.rolled.submitted_at_once(size, filled), _ahead(config.rewards, train.group_size)
    waiting = min((submitted if ahead else 0) + ahead + submitted + size * plan.drawn_together, size * plan.micro_batches_per_rank)
    rewards, sections = config.evaluated_by, evaluations(config)
    called = max((reward.batch_size for reward in rewards), default=1)
    evaluated = [_bytes_of(family, s) * (called + s.per_device_batch_size + s.group_size + _ahead(rewards, s.group_size)) for s in sections]
    most = max(_bytes_of(family, train) * waiting, *evaluated)
    most += config.log.num_samples * (_bytes_of(family, train) + max(_bytes_of(family, s) for s in sections))
    yield Part(f"{family.draws}s that rewards wait for, and those that are shown", most * 1e-9, "rollout", host=True)


def _ahead(rewards: Sequence[RewardConfig], group_size: int) -> int:
    """The number of samples that wait for rewards while more are drawn."""
    return max((AHEAD * reward.num_workers * max(reward.batch_size, group_size) for reward in rewards if reward.async_reward), default=0)


def _bytes_of(family: type[ModelAdapter], section: TrainConfig | EvalConfig) -> float:
    """The bytes of one sample's images. Pillow stores four bytes for each pixel."""
    frames = (section.call.get("num_frames") or family.default_frames) if family.draws == "video" else 1
    return 4.0 * section.height * section.width * frames


def drawn(config: RunConfig, family: type[ModelAdapter], shape: Any) -> float:
    """GB of a forward or of the VAE in a rollout or an evaluation, whichever is larger."""
    sections: list[TrainConfig | EvalConfig] = [config.train, *evaluations(config)]
    most = max(drawing(config, family, section, width_of(shape)) for section in sections)
    return most * DTYPES[config.mixed_precision].itemsize * 1e-9


def sloping(config: RunConfig, family: type[ModelAdapter]) -> float:
    """GB of the VAE's forward and backward for the gradient of the rewards, for one micro-batch. The rewards' own backward is not counted.

    For video models it assumes that no block is recomputed: Wan's VAE does not support that.
    """
    train, n = config.train, config.train.per_device_batch_size
    whole = family.decoding_of(train.height, train.width, train.call) * n
    again = decoding(config, family, train) * (1 if config.model.vae_slicing else n)
    values = WHOLE * whole if family.draws == "video" else INPUTS * whole + BLOCK * again
    return values * DTYPES[config.mixed_precision].itemsize * 1e-9


def drawing(config: RunConfig, family: type[ModelAdapter], section: TrainConfig | EvalConfig, width: int) -> float:
    """The number of values, in mixed_precision, that a layer without gradients or the VAE holds at a time."""
    place = section.height, section.width, section.call
    forward = ACTIVATIONS / 2 * family.tokens_of(*place) * width
    together = plan_of(config).drawn_together if isinstance(section, TrainConfig) else 1
    n = section.per_device_batch_size * together
    return max(forward * n, decoding(config, family, section) * (1 if config.model.vae_slicing else n))


def decoding(config: RunConfig, family: type[ModelAdapter], section: TrainConfig | EvalConfig) -> float:
    """The number of values, in mixed_precision, that the VAE holds for one sample. With tiling: for a tile and the whole image.

    An undecided `auto` counts as slicing without tiling.
    """
    height, width, call = section.height, section.width, section.call
    if config.model.vae_tiling is not True:
        return family.decoding_of(height, width, call)
    whole = 2 * _bytes_of(family, section)  # 3 values for each pixel: in the tiles, in their blended rows, and in the whole image
    return min(family.decoding_of(height, width, call), family.decoding_of(min(height, family.tile), min(width, family.tile), call) + whole)
