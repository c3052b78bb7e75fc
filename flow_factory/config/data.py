"""`data:` where rows come from and how they are encoded and handed out."""

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
    """Where rows come from and how they are encoded and handed out."""

    dataset_dir: Place = Field(
        "data",
        description="folder with train.txt or train.jsonl, and test.* for evaluation; or a folder or file of parquet, arrow, csv, json or "
        "webdataset, or a data set of the hub (extra `data`): guidance/data.md",
    )
    columns: Renamed = Field(
        {}, description=f"what the data set calls {', '.join(OURS)}, as in {{prompt: caption}}; a dot leads into an object: json.caption"
    )
    train_split: Split = Field("train", description="the split that is trained on, or a part of it, as in train[200:]")
    test_split: Split = Field("test", description="the split that is evaluated on, where there is one")
    subset: Name | None = Field(None, description="of a data set of the hub that has several: which (`name` of load_dataset)")
    cache_dir: Folder = Field("~/.cache/flow_factory/datasets", description="where encoded rows are kept, keyed by content")
    image_dir: Images = Field(DERIVED, description="where relative paths of condition images start")
    video_dir: Videos = Field(DERIVED, description="where relative paths of condition videos start")
    audio_dir: Audios = Field(DERIVED, description="where relative paths of audio files start")
    preprocessing_batch_size: int = Field(8, ge=1, description="accepted, without effect here")
    dataloader_num_workers: int = Field(16, ge=0, description="accepted, without effect here")
    enable_preprocess: bool = Field(
        True, description="false: a row is encoded whenever it is drawn; nothing is cached, and the text encoders stay on the device"
    )
    encode: Literal["auto", "ahead", "window"] = Field(
        "auto",
        description="when rows are encoded: all that the run draws before it begins, or those of some epochs when it comes to them; "
        "auto: ahead where they are few, or where the text encoders do not fit beside the training",
    )
    encode_epochs: int | None = Field(None, ge=1, description="epochs of a window; null: as many as draw 256 rows")
    idle_encoders: Literal["auto", "keep", "offload", "drop"] = Field(
        "auto",
        description="where the text encoders are between windows: on the device, in main memory, or nowhere, and they are loaded again; "
        "auto: in main memory where that has room",
    )
    force_reprocess: bool = Field(False, description="accepted and not needed: a changed row, encoder or argument is encoded anew")
    max_dataset_size: int | None = Field(None, ge=1, description="use only the first so many training rows")
    preprocess_parallelism: Literal["local", "global"] = Field(
        "local", description="who shares out the encoding of rows: the processes of a machine, or of all, which then must share cache_dir"
    )
    sampler_type: Literal["auto", "distributed_k_repeat", "group_contiguous", "group_distributed"] | None = Field(
        None, description="auto rounds batch sizes up until they divide, and says so; otherwise sizes that do not divide are an error"
    )
