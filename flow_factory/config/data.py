"""`data:` where rows come from, and how they are encoded and distributed over processes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from flow_factory.config.base import DERIVED, Folder, Name, Section, Shown, derived, show

HUB = "hf://datasets/"
PAIR, TARGET = ("chosen", "rejected"), ("target",)
OURS = ("prompt", "negative_prompt", "image", "images", "video", "videos", *PAIR, *TARGET)
"""What has a meaning with every model; `data.columns` may name arguments of the pipeline too, and every other column is for rewards."""
LINES = (".jsonl", ".txt")
"""Endings of files whose lines are rows."""
FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".tar": "webdataset"}
"""Endings of files, and what `datasets` reads them with."""


def _beside(kind: str) -> Any:
    """A folder of the data set's, or beside its file."""

    def folder(above: Mapping[str, Any]) -> str:
        name = str(above.get("dataset_dir"))
        return f"{Path(name).parent if name.endswith((*LINES, *FORMATS)) else name}/{kind}"

    return derived(folder)


def _place(name: str) -> str:
    scheme, colon, _ = name.partition("://")
    if colon and not re.fullmatch(rf"{HUB}[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", name):
        raise ValueError(f"wants a path, or {HUB}owner/name, maybe with @revision behind it, got {show(name)}")
    return name


def _columns(named: dict[str, str]) -> dict[str, str]:
    for ours, theirs in named.items():
        if not theirs.strip():
            raise ValueError(f"{ours}: wants the data set's name of the column, got {show(theirs)}")
    return named


