"""The output of a run: progress bars on a terminal, plain lines elsewhere, without the messages of libraries."""

import logging
import os
import re
import sys
import time
import warnings
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
EVERY = 60.0
"""Seconds between two progress lines without a terminal."""
LIBRARIES = (
    "torch",
    "torchao",
    "transformers",
    "diffusers",
    "accelerate",
    "peft",
    "huggingface_hub",
    "datasets",
    "deepspeed",
    "bitsandbytes",
    "matplotlib",
)
SHOWN = {"reward": "train/reward_mean", "clip": "train/clip_frac", "s/epoch": "time/epoch_s"}
"""Label in an epoch's line -> metric."""


class Remark(NamedTuple):
    """A line that was shown."""

    time: float
    """Seconds since 1970."""
    kind: str
    """`note`, or the level of a log record: `warning`, `error`."""
    text: str


REMARKS: deque[Remark] = deque(maxlen=500)
"""What this process has noted, and inside `remembering` warned of, that the page of its run does not have yet."""


def print_line(line: str) -> None:
    """Prints a line on stderr, above the progress bar."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def print_output(text: str) -> None:
    """Prints the requested output on stdout. A closed pipe, as with `| head`, is not an error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        ignore_closed_pipe()


def ignore_closed_pipe() -> None:
    """Prevents Python's error message about a closed pipe at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(*lines: object) -> None:
    """Prints notes for the user, a line each."""
    for line in lines:
        REMARKS.append(Remark(time.time(), "note", str(line)))
        print_line(f"note: {line}")


class TerminalHandler(logging.Handler):
    """Prints log records as lines above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        print_line(self.format(record))


class _Remembering(logging.Handler):
    """Log records as remarks."""

    def emit(self, record: logging.LogRecord) -> None:
        REMARKS.append(Remark(record.created, record.levelname.lower(), record.getMessage()))


@contextmanager
def remembering() -> Iterator[None]:
    """Warnings are kept in `REMARKS` too, which is empty for the next run at the end. Where others handle them: Python shows them else."""
    keeper = _Remembering(logging.WARNING)
    keeper.addFilter(_matters)
    logging.getLogger().addHandler(keeper)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(keeper)
        REMARKS.clear()


def log_to_terminal(level: int) -> None:
    """Sends log records to `TerminalHandler`."""
    voice = TerminalHandler()
    voice.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(handlers=[voice], level=level)
    os.environ.setdefault("TQDM_DYNAMIC_NCOLS", "1")  # for the libraries' bars


def quiet_libraries() -> None:
    """Hides the libraries' messages about optional packages and renamed arguments. To be called before they are imported."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings of a lost connection are stack traces
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module=rf"({'|'.join(LIBRARIES)})(\.|$)")
    logging.raiseExceptions = False  # libraries' own log files may be on a full disk
    for handler in logging.getLogger().handlers:
        handler.addFilter(_matters)
    logging.getLogger("torch.utils._pytree").addFilter(_matters)  # torch prints its records itself


def _matters(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or record.name.partition(".")[0] not in LIBRARIES


def hide_bars() -> None:
    """Hides the libraries' loading bars without a terminal. To be called after the libraries are imported."""
    if not sys.stderr.isatty():
        from diffusers.utils import logging as of_diffusers
        from transformers.utils import logging as of_transformers

        of_diffusers.disable_progress_bar()
        of_transformers.disable_progress_bar()


def bar(items: Collection[Item], doing: str, unit: str = "it", shown: bool = True, delay: float = 1.0, times: int = 1) -> Iterator[Item]:
    """The items one by one, with a progress bar that disappears at the end, or a line each minute without a terminal.

    Args:
        times: the number of processes that do the same number of items. The bar shows their sum.
    """
    if not shown:
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, doing, unit=unit, leave=False, delay=delay, dynamic_ncols=True, unit_scale=times if times > 1 else False)
    else:
        since = last = time.monotonic()
        for done, item in enumerate(items):
            if time.monotonic() - last > EVERY:
                last = time.monotonic()
                rate = done / (last - since)
                left = format_duration((len(items) - done) / rate)
                print_line(f"{doing}: {done * times} of {len(items) * times}, {speed(rate * times)}, {left} left")
            yield item


def speed(rate: float) -> str:
    """A rate in items for each second as text: `12 a second`, `40 s each`."""
    return f"{rate:.3g} a second" if rate > 1 else f"{1 / rate:.3g} s each"


def format_duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Epochs:
    """The progress of the training: a bar on a terminal, else a line for each epoch."""

    def __init__(self, last: int | None, done: int, shown: bool = True):
        self.last, self.done, self.shown = last, done, shown
        self.first, self.since = done, time.monotonic()
        live = shown and sys.stderr.isatty()
        self.bar = tqdm(total=last, initial=done, desc="training", unit="epoch", disable=not live, smoothing=0.1, dynamic_ncols=True)

    def __enter__(self) -> "Epochs":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show_epoch(self, metrics: Mapping[str, float]) -> None:
        """Reports the end of an epoch and its metrics."""
        self.done += 1
        shown = {name: f"{metrics[key]:.3g}" for name, key in SHOWN.items() if key in metrics}
        several = {key.split("/")[1]: value for key, value in metrics.items() if re.fullmatch("train/[^/]+/reward_mean", key)}
        if several:  # several data sets, whose rewards have different scales
            shown["reward"] = " and ".join(f"{value:.3g} ({name})" for name, value in several.items())
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        if self.shown and self.bar.disable:
            words = ", ".join(f"{name} {value}" for name, value in shown.items())
            print_line(f"epoch {self.done}{f' of {self.last}' if self.last else ''}: {words}{self.left()}")

    def left(self) -> str:
        """The remaining time at the rate so far, with evaluations."""
        if self.last is None or self.done >= self.last:
            return ""
        return f"; {format_duration((time.monotonic() - self.since) / (self.done - self.first) * (self.last - self.done))} left"
