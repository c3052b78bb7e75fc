"""The data of a run's page, in the run's folder `report/`: JSON with the pictures as small JPEGs."""

import json
import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from flow_factory.reporting.metrics import whole_lines
from flow_factory.reporting.pictures import reduced, still
from flow_factory.types import Clip, Sample
from flow_factory.utils.files import replace_text
from flow_factory.utils.terminal import Remark

FOLDER, ABOUT, REMARKS = "report", "about.json", "remarks.jsonl"
LONGEST = 256
"""Pixels of a picture's longer side; a clip's row of frames is as high as half of it and as wide as it needs."""
QUALITY = 85
EPOCHS = 3
"""The number of last epochs whose groups are kept."""


class ReportError(ValueError):
    """A file of `report/` does not have the format that `store` writes."""


class Picture(BaseModel):
    """A sample's still as a data URI, with its size in pixels."""

    src: Annotated[str, Field(pattern=r"^data:image/jpeg;base64,[A-Za-z0-9+/=]*$")]
    width: int
    height: int


class KeptSample(Picture):
    """A sample with its scores and its advantage."""

    prompt: str
    rewards: dict[str, float | None]
    advantage: float | None


class Group(BaseModel):
    """Samples of one row, best advantage first."""

    prompt: str
    samples: list[KeptSample]


class Evaluation(BaseModel):
    """After `step` epochs."""

    step: int
    samples: list[KeptSample]


class Epoch(BaseModel):
    """Epoch `step`, from 1."""

    step: int
    groups: list[Group]


class KeptSetting(BaseModel):
    """See `config.changed.Setting`."""

    key: str
    value: str
    default: str | None
    changed: bool


class About(BaseModel):
    """The facts that do not change in a run."""

    epochs: int | None = None
    facts: dict[str, str] = {}
    settings: list[KeptSetting] = []
    environment: dict[str, str] = {}


Kept = TypeVar("Kept", bound=BaseModel)


def begin(folder: Path, about: About, step: int) -> None:
    """Writes what does not change in a run, and drops what an earlier run in this folder had of later epochs than `step`."""
    _keep(folder, ABOUT, about)
    for path, number in (*evaluations(folder), *epochs(folder)):
        if number > step:
            path.unlink()


def keep_evaluation(folder: Path, samples: Sequence[Sample], step: int) -> None:
    """The samples of an evaluation after `step` epochs."""
    _keep(folder, f"eval_{step:05d}.json", Evaluation(step=step, samples=list(map(_kept, samples))))


def keep_groups(folder: Path, samples: Sequence[Sample], step: int) -> None:
    """The samples of epoch `step` (from 1) by group, best advantage first, in place of those of older epochs than the last `EPOCHS`."""
    groups = [sorted(group, key=_rank) for _, group in groupby(samples, key=lambda s: (s.group, s.prompt))]
    kept = [Group(prompt=group[0].prompt, samples=list(map(_kept, group))) for group in groups]
    _keep(folder, f"epoch_{step:05d}.json", Epoch(step=step, groups=kept))
    for path, _ in epochs(folder)[:-EPOCHS]:
        path.unlink()


def keep_remarks(folder: Path, remarks: Iterable[Remark]) -> None:
    """Appends notes and warnings."""
    if lines := [json.dumps(remark._asdict()) + "\n" for remark in remarks]:
        with (folder / FOLDER / REMARKS).open("a", encoding="utf-8") as file:
            file.writelines(lines)


def evaluations(folder: Path) -> list[tuple[Path, int]]:
    """(file, epochs done) of each evaluation, in order."""
    return _numbered(folder, "eval")


def epochs(folder: Path) -> list[tuple[Path, int]]:
    """(file, epoch) of each epoch whose groups are kept, in order."""
    return _numbered(folder, "epoch")


def remarks(folder: Path) -> list[Remark]:
    """The stored notes and warnings.

    Raises:
        ReportError: a line is not a remark.
    """
    file = folder / FOLDER / REMARKS
    lines = list(whole_lines(file)) if file.is_file() else []
    try:
        return [Remark(float(line["time"]), str(line["kind"]), str(line["text"])) for _, line in lines]
    except (KeyError, TypeError, ValueError) as error:
        raise ReportError(f"{file}: a line is not a remark") from error


def about(folder: Path) -> About:
    """The arguments of `begin`; empty if it was not called."""
    file = folder / FOLDER / ABOUT
    return read(file, About) if file.is_file() else About()


def read(path: Path, kind: type[Kept]) -> Kept:
    """Raises:
    ReportError: the file holds nothing of the kind.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ReportError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def picture(media: Any) -> Picture:
    """A picture, or the still of a clip, as the page stores it."""
    image = still(media) if isinstance(media, Clip) else reduced(media.convert("RGB"), LONGEST)
    file = BytesIO()
    image.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return Picture(src=f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}", width=image.width, height=image.height)


def _keep(folder: Path, name: str, what: BaseModel) -> None:
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)  # a test run does not call `begin`
    replace_text(folder / FOLDER / name, what.model_dump_json())


def _kept(sample: Sample) -> KeptSample:
    rewards = {name: _finite(value) for name, value in sample.rewards.items()}
    return KeptSample(prompt=sample.prompt, rewards=rewards, advantage=_finite(sample.advantage), **dict(picture(sample.media)))


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _rank(sample: Sample) -> float:
    """Sort key of a sample: best advantage first, a missing one last."""
    advantage = _finite(sample.advantage)
    return math.inf if advantage is None else -advantage


def _numbered(folder: Path, kind: str) -> list[tuple[Path, int]]:
    """The numbered files of a kind, by number."""
    found = ((path, path.stem.removeprefix(f"{kind}_")) for path in (folder / FOLDER).glob(f"{kind}_*.json"))
    return sorted(((path, int(number)) for path, number in found if number.isdecimal()), key=lambda entry: entry[1])
