"""The checks before weights are loaded or anything is written, cheapest first. `--check` runs the same list."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flow_factory.algorithms import ALGORITHMS
from flow_factory.config import OPDConfig, RunConfig
from flow_factory.config.datasets import Dataset, trained_on
from flow_factory.config.translate import whole_pass
from flow_factory.core.advantage import aggregation
from flow_factory.data.media_checks import Extent
from flow_factory.data.reader import RowCheck
from flow_factory.data.several import sizes_of
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.models.loading import sketch_adapter
from flow_factory.models.quantized import check_quantization
from flow_factory.policy.gradient_checkpointing import blocks_of, require_blocks
from flow_factory.reporting.trackers import require_trackers
from flow_factory.rewards.loading import arguments, require_devices, require_files, require_gradients, require_rewards, try_constructors
from flow_factory.runs.fitting import checkpoint_of, fitted
from flow_factory.runs.given_files import require_given_files
from flow_factory.runs.given_form import with_form
from flow_factory.runs.identity import DataFingerprint, identity_of
from flow_factory.runs.resume import Choice, Finished, Start, choose, find_start
from flow_factory.runs.rows import check_files, check_limits, read_tests, read_training, repeats, row_checks
from flow_factory.runs.run_folder import require_free
from flow_factory.runs.save_formats import require_formats
from flow_factory.types import Row
from flow_factory.utils.devices import require_device
from flow_factory.utils.files import require_writable
from flow_factory.utils.hub import require_push, require_source
from flow_factory.utils.model_index import KEY, LoadError
from flow_factory.utils.pretrained import check_folder, on_disk
from flow_factory.utils.terminal import note

logger = logging.getLogger(__name__)


@dataclass
class Preflight:
    """The results of the checks so far."""

    requested: RunConfig
    """The given config."""
    share: tuple[int, int] = (0, 1)
    """(k, n): this process is the k-th of n that share the decoding of files."""
    remote: bool = True
    """Whether configs may be fetched from the hub, as at a start. `--check` constructs the rewards instead."""
    here: bool = True
    """Whether the run would be on this machine."""
    choice: Choice | None = None
    """The checkpoint that the main process has chosen; None to look for it."""
    rows: Sequence[Row] = ()
    tests: dict[str, Sequence[Row]] = field(default_factory=dict)
    """The test rows of each evaluated data set."""
    sketch: ModelAdapter | None = None
    """The checkpoint without its weights; None if it is not on this machine and `remote` is false."""
    config: RunConfig = field(init=False)
    """The config, fitted to the checkpoint."""
    start: Start = field(init=False)
    finished: Finished | None = None
    """Set if the run has already finished, so that there is no start."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """The fingerprint of the training rows of each data set."""
    identity: dict[str, Any] = field(default_factory=dict)
    """See `identity_of`. It lacks the fingerprint of weights that are not downloaded yet."""
    changed: list[str] = field(default_factory=list)
    """The differences of a resumed run from before."""
    sizes: dict[str, Extent] = field(default_factory=dict)
    """The sizes of the condition files that this process has decoded."""


def ready(
    config: RunConfig, share: tuple[int, int] = (0, 1), remote: bool = True, here: bool = True, choice: Choice | None = None
) -> Preflight:
    """Raises:
    UserError: the first reason to refuse the start.
    """
    found = Preflight(config, share, remote, here, choice)
    found.config = config
    for check in CHECKS:
        check(found)
    return found


def machine(found: Preflight) -> None:
    """Checks packages and devices."""
    config = found.requested
    require_trackers(config.log.logging_backend)
    if not found.here:
        return
    check_quantization(config.model.quantization)
    named = {"train.ema_device": config.train.ema_device, "train.ref_param_device": config.train.ref_param_device}
    if isinstance(config.train, OPDConfig):
        named["train.teacher_param_device"] = config.train.teacher_param_device
    for key, name in named.items():
        require_device(key, name)
    require_devices(arguments((*config.rewards, *(config.eval_rewards or ()))))


def folders(found: Preflight) -> None:
    """Checks that the folders can be written to."""
    require_writable(found.requested.log.save_dir, "log.save_dir", "choose another folder")
    require_writable(found.requested.data.cache_dir, "data.cache_dir", "choose another folder")
    if found.requested.log.push_to_hub is not None and found.remote and found.share[0] == 0:
        require_push(found.requested.log.push_to_hub, "log.push_to_hub")


def classes(found: Preflight) -> None:
    """Checks the classes of the rewards, the media that they score, and the aggregation."""
    config, family = found.requested, MODELS[found.requested.model.model_type]
    aggregation(config.train.advantage_aggregation, ())
    for entries in (config.rewards, config.evaluated_by):
        require_rewards(arguments(entries), family.draws, family.sounds)
    if ALGORITHMS[config.train.trainer_type].through_sampler:
        require_gradients(arguments(config.rewards))


def data(found: Preflight) -> None:
    """Reads each row once, and checks it against the family and the rewards, and that its files exist."""
    config, given, family = found.requested, found.requested.train.given, MODELS[found.requested.model.model_type]
    prints = {dataset.name: DataFingerprint() for dataset in trained_on(config)}

    def checks_of(dataset: Dataset, trained: bool) -> list[RowCheck]:
        entries = dataset.config.rewards if trained else dataset.config.evaluated_by
        needs = require_rewards(arguments(entries), family.draws, family.sounds) if not (trained and given) else ()
        own = row_checks(dataset.config, needs, trained, found.share)
        return [*own, prints[dataset.name]] if trained else own

    found.rows = read_training(config, partial(checks_of, trained=True))
    found.tests = read_tests(config, partial(checks_of, trained=False))
    found.fingerprints = {name: fingerprint.hexdigest() for name, fingerprint in prints.items()}
    found.requested, lines = whole_pass(config, len(found.rows))
    found.config = found.requested
    for line in (*lines, *repeats(found.requested, sizes_of(found.rows))) if found.share[0] == 0 else ():
        logger.warning(line)


def rewards(found: Preflight) -> None:
    """Checks the files that the rewards' constructors read; without the network, runs the constructors."""
    config = found.requested
    entries = [arguments(used) for used in (config.rewards, config.evaluated_by)]
    for used in entries:
        require_files(used, found.remote)
    if not found.remote:
        try_constructors([entry for used in entries for entry in used])