def _split(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*(\[(-?\d+%?)?:(-?\d+%?)?\])?", name):
        raise ValueError(f"wants a split's name, such as train, or a part of one, such as train[:500] or train[90%:], got {show(name)}")
    return name


def _named(name: str) -> str:
    if "/" in name:
        raise ValueError(f"{show(name)} would cut the names of metrics in two; write it without /")
    return name


def _weight(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0:
        raise ValueError("0 trains on none of its rows; leave its train: out, or write 1 or more")
    if isinstance(value, float):
        raise ValueError(f"wants a whole number, such as 7 and 3 for 0.7 and 0.3, got {show(value)}")
    return value


def _several(value: Any) -> Any:
    if value is not None and (not isinstance(value, (list, tuple)) or not value):
        raise ValueError(f"wants a list of data sets, each with name: and dataset_dir:, got {show(value)}")
    return tuple(value) if isinstance(value, list) else value


Place = Annotated[Folder, AfterValidator(_place), Shown("path or hf://datasets/owner/name[@revision]")]
Split = Annotated[Name, AfterValidator(_split), Shown("text")]
Renamed = Annotated[dict[str, str], AfterValidator(_columns), Shown("mapping, ours: the data set's", "{}")]
Images = Annotated[Folder, _beside("images"), Shown("path", "{dataset_dir}/images")]
Videos = Annotated[Folder, _beside("videos"), Shown("path", "{dataset_dir}/videos")]
Audios = Annotated[Folder, _beside("audios"), Shown("path", "{dataset_dir}/audios")]


class DatasetTrainConfig(Section):
    """How a data set of several is trained on."""

    weight: Annotated[int, BeforeValidator(_weight), Field(ge=1, le=1000)] = Field(
        1, description="its share of the groups, beside the weights of the others"
    )
    max_dataset_size: int | None = Field(None, ge=1, description="use only the first so many training rows")
    split: Split = Field("train", description="the split that is trained on, or a part of it")


class DatasetEvalConfig(Section):
    """How a data set of several is evaluated. Any key of `eval:` but eval_freq may stand here too, and has another value there."""

    rest: ClassVar[str | None] = "overrides"

    split: Split = Field("test", description="the split that is evaluated on, or a part of it")
    max_dataset_size: int | None = Field(None, ge=1, description="use only the first so many test rows")
    overrides: dict[str, Any] = Field(default_factory=dict, description="keys of eval:")


class DatasetConfig(Section):
    """One of several data sets."""

    name: Annotated[Name, AfterValidator(_named)] = Field(description="name in metrics, and in applicable_datasets and weight of a reward")
    dataset_dir: Place = Field(description="as data.dataset_dir")
    columns: Renamed = Field({}, description="as data.columns")
    subset: Name | None = Field(None, description="as data.subset")
    image_dir: Images = Field(DERIVED, description="where relative paths of condition images start")
    video_dir: Videos = Field(DERIVED, description="where relative paths of condition videos start")
    audio_dir: Audios = Field(DERIVED, description="where relative paths of audio files start")
    train: DatasetTrainConfig | None = Field(None, description="how it is trained on: {weight, max_dataset_size, split}; null = not")
    eval: DatasetEvalConfig | None = Field(
        None, description="how it is evaluated: {split, max_dataset_size} and keys of eval: as overrides; null = not"
    )


Datasets = Annotated[tuple[DatasetConfig, ...] | None, BeforeValidator(_several), Shown("list, or null", "null")]
ALONE = ("dataset_dir", "columns", "train_split", "test_split", "subset", "image_dir", "video_dir", "audio_dir", "max_dataset_size")
"""Keys of `data:` that each of `data.datasets` has for itself."""
PARTS: dict[str, type[Section]] = {"train": DatasetTrainConfig, "eval": DatasetEvalConfig}
"""The sections in an entry, by their key."""


class DataConfig(Section):
    """Where rows come from, and how they are encoded and distributed over processes."""

    dataset_dir: Place = Field(
        "data",
        description="folder with train.txt or train.jsonl, and test.* for evaluation; or a folder or file of parquet, arrow, csv, "
        "json or webdataset; or hf://datasets/owner/name (needs the extra `data`); see guidance/data.md",
    )
    datasets: Datasets = Field(
        None, description="several data sets in one run, instead of dataset_dir: [{name, dataset_dir, train: {weight}, eval: {...}}, ...]"
    )
    columns: Renamed = Field(
        {},
        description=f"the data set's names of {', '.join(OURS)}, and of the pipeline's arguments for pictures, masks, videos and sounds: "
        "{prompt: caption, mask_image: mask}; a dot selects a key of an object: json.caption",
    )
    train_split: Split = Field("train", description="split to train on, or a part of it: train[200:]")
    test_split: Split = Field("test", description="split to evaluate on, if it exists")
    subset: Name | None = Field(None, description="configuration of a hub data set that has several (`name` of load_dataset)")
    cache_dir: Folder = Field("~/.cache/flow_factory/datasets", description="folder of the cache of encoded rows, keyed by content")
    image_dir: Images = Field(DERIVED, description="base folder of relative image paths")
    video_dir: Videos = Field(DERIVED, description="base folder of relative video paths")
    audio_dir: Audios = Field(DERIVED, description="base folder of relative audio paths")
    preprocessing_batch_size: int = Field(8, ge=1, description="accepted, no effect here: rows are encoded one by one")
    dataloader_num_workers: int = Field(16, ge=0, description="accepted, no effect here: encoded rows are read from the cache")
    enable_preprocess: bool = Field(
        True, description="false: each row is encoded whenever it is drawn, nothing is cached, and the text encoders stay on the device"
    )
    encode: Literal["auto", "ahead", "window"] = Field(
        "auto",
        description="when rows are encoded: ahead = all rows of the run before the first epoch; window = the rows of the next "
        "encode_epochs epochs; auto = ahead if they are few, or if the text encoders do not fit beside the training",
    )
    encode_epochs: int | None = Field(None, ge=1, description="epochs of a window; null = as many as draw 256 rows")
    idle_encoders: Literal["auto", "keep", "offload", "drop"] = Field(
        "auto",
        description="where the text encoders are between two windows: keep = on the device, offload = in main memory, drop = "
        "nowhere (they are loaded again); auto = offload if they fit into main memory",
    )
    force_reprocess: bool = Field(False, description="accepted, not needed: a changed row, encoder or argument is always encoded again")
    max_dataset_size: int | None = Field(None, ge=1, description="use only the first rows of the training split")
    preprocess_parallelism: Literal["local", "global"] = Field(
        "local",
        description="which processes divide the encoding of rows: local = those of one machine, global = all, which must then "
        "share cache_dir",
    )
    sampler_type: Literal["auto", "distributed_k_repeat", "group_contiguous", "group_distributed"] | None = Field(
        None, description="auto rounds batch sizes up until they divide, and reports it; otherwise sizes that do not divide are an error"
    )
