"""The decisions of `data.encode: auto` and `data.idle_encoders: auto`, and lines about when rows are encoded."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch

from flow_factory.config import RunConfig
from flow_factory.config.datasets import datasets_of
from flow_factory.data.cache_folder import free_space
from flow_factory.data.encoding_windows import evaluated, in_windows, is_short, rows_needed, rows_of_start, window_epochs
from flow_factory.memory.checkpoint import Model
from flow_factory.memory.estimate import row_bytes
from flow_factory.memory.parts import of_machine, peak
from flow_factory.memory.room import fits_memory


def resolve_encoding(config: RunConfig, sizes: Sequence[int], model: Model | None, gpu: float | None = None) -> RunConfig:
    """Decides `data.encode: auto` and `data.idle_encoders: auto`.

    Args:
        sizes: training rows of each data set.
        model: None if nothing can be estimated: the encoders are then assumed to fit.
        gpu: GB of the GPUs; None for this machine's.
    """
    data, n = config.data, config.num_processes
    how, idle = data.encode, data.idle_encoders
    if how == "auto" and is_short(config, sizes):
        how = "ahead"
    if idle == "auto":
        idle = "offload" if how == "ahead" or model is None or can_wait(config, model, gpu) else "drop"
    if how == "auto":
        how = "window"
        parts = model.parts(with_data(config, how, idle)) if model is not None else []
        if model is not None and not fits_memory(parts, gpu, n) and peak(parts) > peak(model.parts(with_data(config, "ahead", idle))):
            how = "ahead"
    return with_data(config, how, idle)


def with_data(config: RunConfig, encode: str, idle: str) -> RunConfig:
    """A copy of the config with these two keys."""
    return config.model_copy(update={"data": config.data.model_copy(update={"encode": encode, "idle_encoders": idle})})


def can_wait(config: RunConfig, model: Model, gpu: float | None) -> bool:
    """Whether the encoders of all processes fit this machine's main memory. Another machine's is unknown and assumed to suffice."""
    if gpu is not None:
        return True
    parts, n = model.parts(with_data(config, "window", "offload")), config.num_processes
    if torch.cuda.is_available():
        return of_machine(parts, n) < 0.8 * psutil.virtual_memory().total / 1e9
    return fits_memory(parts, None, n)


def row_size(config: RunConfig, model: Model | None) -> float:
    """Bytes of an encoded row without images, at most; 0 if unknown. A negative prompt that rows share is stored once."""
    return 0 if model is None else row_bytes(config, model.family, model.module.config)


def encoding_lines(config: RunConfig, sizes: Sequence[int], tests: Mapping[str, int], size: float = 0) -> list[str]:
    """Lines about which rows are encoded, and when. `auto` must be decided before.

    Args:
        sizes: training rows of each data set.
        tests: test rows of each data set that is evaluated.
        size: see `row_size`.
    """
    data = config.data
    if not data.enable_preprocess:
        return [
            "rows are encoded whenever they are drawn, and not cached (data.enable_preprocess: false); the text encoders stay on the device"
        ]
    first, drawn, windows = len(rows_of_start(config, sizes, 0)), len(rows_needed(config, sizes)), in_windows(config)
    what = (
        f"the {first} training rows that the {'first epochs draw' if windows else 'run draws'}"
        if first < sum(sizes)
        else "all training rows"
    )
    alone, test = {dataset.name: dataset.config for dataset in datasets_of(config)}, sum(tests.values())
    tested = sum(len(evaluated(alone[name], rows)) for name, rows in tests.items())
    what += (
        f" and {'all' if tested == test else f'the {tested}'} test rows{'' if tested == test else ' that are evaluated'}" if tested else ""
    )
    lines = [f"encoded before the first epoch, if {data.cache_dir} lacks them: {what}"]
    if windows and first < drawn:
        epochs = window_epochs(config)
        many = f"{epochs} epochs" if epochs > 1 else "an epoch"
        later = f"encoded when the run reaches them: the rows of {many} at a time, {drawn - first} more"
        lines.append(f"{later}; in between the text encoders are idle (data.idle_encoders: {data.idle_encoders})")
    if size:
        gb, free = (drawn + tested) * size / 1e9, free_space(Path(data.cache_dir)) / 1e9
        much = f"up to {size / 1e6:.3g} MB a row, {gb:.3g} GB for all, condition pictures not counted"
        lines.append(f"{much}; {free:.3g} GB are free there; a start measures the time and the disk space of its first rows")
    return lines
