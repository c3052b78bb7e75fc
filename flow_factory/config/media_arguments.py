"""Which arguments of a pipeline's `__call__` take a picture, a mask, a video or a sound: columns of the data set may be named for them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from flow_factory.config.base import show
from flow_factory.config.data import OURS
from flow_factory.config.datasets import datasets_of
from flow_factory.config.modules import SignatureError
from flow_factory.config.nodes import Problem
from flow_factory.config.pipelines import pipeline_name, pipeline_path
from flow_factory.config.run import RunConfig
from flow_factory.config.signature import MEDIA, class_attribute, parameters
from flow_factory.models import MODELS
from flow_factory.utils.registry import nearest

InputKind = Literal["image", "mask", "video", "audio"]
VIDEO_ENDING = re.compile(r"\.(mp4|mov|m4v|webm|mkv|avi|gif)", re.IGNORECASE)


def media_kind(argument: str) -> InputKind | None:
    """What an argument of this name takes; None: neither a picture nor a mask, a video or a sound."""
    kinds: Mapping[InputKind, str] = MEDIA  # type: ignore[assignment]
    return next((kind for kind, pattern in kinds.items() if re.fullmatch(pattern, argument)), None)


def file_kind(argument: str, name: str) -> InputKind:
    """What a file of this name is for an argument: a mask may be a video too."""
    kind = media_kind(argument) or "image"
    return "video" if kind == "mask" and re.search(rf"{VIDEO_ENDING.pattern}$", name, re.IGNORECASE) else kind


def media_arguments(pipeline: str) -> dict[str, InputKind]:
    """Argument -> what it takes, of the `__call__` of a pipeline, in its order.

    Args:
        pipeline: `module:Class`.

    Raises:
        SignatureError: its source cannot be read.
    """
    named = ((p.name, media_kind(p.name)) for p in parameters(pipeline, "__call__") if p.kinds is None)
    return {name: kind for name, kind in named if kind is not None}


def columns_problem(ours: str, pipeline: str | None, takes: Mapping[str, Any]) -> str:
    """What to say of a key of `data.columns` that nothing takes.

    Args:
        pipeline: the name of the run's pipeline; None where no run is known.
        takes: the media arguments of that pipeline.
    """
    known, near = [*OURS, *takes], nearest(ours, [*OURS, *takes])
    others = "; a pipeline's arguments for pictures, videos and sounds, such as mask_image, may be named too"
    if pipeline is not None:
        others = f"; arguments of {pipeline} for pictures, videos and sounds: {', '.join(takes) or 'none'}"
    message = f"no known column is called {show(ours)}.{near} Known: {', '.join(known[: len(OURS)])}{others}"
    return f"{message}; every other column reaches the rewards by its own name"


def columns_fit(config: RunConfig) -> Iterator[Problem]:
    """The rule: a key of `data.columns` is a column of ours, or an argument of the pipeline that takes media."""
    for dataset in datasets_of(config):
        for ours in (name for name in dataset.config.data.columns if name not in OURS):
            try:
                pipeline = pipeline_of(config)
            except SignatureError as error:
                yield Problem((*dataset.keys, "columns"), f"{ours} cannot be looked for among the pipeline's arguments: {error}")
                return
            takes = media_arguments(pipeline)
            if not class_attribute(MODELS.path(config.model.model_type), "further_inputs"):
                text = f"{ours} is not a known column, and {config.model.model_type} takes no others; write model_type: diffusers"
                yield Problem((*dataset.keys, "columns"), text)
            elif ours not in takes:
                yield Problem((*dataset.keys, "columns"), columns_problem(ours, pipeline.rpartition(":")[2], takes))


def pipeline_of(config: RunConfig) -> str:
    """`module:Class` of a run's pipeline.

    Raises:
        SignatureError: it is not known without the checkpoint.
    """
    path = MODELS.path(config.model.model_type)
    if MODELS.canonical(config.model.model_type) == "diffusers":
        name = config.model.pipeline_class or pipeline_name(config.model.model_name_or_path)
        if name is None:
            raise SignatureError("the checkpoint is not on disk, so its pipeline must be named: model.pipeline_class")
        return pipeline_path(name)
    pipeline = class_attribute(path, "pipeline")
    if not isinstance(pipeline, str):
        raise SignatureError(f'{path} does not say `pipeline = "module:Class"`')
    return pipeline
