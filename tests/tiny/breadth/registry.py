"""How a tiny checkpoint of a pipeline is made and called: `CASES`, which the other files of this folder fill."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import diffusers
import numpy as np
from PIL import Image

from flow_factory.config.data import OURS
from flow_factory.data.media import save_video
from flow_factory.types import Clip

IMAGE = {"height": 32, "width": 32, "max_sequence_length": 32}
VIDEO = {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 16}
HUNYUAN = VIDEO | {"max_sequence_length": 32}


@dataclass(frozen=True)
class Medium:
    """What a row has in a column."""

    kind: Literal["image", "mask", "video"] = "image"
    side: int = 32
    """Pixels of each side."""
    mode: str = "RGB"
    """Of an image."""
    listed: bool = False
    """Whether the column is a list, of one file."""

    def write(self, folder: Path, name: str) -> str | list[str]:
        """Writes the file; the column's value, whose names start in the folder of this kind."""
        file = f"{name}.{'mp4' if self.kind == 'video' else 'png'}"
        place = folder / ("videos" if self.kind == "video" else "images") / file
        place.parent.mkdir(parents=True, exist_ok=True)
        if self.kind == "video":
            save_video(Clip([noise(k, self.side) for k in range(5)], 8), place)
        elif self.kind == "mask":
            Image.fromarray(np.repeat(np.uint8([255, 0]), self.side // 2)[:, None].repeat(self.side, 1)).save(place)
        else:
            noise(len(name), self.side).convert(self.mode).save(place)
        return [file] if self.listed else file


def noise(seed: int, side: int) -> Image.Image:
    """A picture of 16 patches of random colours."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)).resize((side, side))


PICTURE: Mapping[str, Medium] = {"image": Medium()}
SMALL: Mapping[str, Medium] = {"image": Medium(side=16)}
INPAINT: Mapping[str, Medium] = {"image": Medium(), "mask_image": Medium("mask")}
CONTROL: Mapping[str, Medium] = {"control_image": Medium()}


@dataclass(frozen=True)
class Case:
    """A pipeline and one way of calling it."""

    name: str
    pipeline: str
    """Its class in diffusers."""
    build: Callable[[], Any]
    """Makes the pipeline, of stock classes with random weights."""
    call: Mapping[str, Any] = field(default_factory=lambda: dict(IMAGE))
    """Call arguments that a YAML has in `train:`."""
    columns: Mapping[str, Medium] = field(default_factory=dict)
    """Media of a row, by the argument of the pipeline's call."""
    negative: bool = False
    """Whether the call takes a negative prompt."""
    wording: str = "PROMPT"
    """How a prompt is written."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the loaded pipeline that make it small."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Constants of the pipeline's module that make it small; `module.NAME` are those of a module beside it."""
    needs: tuple[str, ...] = ()
    """Packages beyond those of diffusers."""

    @property
    def steps(self) -> int:
        """`num_inference_steps`: `strength` leaves some of them out."""
        return 5 if any(word in self.name for word in ("img2img", "inpaint")) else 3

    def missing(self) -> str | None:
        """Why the case cannot be built here, for a skip; None: it can."""
        absent = [package for package in self.needs if find_spec(package) is None]
        if absent:
            return f"{self.pipeline} needs {', '.join(absent)}"
        return None if hasattr(diffusers, self.pipeline) else f"the installed diffusers has no {self.pipeline}"

    def row(self, folder: Path, **columns: Any) -> dict[str, Any]:
        """Writes the media into a data set's folder; the row's columns, with these."""
        plural = {name: f"{name}s" for name, medium in self.columns.items() if medium.listed and f"{name}s" in OURS}
        return columns | {plural.get(name, name): medium.write(folder, name) for name, medium in self.columns.items()}

    def renamed(self) -> dict[str, str]:
        """`data.columns` for such rows."""
        return {name: name for name in self.columns if name not in OURS}


CASES: dict[str, Case] = {}


def case(name: str, pipeline: str, **given: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Registers the function below it as the builder of a case; see `Case`."""

    def add(build: Callable[[], Any]) -> Callable[[], Any]:
        CASES[name] = Case(name, pipeline, build, **given)
        return build

    return add


def made(pipeline: str, build: Callable[[], Any], **others: Any) -> Any:
    """A pipeline of this class, of the parts of another one and of others."""
    kind = getattr(diffusers, pipeline)
    wanted = inspect.signature(kind.__init__).parameters
    return kind(**{k: v for k, v in {**build().components, **others}.items() if k in wanted})


def reuse(name: str, pipeline: str, build: Callable[[], Any], **given: Any) -> None:
    """Registers a pipeline with the parts of another one; see `made`, `Case`."""
    CASES[name] = Case(name, pipeline, partial(made, pipeline, build), **given)


def also(name: str, build: Callable[[], Any], pipeline: str, call: Mapping[str, Any], **given: Any) -> None:
    """Registers another call of a pipeline."""
    CASES[name] = Case(name, pipeline, build, call, **given)
