"""What a run shows while it runs: bars on a terminal, plain lines where there is none; and the libraries' remarks kept away."""

import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
EVERY = 60.0
"""Seconds between two lines about the same work, where there is no terminal."""
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
"""Of an epoch's metrics, what stands in its line."""


def say(line: str) -> None:
    """A line on stderr, above a bar that is being drawn."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def tell(text: str) -> None:
    """What was asked for, on stdout. A reader that has left, such as `| head`, has seen enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        let_reader_go()


def let_reader_go() -> None:
    """Keeps Python from complaining of a reader that has left once more, at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(*lines: object) -> None:
    """What a user may want to know, a line each."""
    for line in lines:
        say(f"note: {line}")


class Voice(logging.Handler):
    """Log records as lines above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def log_to_terminal(level: int) -> None:
    """Makes the `Voice` what log records go to."""
    voice = Voice()
    voice.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(handlers=[voice], level=level)
    os.environ.setdefault("TQDM_DYNAMIC_NCOLS", "1")  # the libraries' bars follow the terminal's size too


def quiet_libraries() -> None:
    """Keeps the libraries' remarks on optional packages and renamed arguments from the terminal; before they are imported."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings of a lost connection are traces of addresses
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module=rf"({'|'.join(LIBRARIES)})(\.|$)")
    logging.raiseExceptions = False  # of libraries' own log files on a disk that is full
    for handler in logging.getLogger().handlers:
        handler.addFilter(_matters)
    logging.getLogger("torch.utils._pytree").addFilter(_matters)  # torch shows its records itself


def _matters(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or record.name.partition(".")[0] not in LIBRARIES


def hide_bars() -> None:
    """No bars of loading where there is no terminal; once the libraries are imported."""
    if not sys.stderr.isatty():
        from diffusers.utils import logging as of_diffusers
        from transformers.utils import logging as of_transformers

        of_diffusers.disable_progress_bar()
        of_transformers.disable_progress_bar()


def bar(items: Collection[Item], doing: str, unit: str = "it", shown: bool = True, delay: float = 1.0, times: int = 1) -> Iterator[Item]:
    """The items one by one, with a bar that leaves nothing behind, or a line a minute where there is no terminal.

    Args:
        times: processes that do as much each, and are counted in.
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
                say(f"{doing}: {done * times} of {len(items) * times}, {speed(rate * times)}, {left} left")
            yield item


def speed(rate: float) -> str:
    """Of so many a second: `12 a second`, `40 s each`."""
    return f"{rate:.3g} a second" if rate > 1 else f"{1 / rate:.3g} s each"


def format_duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Epochs:
    """How far the training is: a bar on a terminal, else a line an epoch."""

    def __init__(self, last: int | None, done: int, shown: bool = True):
        self.last, self.done, self.shown = last, done, shown
        self.first, self.since = done, time.monotonic()
        live = shown and sys.stderr.isatty()
        self.bar = tqdm(total=last, initial=done, desc="training", unit="epoch", disable=not live, smoothing=0.1, dynamic_ncols=True)

    def __enter__(self) -> "Epochs":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def tell(self, metrics: Mapping[str, float]) -> None:
        """One epoch more is done, and these are its metrics."""
        self.done += 1
        told = {name: f"{metrics[key]:.3g}" for name, key in SHOWN.items() if key in metrics}
        several = {key.split("/")[1]: value for key, value in metrics.items() if re.fullmatch("train/[^/]+/reward_mean", key)}
        if several:  # data sets, whose rewards have scales of their own
            told["reward"] = " and ".join(f"{value:.3g} ({name})" for name, value in several.items())
        self.bar.set_postfix(told, refresh=False)
        self.bar.update()
        if self.shown and self.bar.disable:
            words = ", ".join(f"{name} {value}" for name, value in told.items())
            say(f"epoch {self.done}{f' of {self.last}' if self.last else ''}: {words}{self.left()}")

    def left(self) -> str:
        """The time that the rest takes at the rate so far, evaluations included."""
        if self.last is None or self.done >= self.last:
            return ""
        return f"; {format_duration((time.monotonic() - self.since) / (self.done - self.first) * (self.last - self.done))} left"
