"""`data:` where rows come from, and how they are encoded and distributed over processes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from flow_factory.config.base import DERIVED, Folder, Name, Section, Shown, derived, show
from flow_factory.utils.registry import nearest

HUB = "hf://datasets/"
PAIR = ("chosen", "rejected")
OURS = ("prompt", "negative_prompt", "image", "images", "video", "videos", *PAIR)
"""What has a meaning here; every other column is for rewards, by its own name."""
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
        if ours not in OURS:
            said = f"no column of ours is called {show(ours)}.{nearest(ours, list(OURS))} Known: {', '.join(OURS)}"
            raise ValueError(f"{said}; every other column reaches the rewards by its own name")
        if not theirs.strip():
            raise ValueError(f"{ours}: wants the data set's name of the column, got {show(theirs)}")
    return named


def _split(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*(\[(-?\d+%?)?:(-?\d+%?)?\])?", name):
        raise ValueError(f"wants a split's name, such as train, or a part of one, such as train[:500] or train[90%:], got {show(name)}")
    return name


Place = Annotated[Folder, AfterValidator(_place), Shown("path or hf://datasets/owner/name[@revision]")]
Split = Annotated[Name, AfterValidator(_split), Shown("text")]
Renamed = Annotated[dict[str, str], AfterValidator(_columns), Shown("mapping, ours: the data set's", "{}")]
Images = Annotated[Folder, _beside("images"), Shown("path", "{dataset_dir}/images")]
Videos = Annotated[Folder, _beside("videos"), Shown("path", "{dataset_dir}/videos")]
Audios = Annotated[Folder, _beside("audios"), Shown("path", "{dataset_dir}/audios")]


class DataConfig(Section):
    """Where rows come from, and how they are encoded and distributed over processes."""

    dataset_dir: Place = Field(
        "data",
        description="folder with train.txt or train.jsonl, and test.* for evaluation; or a folder or file of parquet, arrow, csv, "
        "json or webdataset; or hf://datasets/owner/name (needs the extra `data`); see guidance/data.md",
    )
    columns: Renamed = Field(
        {},
        description=f"the data set's names of {', '.join(OURS)}: {{prompt: caption}}; a dot selects a key of an object: json.caption",
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
        "nowhere (they are loaded again); auto = offload if main memory has room",
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
