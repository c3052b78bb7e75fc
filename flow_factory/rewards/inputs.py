"""The arguments of a reward's call: lists of n copies."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from flow_factory.rewards.loading import LoadedReward
from flow_factory.rewards.media import condition_images, condition_videos, convert, convert_conditions, kind_of
from flow_factory.rewards.needs import GIVEN
from flow_factory.types import Clip, Row
from flow_factory.utils.errors import UserError

OPENED: dict[str, Callable[[Row], list[Any]]] = {"condition_images": condition_images, "condition_videos": condition_videos}


class Sample(NamedTuple):
    """One image or video with all inputs that a reward may take."""

    row: Row
    media: Any
    fields: Mapping[str, Any]


def samples_of(row: Row, group: Sequence[Any]) -> list[Sample]:
    """The samples of one row."""
    negative = {} if row.negative_prompt is None else {"negative_prompt": row.negative_prompt}
    fields = {**{k: v for k, v in row.columns.items() if k not in GIVEN}, **negative, "prompt": row.prompt}
    return [Sample(row, one, fields) for one in group]


def arguments(reward: LoadedReward, batch: Sequence[Sample]) -> dict[str, list[Any]]:
    """The media, conditions and columns that the reward takes.

    Raises:
        UserError: it does not score this kind of media, or a row lacks a condition that it requires.
    """
    model, needs, kind = reward.model, reward.needs, kind_of(batch[0].media)
    sounds = [m.audio if isinstance(m, Clip) else None for m in (sample.media for sample in batch)]
    needs.require_media("image" if kind == "image" else "video", all(s is not None for s in sounds))
    device = model.device if model.use_tensor_inputs else None
    own = fresh if model.changes_inputs else lambda value: value
    given: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for sample in batch for name in sample.fields):
        if needs.takes(name):
            given[name] = [own(sample.fields.get(name)) for sample in batch]
    if needs.takes(kind):
        given[kind] = [own(convert(sample.media, device)) if device is None else convert(sample.media, device) for sample in batch]
    given |= _sound(reward, batch, sounds, device)
    for name, opened in OPENED.items():
        conditions = _conditions(batch, opened, own, device) if needs.takes(name) else []
        if any(conditions):
            given[name] = [convert_conditions(c, device) for c in conditions]
        elif name in needs.required:
            raise UserError(f"reward {reward.name!r} needs {name.replace('_', ' ')}, and row {batch[0].row.id} has none")
    return given


def _sound(reward: LoadedReward, batch: Sequence[Sample], sounds: Sequence[Any], device: torch.device | None) -> dict[str, list[Any]]:
    """(channels, samples) float32 of each clip and its rate in Hz; empty for clips without sound."""
    if any(s is None for s in sounds) or not (reward.needs.takes("audio") or reward.needs.takes("audio_sample_rate")):
        return {}
    waves = [s.copy() if device is None else torch.tensor(s, device=device) for s in sounds]
    both = {"audio": waves, "audio_sample_rate": [sample.media.sample_rate for sample in batch]}
    return {name: values for name, values in both.items() if reward.needs.takes(name)}


def _conditions(
    batch: Sequence[Sample], opened: Callable[[Row], list[Any]], own: Callable[[Any], Any], device: torch.device | None
) -> list[list[Any]]:
    """The conditions of each sample. Samples of a row share one copy to save memory; tensors need none."""
    rows = {sample.row.id: sample.row for sample in batch}
    pictures = {key: opened(row) if device is not None else own(opened(row)) for key, row in rows.items()}
    return [list(pictures[sample.row.id]) for sample in batch]


def fresh(value: Any) -> Any:
    """A deep copy of mutable values: images, lists and dicts. Numbers and texts are returned unchanged."""
    if isinstance(value, Image.Image):
        return value.copy()
    if isinstance(value, list):
        return [fresh(one) for one in value]
    return {key: fresh(one) for key, one in value.items()} if isinstance(value, dict) else value
