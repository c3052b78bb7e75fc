"""The requirements of a reward, from its class alone, so that they are checked before anything is loaded."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from flow_factory.hparams import RewardArguments
from flow_factory.types import Row
from flow_factory.utils.errors import UserError
from flow_factory.utils.registry import nearest

MEDIA = ("image", "video", "audio")
CONDITIONS = ("condition_images", "condition_videos")
GIVEN = ("prompt", "negative_prompt", *MEDIA, "audio_sample_rate", *CONDITIONS)
"""Inputs that are not columns of the data set."""


@dataclass(frozen=True)
class Needs:
    """The requirements of one reward, and the arguments of its `__call__`."""

    name: str
    required: tuple[str, ...]
    """The declared fields, and parameters without a default."""
    media: tuple[str, ...]
    """Media of which it needs one; empty if it needs none."""
    named: tuple[str, ...]
    """The parameters of its `__call__`."""
    open: bool
    """Whether it takes any further column (`**columns`)."""
    check: Callable[[Row], None] | None = None
    """See `BaseRewardModel.row_check`."""

    def takes(self, field: str) -> bool:
        """Whether the reward's call accepts this argument."""
        return self.open or field in self.named

    @property
    def of_rows(self) -> bool:
        """Whether it needs any input that a row may lack."""
        return self.check is not None or any(name not in GIVEN or name in CONDITIONS for name in self.required)

    def require_media(self, kind: Literal["image", "video"], sounds: bool) -> None:
        """Raises:
        UserError: the model does not generate the media that the reward scores.

        Args:
            kind: the media that the model generates.
            sounds: whether its videos have sound.
        """
        made = (kind, "audio") if sounds else (kind,)
        if "audio" in self.required and not sounds:
            raise UserError(f"reward {self.name!r} scores sound, and the model makes silent {kind}s; ltx2_t2av and ltx2_i2av make sound")
        if self.media and not set(self.media) & set(made):
            raise UserError(f"reward {self.name!r} scores {' or '.join(self.media)}, and the model makes {kind}s")

    def require_columns(self, row: Row) -> None:
        """Raises:
        UserError: the row lacks a column or condition files that the reward requires, or fails its `row_check`.
        """
        for name, files in (("condition_images", row.images), ("condition_videos", row.videos)):
            if name in self.required and not files:
                kind = name.removeprefix("condition_")
                raise UserError(
                    f"reward {self.name!r} needs {name.replace('_', ' ')}, and row {row.id} ({row.source}) has none: "
                    f"name them in the data set's column {kind[:-1]!r} or {kind!r}"
                )
        for column in self.required:
            if row.columns.get(column) is None and column not in GIVEN:
                near = nearest(column, [*row.columns, *GIVEN])
                raise UserError(
                    f"reward {self.name!r} needs the column {column!r}, and row {row.id} (counted from 0: {row.prompt[:60]!r}) "
                    f"has none.{near}"
                )
        if self.check is not None:
            self.check(row)


def needs_of(name: str, model: Any, config: RewardArguments | None = None) -> Needs:
    """The requirements of a reward or its class; with the entry also those for rows.

    Raises:
        UserError: `required_fields` is not a tuple of names.
    """
    cls = model if isinstance(model, type) else type(model)
    parameters = list(inspect.signature(cls.__call__).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    declared = _names(name, getattr(model, "required_fields", None))
    names = tuple(p.name for p in named)
    without_default = tuple(p.name for p in named if p.default is p.empty and p.name not in GIVEN)
    media = tuple(m for m in MEDIA[:2] if m in (names if declared is None else declared))
    if declared is None and "audio" in names:
        media = (*media, "audio")
    required = tuple(dict.fromkeys((*(declared or ()), *without_default)))
    check = model.row_check(config) if config is not None else None
    return Needs(name, required, media, names, any(p.kind is p.VAR_KEYWORD for p in parameters), check)


def _names(reward: str, fields: Any) -> tuple[str, ...] | None:
    """The `required_fields` of a class. A plain text is one name, because `("image")` is not a tuple."""
    if fields is None:
        return None
    listed = (fields,) if isinstance(fields, str) else fields
    if not isinstance(listed, tuple | list | set | frozenset) or not all(isinstance(f, str) and f for f in listed):
        raise UserError(f'reward {reward!r}: required_fields is {fields!r}; write a tuple of names, such as ("prompt", "image")')
    return tuple(sorted(listed)) if isinstance(listed, set | frozenset) else tuple(listed)
