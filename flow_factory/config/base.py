"""What all sections share: strictness, the types of their fields, and how a value is written in messages."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from flow_factory.config.secrets import masked
from flow_factory.utils.errors import UserError, plain
from flow_factory.utils.registry import nearest


class ConfigError(UserError):
    """The configuration cannot be used; one line a problem: `file:line: section.key: what is wrong; what would be right`."""

    def __str__(self) -> str:
        return "\n".join(map(plain, self.args[0].split("\n")))


class Section(BaseModel):
    """A part of the YAML: no unknown keys, no conversions between types, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)

    rest: ClassVar[str | None] = None
    """The field that gathers the arguments a section takes beyond its own keys; it is not a key itself."""

    refused: ClassVar[Mapping[str, str]] = {}
    """Keys that others have and that would mislead here -> what to say of them."""

    @classmethod
    def own_keys(cls) -> list[str]:
        """What may stand in the YAML, besides the arguments that go to `rest`."""
        return [key for key in cls.model_fields if key != cls.rest]


@dataclass(frozen=True)
class Shown:
    """How `config_help` shows a field whose annotation or default says it badly."""

    kind: str | None = None
    default: str | None = None


LONGEST = 300
"""Characters of a value that a message quotes."""


def show(value: Any) -> str:
    """A value as one would write it in YAML: `true`, `"text"`, `[1, 2]`; only the beginning of a long one, and no secret."""
    text = _written(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text)} characters)"


def _written(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_written, value))}]"
    text = json.dumps(masked(value), ensure_ascii=False, default=str)
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text


DERIVED: Any = None
"""Default of a `derived` field."""


def derived(compute: Callable[[Mapping[str, Any]], Any]) -> BeforeValidator:
    """A field whose null stands for a value that is computed from the valid fields above it."""

    def fill(value: Any, info: ValidationInfo) -> Any:
        return compute(info.data) if value is None else value

    return BeforeValidator(fill)


def _named(text: str) -> str:
    """A name that a file system, a tracker and a terminal can show."""
    if not text.strip() or text != text.strip():
        raise ValueError(f"wants text that neither is empty nor begins or ends with a space, got {show(text)}")
    if not text.isprintable():
        raise ValueError(f"must be one line of printable characters, got {show(text)}")
    if (part := next((part for part in text.split("/") if len(part.encode()) > 200), None)) is not None:
        raise ValueError(f"is too long: {len(part.encode())} bytes, and a file's name has at most 200; shorten it")
    return text


def _path(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError(f"wants a path in one line of printable characters, got {show(text)}")
    if len(text.encode()) > 4000 or any(len(part.encode()) > 255 for part in text.split("/")):
        raise ValueError("is too long: a path has at most 4000 bytes, and 255 between two slashes")
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError as error:  # no such user, or no HOME
        raise ValueError(f"{show(text)}: {error}; write the whole path") from error


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _tuple(value)


def _size(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"wants a whole number of pixels or [height, width], got {show(value)}; e.g. 512 or [512, 768]")
    return tuple(value)


def _pair(value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"wants two numbers, got {show(value)}; e.g. [0.9, 0.999]")
    return tuple(value)


def _interval(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = (-value, value)
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"wants a positive number e for (-e, e), or [low, high], got {show(value)}")
    return tuple(value)


def _around_zero(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if not low < 0 < high:
        size = max(abs(low), abs(high)) or 1.0
        raise ValueError(f"wants low < 0 < high, got {show(value)}; e.g. {show(size)} or {show([-size, size])}")
    return value


PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""torch's names -> ours."""


def _dtype(value: Any) -> Any:
    return PRECISIONS.get(value.removeprefix("torch."), value) if isinstance(value, str) else value


def _device(value: str) -> str:
    if re.fullmatch(r"auto|cpu|mps|xpu|cuda(:\d{1,3})?", value):
        return value
    known = ["auto", "cpu", "cuda", "cuda:0", "mps", "xpu"]
    raise ValueError(f"no device {show(value)}.{nearest(value, known)} Known: {', '.join(known)}")


Beta = Annotated[float, Field(ge=0, lt=1)]
Folder = Annotated[str, AfterValidator(_path), Shown("path")]
Name = Annotated[str, AfterValidator(_named), Shown("text")]
Batch = Annotated[int, Field(ge=1, le=65536)]
Denoising = Annotated[int, Field(ge=1, le=1000)]
Guidance = Annotated[float, Field(ge=0, le=1000)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Betas = Annotated[tuple[Beta, Beta], BeforeValidator(_pair), Shown("[float, float]")]
Names = Annotated[tuple[str, ...], BeforeValidator(listed), Shown("name or list of names")]
Steps = Annotated[tuple[int, ...] | None, BeforeValidator(_tuple), Shown("list of int, or null")]
Interval = Annotated[tuple[float, float], BeforeValidator(_interval), AfterValidator(_around_zero), Shown("float or [low, high]")]
Dtype = Annotated[Literal["bf16", "fp16", "fp32"], BeforeValidator(_dtype)]
Device = Annotated[str, AfterValidator(_device), Shown("auto | cpu | cuda | cuda:N | mps | xpu")]
Side = Annotated[int, Field(gt=0, le=16384)]
Size = Annotated[tuple[Side, Side], BeforeValidator(_size), Shown("int or [height, width]")]
Height = Annotated[Side, derived(lambda above: above.get("resolution", (1, 1))[0]), Shown(default="from resolution")]
Width = Annotated[Side, derived(lambda above: above.get("resolution", (1, 1))[1]), Shown(default="from resolution")]
