"""Types of fields that several algorithms' sections have."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from flow_factory.config.base import Shown, show


def _range(value: Any) -> Any:
    """A lone share f stands for (0, f)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = (0.0, value)
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"wants a share f for (0, f), or [low, high], got {show(value)}; e.g. 0.9")
    return tuple(map(float, value))


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if not 0 <= low < high <= 1:
        raise ValueError(f"wants 0 <= low < high <= 1, got {show(value)}; e.g. 0.9 or [0.0, 0.9]")
    return value


def _ramp(value: str | int) -> str:
    from flow_factory.core.ema import ramp  # light: no torch in it

    ramp(value)
    return str(value)


TimeRange = Annotated[tuple[float, float], BeforeValidator(_range), AfterValidator(_ordered), Shown("float or [low, high]")]
Decay = Annotated[str | int, AfterValidator(_ramp), Shown("preset or start_step-start-slope-cap")]
TimeStrategy = Literal["discrete", "discrete_with_init", "discrete_wo_init", "uniform", "logit_normal"]
Levels = Annotated[int, BeforeValidator(lambda value: 0 if value is None else value)]
ADVANTAGE_CLIP = Field((-5.0, 5.0), description="clip of the advantage")
