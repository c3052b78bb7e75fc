"""`monitor:` which metrics are watched, and what happens when one crosses its threshold."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from flow_factory.config.base import Name, Section, Shown, show

CONDITIONS = ("above", "below", "rises", "falls")
Do = Literal["warn", "lower_lr", "stop", "back"]


def _amount(value: Any) -> Any:
    """A positive number, or a share of the value that it is measured from, as `20%`."""
    if value is None:
        return None
    share = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value) if isinstance(value, str) else None
    number = float(share[1]) if share else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < 1e12:
        raise ValueError(f"wants a number above 0 in the metric's unit, or a share such as 20%, got {show(value)}")
    return f"{number:g}%" if share else float(value)


Amount = Annotated[float | str | None, BeforeValidator(_amount), Shown("float, N%, or null")]


class WatchConfig(Section):
    """One watched metric. Exactly one of above, below, rises and falls says when it is out of bounds."""

    metric: Name = Field(description="name of a metric that the run logs, such as train/kl_div or eval/reward_<name>_mean")
    above: float | None = Field(None, description="out of bounds above this value")
    below: float | None = Field(None, description="out of bounds below this value")
    rises: Amount = Field(None, description="out of bounds this far above its lowest value so far; 20% = of that value")
    falls: Amount = Field(None, description="out of bounds this far below its highest value so far; 20% = of that value")
    patience: int = Field(1, ge=1, description="so many times in a row it must be out of bounds: epochs of train/, evaluations of eval/")
    from_epoch: int = Field(0, ge=0, description="epoch after which it is first looked at; earlier values count for nothing")
    do: Do = Field(
        "warn",
        description="warn = say it once; lower_lr = lower the learning rate; stop = end the run; back = go back to the weights and the "
        "optimizer of log.keep_best, with a lower learning rate. Each also says what it saw",
    )
    lr_factor: float = Field(0.5, gt=0, lt=1, description="factor of the learning rate for lower_lr and back")
    times: int = Field(3, ge=1, description="so many times lower_lr or back may act; the next time, the run stops")

    @model_validator(mode="after")
    def _one_condition(self) -> "WatchConfig":
        found = [key for key in CONDITIONS if getattr(self, key) is not None]
        if len(found) != 1:
            raise ValueError(f"wants one of {', '.join(CONDITIONS)}, got {' and '.join(found) or 'none of them'}; e.g. falls: 10%")
        return self

    @property
    def condition(self) -> str:
        """The name of the one that is given."""
        return next(key for key in CONDITIONS if getattr(self, key) is not None)

    @property
    def key(self) -> str:
        """Names the watch in a run's memory: with another condition or consequence it begins anew."""
        return f"{self.metric} {self.condition} {getattr(self, self.condition)} {self.do}"

    @property
    def phase(self) -> str:
        """`train`, looked at after every epoch, or `eval`, after every evaluation."""
        return self.metric.partition("/")[0]


def _entries(value: Any) -> Any:
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(entry, (dict, WatchConfig)) for entry in value):
        raise ValueError(f"wants a list of watches, such as [{{metric: train/kl_div, above: 0.1, do: lower_lr}}], got {show(value)}")
    return tuple(value)


Watches = Annotated[tuple[WatchConfig, ...], BeforeValidator(_entries), Shown("list")]
