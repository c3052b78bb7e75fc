"""What a reward cannot do without, by its class alone; asked before anything is loaded."""

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
"""What no column of the data set is asked for."""


@dataclass(frozen=True)
class Needs:
    """Of one reward: what it must be given, and what its `__call__` takes."""

    name: str
    required: tuple[str, ...]
    """As declared, and parameters without a default."""
    media: tuple[str, ...]
    """Of these it must be given one; empty: it does without."""
    named: tuple[str, ...]
    """Parameters of its `__call__`."""
    open: bool
    """Whether it takes any other by name too (`**columns`)."""
    check: Callable[[Row], None] | None = None
    """See `BaseRewardModel.row_check`."""

    def takes(self, field: str) -> bool:
        """Whether the reward's call accepts this argument."""
        return self.open or field in self.named

    @property
    def of_rows(self) -> bool:
        """Whether it must be given anything that not every row has."""
        return self.check is not None or any(name not in GIVEN or name in CONDITIONS for name in self.required)

    def require_media(self, kind: Literal["image", "video"], sounds: bool) -> None:
        """Raises:
        UserError: the reward scores what the model does not make.

        Args:
            kind: what the model makes.
            sounds: whether its videos have sound.
        """
        made = (kind, "audio") if sounds else (kind,)
        if "audio" in self.required and not sounds:
            raise UserError(f"reward {self.name!r} scores sound, and the model makes {kind}s without; ltx2_t2av and ltx2_i2av make sound")
        if self.media and not set(self.media) & set(made):
            raise UserError(f"reward {self.name!r} scores {' or '.join(self.media)}, and the model makes {kind}s")

    def require_columns(self, row: Row) -> None:
        """Raises:
        UserError: the row lacks a column or condition files that the reward requires, or what else it asks for.
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
    """What a reward, or its class, needs; with its entry, of the rows too.

    Raises:
        UserError: `required_fields` is no tuple of names.
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
    """A class's `required_fields`; a text alone is one name, for `("image")` lacks the comma of a tuple."""
    if fields is None:
        return None
    listed = (fields,) if isinstance(fields, str) else fields
    if not isinstance(listed, tuple | list | set | frozenset) or not all(isinstance(f, str) and f for f in listed):
        raise UserError(f'reward {reward!r}: required_fields is {fields!r}; write a tuple of names, such as ("prompt", "image")')
    return tuple(sorted(listed)) if isinstance(listed, set | frozenset) else tuple(listed)
