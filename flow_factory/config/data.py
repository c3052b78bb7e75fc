"""`data:` where rows come from and how they are encoded and handed out."""

from typing import Annotated, Literal

from pydantic import Field

from flow_factory.config.base import DERIVED, Folder, Section, Shown, derived

Images = Annotated[Folder, derived(lambda above: f"{above.get('dataset_dir')}/images"), Shown("path", "{dataset_dir}/images")]
Videos = Annotated[Folder, derived(lambda above: f"{above.get('dataset_dir')}/videos"), Shown("path", "{dataset_dir}/videos")]
Audios = Annotated[Folder, derived(lambda above: f"{above.get('dataset_dir')}/audios"), Shown("path", "{dataset_dir}/audios")]


class DataConfig(Section):
    """Where rows come from and how they are encoded and handed out."""

    dataset_dir: Folder = Field("data", description="folder with train.txt or train.jsonl, and test.* for evaluation")
    cache_dir: Folder = Field("~/.cache/flow_factory/datasets", description="where encoded rows are kept, keyed by content")
    image_dir: Images = Field(DERIVED, description="where relative paths of condition images start")
    video_dir: Videos = Field(DERIVED, description="where relative paths of condition videos start")
    audio_dir: Audios = Field(DERIVED, description="where relative paths of audio files start")
    preprocessing_batch_size: int = Field(8, ge=1, description="accepted, without effect here")
    dataloader_num_workers: int = Field(16, ge=0, description="accepted, without effect here")
    enable_preprocess: bool = Field(True, description="accepted, without effect here")
    force_reprocess: bool = Field(False, description="accepted and not needed: a changed row, encoder or argument is encoded anew")
    max_dataset_size: int | None = Field(None, ge=1, description="use only the first so many training rows")
    preprocess_parallelism: Literal["local", "global"] = Field(
        "local", description="who shares out the encoding of rows: the processes of a machine, or of all, which then must share cache_dir"
    )
    sampler_type: Literal["auto", "distributed_k_repeat", "group_contiguous", "group_distributed"] | None = Field(
        None, description="auto rounds batch sizes up until they divide, and says so; otherwise sizes that do not divide are an error"
    )
