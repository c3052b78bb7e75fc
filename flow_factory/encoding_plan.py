"""When a run's rows are encoded and where the encoders wait, where `auto` leaves that to an estimate; and the lines that say it."""

import psutil
import torch

from flow_factory.config import RunConfig
from flow_factory.fit import Model, in_room
from flow_factory.memory import Part, in_main_memory, peak
from flow_factory.windows import evaluated, in_windows, is_short, rows_needed, rows_of_start, window_epochs


def encoding_settled(config: RunConfig, rows: int, model: Model | None, gpu: float | None = None) -> RunConfig:
    """With `data.encode: auto` and `data.idle_encoders: auto` decided.

    Args:
        rows: of the data set.
        model: None, of which nothing can be estimated, is taken to have room for its encoders.
        gpu: GB of the cards that it is for; None asks this machine.
    """
    data, idle, n = config.data, config.data.idle_encoders, config.num_processes
    if idle == "auto":
        waiting = None if model is None else model.parts(with_data(config, "window", "offload"))
        idle = "offload" if waiting is None or can_wait(waiting, gpu, n) else "drop"
    if data.encode != "auto":
        return with_data(config, data.encode, idle)
    window, ahead = (with_data(config, how, idle) for how in ("window", "ahead"))
    if is_short(config, rows):
        return ahead
    if model is None or in_room(model.parts(window), gpu, n):
        return window
    return window if peak(model.parts(window)) <= peak(model.parts(ahead)) else ahead


def with_data(config: RunConfig, encode: str, idle: str) -> RunConfig:
    """With both decided."""
    return config.model_copy(update={"data": config.data.model_copy(update={"encode": encode, "idle_encoders": idle})})


def can_wait(parts: list[Part], gpu: float | None, processes: int) -> bool:
    """Whether this machine's main memory has room for what its processes leave there; another machine's is not known, and taken to have."""
    if gpu is None and torch.cuda.is_available():
        return processes * in_main_memory(parts) < 0.8 * psutil.virtual_memory().total / 1e9
    return gpu is not None or in_room(parts, None, processes)


def encoding_lines(config: RunConfig, rows: int, test: int) -> list[str]:
    """Which rows are encoded, and when; `auto` is to be decided before.

    Args:
        rows, test: how many there are.
    """
    data = config.data
    if not data.enable_preprocess:
        return ["rows are encoded whenever they are drawn, and not cached (data.enable_preprocess: false); the text encoders stay"]
    first, drawn, windows = len(rows_of_start(config, rows, 0)), len(rows_needed(config, rows)), in_windows(config)
    what = f"the {first} training rows that the {'first epochs draw' if windows else 'run draws'}" if first < rows else "all training rows"
    what += " and all test rows" if evaluated(config, test) else ""
    lines = [f"encoded before the first epoch, if {data.cache_dir} lacks them: {what}"]
    if windows and first < drawn:
        epochs = window_epochs(config)
        many = f"{epochs} epochs" if epochs > 1 else "an epoch"
        later = f"encoded when the run comes to them: the rows of {many} at a time, {drawn - first} more"
        lines.append(f"{later}; in between the text encoders wait (data.idle_encoders: {data.idle_encoders})")
    return lines