def checkpoint(found: Preflight) -> None:
    """Checks the base model: its configs, sizes and schedules, and if it is on this machine the headers of all weights."""
    name, kind, overrides, pipeline = checkpoint_of(found.requested)
    require_source(name, KEY, "model_index.json", LoadError, found.remote)
    folder = on_disk(name)
    if not (found.remote or folder):
        return
    found.sketch = sketch_adapter(name if found.remote else str(folder), kind, overrides, pipeline)
    if folder is not None:
        bare = found.sketch.field.bare
        check_folder(folder, {part: bare[part] for part in found.sketch.components if part in bare})
    for module in found.sketch.field.bare.values():
        require_blocks(found.requested.train.enable_gradient_checkpointing, len(blocks_of(module)))
    found.requested, notice = with_form(found.requested, (found.choice or choose(found.requested)).path, found.sketch)
    if notice is not None and found.share[0] == 0:
        note(notice)
    found.config = fitted(found.requested, found.sketch)


def given_files(found: Preflight) -> None:
    """Checks the files of weights that the algorithm uses, and the formats in which the run's are saved."""
    require_given_files(found.requested, found.sketch)
    require_formats(found.requested, found.sketch)


def history(found: Preflight) -> None:
    """Checks the start of the run, and that its folder is free."""
    try:
        found.start = find_start(found.requested, found.choice, found.sketch)
    except Finished as note:
        found.finished = note
    else:
        if found.share[0] == 0:  # this process will claim the folder; the others would find it claimed
            require_free(found.start.folder or Path(found.requested.log.save_dir))  # a default name gets a number if it is in use
    found.identity = identity_of(found.requested, found.fingerprints)
    if found.finished is not None:
        found.finished.require_own(found.identity)
    else:
        found.changed = found.start.require_same(found.identity)


def files(found: Preflight) -> None:
    """Decodes every condition file of the rows that the run draws once, and checks the family's limits."""
    found.sizes = check_files(found.requested, found.rows, found.tests, progress=found.share[0] == 0, share=found.share)
    if found.sketch is not None:
        check_limits(found.config, found.sketch, found.rows, found.tests, found.sizes)


CHECKS: tuple[Callable[[Preflight], None], ...] = (machine, folders, classes, data, rewards, checkpoint, given_files, history, files)
