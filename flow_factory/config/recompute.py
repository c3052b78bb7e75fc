"""`train.enable_gradient_checkpointing`: which blocks of a transformer are computed again in the backward pass."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from flow_factory.config.base import Shown, show

AUTO = "auto"
NAMES = {"fraction": "fraction", "every": "every", "every_n": "every", "layers": "layers"}
"""Keys of the mapping, those of other implementations too -> ours."""
WANTS = "wants true, false, auto, {fraction: 0.5} or just 0.5, {every: 2} or {layers: [0, 1]}"


def _recompute(value: Any) -> Any:
    if isinstance(value, bool) or value == AUTO:
        return value
    if isinstance(value, float):  # the short form of an override
        return _checked("fraction", value)
    if not isinstance(value, Mapping):
        raise ValueError(f"{WANTS}, got {show(value)}")
    given = {key: v for key, v in value.items() if v is not None}
    mode = given.pop("mode", None)
    if mode in ("full", "none") and not given:
        return mode == "full"
    if len(given) != 1 or not {*given} <= NAMES.keys() or mode not in (None, *given):
        raise ValueError(f"{WANTS}, or one of them as {{mode: fraction, fraction: 0.5}}, got {show(value)}")
    ((key, much),) = given.items()
    return _checked(NAMES[key], much)


def _checked(key: str, much: Any) -> Any:
    """The mapping of one key; all blocks and none are true and false."""
    if key == "layers":
        if not isinstance(much, (list, tuple)) or not much or not all(_whole(n, 0) for n in much):
            raise ValueError(f"layers wants numbers of blocks from 0, got {show(much)}; e.g. [0, 1, 2]")
        return {key: sorted(set(much))}
    if key == "every":
        if not _whole(much, 1):
            raise ValueError(f"every wants a whole number of blocks from 1, got {show(much)}; 2 takes every second one")
        return much == 1 or {key: much}
    if isinstance(much, bool) or not isinstance(much, (int, float)) or not 0 <= much <= 1:
        raise ValueError(f"fraction wants a share of the blocks from 0 to 1, got {show(much)}")
    return much == 1 or (much != 0 and {key: float(much)})


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


Recompute = Annotated[
    bool | str | dict[str, Any], BeforeValidator(_recompute), Shown("true | false | auto | {fraction: f} | {every: n} | {layers: [..]}")
]
"""true, false, "auto", or a mapping of one key."""


def every_block(setting: Any) -> bool:
    """Whether none keeps its activations; "auto" may find that it has to be so."""
    return setting is True or setting == AUTO


def chosen_blocks(setting: bool | str | Mapping[str, Any], blocks: int) -> list[int]:
    """The numbers of the blocks that are computed again, of so many; all of them for an "auto" that is not resolved yet.

    Those of a fraction are the first ones: the backward comes to them last, when what the others have kept is gone.
    """
    if not isinstance(setting, Mapping):
        return list(range(blocks)) if setting else []
    if "layers" in setting:
        return [k for k in setting["layers"] if k < blocks]
    every, fraction = setting.get("every", 1), setting.get("fraction", 1.0)
    return list(range(0, blocks, every))[: math.ceil(fraction * blocks)]
