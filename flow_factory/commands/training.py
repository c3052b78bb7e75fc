"""A run from Python, `flow_factory.train`, and its common parts with `ff-train`."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flow_factory.commands.ending import disk_full
from flow_factory.commands.subcommands import first, set_up_terminal
from flow_factory.config import RunConfig, load_config
from flow_factory.config.loader import Overrides, override_texts
from flow_factory.config.places import require_places
from flow_factory.config.source import assignment
from flow_factory.distributed import liveness
from flow_factory.distributed.environment import set_allocator
from flow_factory.distributed.process_monitor import FAILED
from flow_factory.distributed.threads import set_thread_counts
from flow_factory.distributed.topology import overrides_of, resolve_topology, srun_task
from flow_factory.rewards import GIVEN, REWARDS
from flow_factory.utils.errors import RunError, UserError
from flow_factory.utils.signals import Interrupted
from flow_factory.utils.terminal import hide_bars, note, remembering
from flow_factory.utils.user_code import free_locals

if TYPE_CHECKING:
    from flow_factory.training.run import Run

FRUGAL = (
    "To need less: a smaller train.per_device_batch_size, train.enable_gradient_checkpointing: true, train.offload_samples_to_cpu: true, "
    "or weights sharded by config_file: examples/launch/fsdp2.yaml (fsdp2_offload.yaml keeps them in main memory); --check estimates each"
)


@dataclass(frozen=True)
class TrainResult:
    """The result of a run: the summary of `ff-train` as data."""

    folder: Path
    """Of the run: report.html, metrics.jsonl, curves.png, samples/, before_after.png, config.yaml."""
    checkpoint: Path
    """The last weights, which `load_lora_weights` or `from_pretrained` of diffusers takes."""
    epochs: int
    before: Mapping[str, float]
    """The metrics of the first evaluation, such as `reward_PickScore_mean`; empty with fewer than two evaluations."""
    after: Mapping[str, float]
    """The metrics of the last evaluation. If the two took different rows, rewards are of those that both took, as in the summary."""
    intervals: Mapping[str, tuple[float, float]]
    """Metric -> the 95 % interval of its change, over the pairs of prompt and noise."""
    summary: str
    """The Markdown that `ff-train` prints."""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All logged metrics: a mapping for each line, with `step`, the number of finished epochs."""
        from flow_factory.reporting.metrics import read_metrics

        return read_metrics(self.folder / "metrics.jsonl")


def train(
    config: str | os.PathLike[str] | Mapping[str, Any] | RunConfig,
    overrides: Overrides | None = None,
    *,
    rewards: Any = None,
    eval_rewards: Any = None,
    **keys: Any,
) -> TrainResult:
    """See `flow_factory.train`."""
    set_up_process({})
    set_up_terminal()
    sections, taken = {"rewards": rewards, "eval_rewards": eval_rewards}, dict[str, Any]()
    if isinstance(config, Mapping):
        sections = {name: config.get(name) if value is None else value for name, value in sections.items()}
        config = {key: value for key, value in config.items() if key not in sections}
    texts = [assignment(name, entries_of(name, value, taken)) for name, value in sections.items() if value is not None]
    texts += [*override_texts(_flat(keys)), *override_texts(overrides or ())]
    found = load_config(config, overrides_of({}, os.environ, texts))
    require_places(found, Path("config") if isinstance(config, Mapping | RunConfig) else Path(config))
    placement = resolve_topology(found, {}, os.environ)
    if placement.num_processes > 1 and not placement.inside:
        text = f"num_processes: {placement.num_processes}, and a run from Python is of the process that calls it"
        raise UserError(f"{text}; write num_processes=1, or start the script with accelerate launch")
    os.environ["FF_RENDEZVOUS_TIMEOUT"] = str(placement.rendezvous_timeout)
    note(*(found.notices if first() else ()))
    return _trained(found)


def set_up_process(flags: Mapping[str, Any]) -> None:
    """Sets the environment of a training process, before torch is imported.

    Args:
        flags: the flags of the command line.
    """
    os.environ.update(srun_task(flags, os.environ))
    set_thread_counts(os.environ)
    set_allocator(os.environ)


def _trained(config: RunConfig) -> TrainResult:
    import torch.distributed as dist
    from accelerate.state import AcceleratorState

    from flow_factory.utils.devices import require_defaults

    require_defaults()
    if not dist.is_initialized():  # an earlier run of this process may have used another precision
        AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return _run(config)
    except BaseException as error:
        free_locals(error)
        raise
    finally:
        gc.collect()  # the parts of a run are reference cycles, and have threads; a notebook goes on, and needs their memory


def _run(config: RunConfig) -> TrainResult:
    """Not a part of its caller, since the run lives as long as a local variable for it."""
    from flow_factory.runs.resume import Finished

    try:
        run, _ = run_to_end(config)
        atexit.register(liveness.leave)  # so that no other process waits for one that has ended
        return result_of(run.checkpoint(), run.context.progress.epoch, run.main)
    except Finished as finished:
        note(*([finished] if first() else []))
        return result_of(finished.checkpoint, finished.epoch, first())
    except Interrupted as error:
        raise KeyboardInterrupt(f"{error}: the run's state is saved; resume with model.resume_path") from error
    except BaseException:
        liveness.leave(FAILED)
        raise


def run_to_end(config: RunConfig, check_signals: Callable[[], None] = lambda: None) -> tuple[Run, str]:
    """Builds the run and trains. Returns the run, and on the main process its summary.

    Args:
        check_signals: raises if a signal has arrived while the run was built.

    Raises:
        UserError, RunError: the run cannot start, or failed.
        Finished: the resumed run has nothing left to do.
        Interrupted: SIGTERM or Ctrl-C, after the training state was saved.
    """
    from flow_factory.train import build

    with remembering(), run_errors(config):
        run = build(config)
        check_signals()
        return run, run()


@contextmanager
def run_errors(config: RunConfig) -> Iterator[None]:
    """Turns errors that end a run and are no fault of the program into one line.

    Raises:
        RunError: training does not compute what sampling computed, or memory or the disk is full.
    """
    from safetensors import SafetensorError
    from torch import OutOfMemoryError

    from flow_factory.algorithms.base import OnPolicyError

    hide_bars()
    try:
        yield
    except OnPolicyError as error:
        raise RunError(str(error)) from error
    except OutOfMemoryError as error:
        raise RunError(f"{error} {FRUGAL}") from error
    except (OSError, SafetensorError) as error:
        if not disk_full(error):
            raise
        places = f"{config.log.save_dir} or {config.data.cache_dir}"
        raise RunError(f"{error} (a write to {places}); resume from the last complete checkpoint") from error


def result_of(checkpoint: Path, epochs: int, main: bool) -> TrainResult:
    """The result from the folder of a run. It is empty on other processes than the main one, which may still be writing."""
    from flow_factory.checkpoints.checkpoint import run_of
    from flow_factory.reporting.paired_gains import compare

    checkpoint = checkpoint.absolute()  # the caller may go to another folder
    folder = run_of(checkpoint)
    if not (main and (folder / "metrics.jsonl").is_file()):
        return TrainResult(folder, checkpoint, epochs, {}, {}, {}, "")
    found = compare(folder)
    summary = folder / "summary.md"
    text = summary.read_text("utf-8") if summary.is_file() else ""
    return TrainResult(folder, checkpoint, epochs, found.before, found.after, found.intervals, text)


# -- arguments --------------------------------------------------------------------------------------------------------------------------


def _flat(keys: Mapping[str, Any]) -> dict[str, Any]:
    """`train={"max_epochs": 2}` sets a key of `train:`, and leaves the others."""
    flat: dict[str, Any] = {}
    for key, value in keys.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def entries_of(section: str, given: Any, taken: dict[str, Any]) -> list[Any]:
    """The entries of `rewards:`, of one reward or several, each a name, an entry, or a function or class of Python.

    Args:
        taken: names of functions and classes that are already in the config.

    Raises:
        UserError: an entry is none of these.
    """
    if isinstance(given, Mapping) and "reward_model" not in given:
        return [{"name": name, **_entry(section, reward, taken)} for name, reward in given.items()]
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    return [_entry(section, reward, taken) for reward in several]


def _entry(section: str, given: Any, taken: dict[str, Any]) -> dict[str, Any]:
    entry = dict(given) if isinstance(given, Mapping) else {"reward_model": given}
    reward = entry.get("reward_model")
    if callable(reward):
        entry["reward_model"] = _named(reward, taken)
    elif not isinstance(reward, str):
        raise UserError(f"{section}: {given!r} is not a reward; give a name such as PickScore, an entry with reward_model, or a function")
    return entry


def _named(reward: Any, taken: dict[str, Any]) -> str:
    """The name of a function or class in the config: its dotted path, or a name that is valid in this process only."""
    plain, module = getattr(reward, "__name__", type(reward).__name__), getattr(reward, "__module__", "__main__")
    home = sys.modules.get(module)
    if module != "__main__" and getattr(home, "__spec__", None) is not None and getattr(home, plain, None) is reward:
        return f"{module}:{plain}"
    own = f"{GIVEN}{plain if plain.isidentifier() else 'reward'}"
    names = (own, *(f"{own}_{number}" for number in range(2, len(taken) + 3)))
    name = next(name for name in names if taken.get(name, reward) is reward)
    taken[name] = REWARDS.given[name] = reward
    return name
