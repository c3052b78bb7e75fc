"""What the header of a file of weights says of the run that made them."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from flow_factory import __version__
from flow_factory.config import DataConfig, RunConfig
from flow_factory.config.datasets import trained_on
from flow_factory.data.sources import has_split, open_split
from flow_factory.reporting.metrics import records_of
from flow_factory.reporting.paired_gains import compare
from flow_factory.utils.errors import UserError

PROMPTS = 3
"""Of each data set that are named."""


def provenance(config: RunConfig, folder: Path | None, checkpoint: str) -> dict[str, str]:
    """Texts for the header of a file of weights: `base_model`, and `flow_factory`, an object as JSON.

    Args:
        folder: the run's, with its metrics; None: they are not known.
        checkpoint: its name.
    """
    places = {dataset.name: dataset.config.data.dataset_dir for dataset in trained_on(config)}
    facts: dict[str, Any] = {
        "version": __version__,
        "base_model": config.model.model_name_or_path,
        "model_type": config.model.model_type,
        "trainer_type": config.train.trainer_type,
        "checkpoint": checkpoint,
        "data": places if config.data.datasets else config.data.dataset_dir,
        "prompts": prompts_of(config),
        "rewards": {reward.name: reward.weight for reward in config.rewards},
        "evaluation": _evaluation(folder),
    }
    return {"base_model": config.model.model_name_or_path, "flow_factory": json.dumps(facts, sort_keys=True)}


def prompts_of(config: RunConfig) -> list[str]:
    """The first of each data set that is trained on, where it is on this machine."""
    return [prompt for dataset in trained_on(config) for prompt in _prompts_of(dataset.config.data)]


def _prompts_of(data: DataConfig) -> list[str]:
    try:
        rows = open_split(data, data.train_split, PROMPTS) if has_split(data, data.train_split) else []
        return [row.prompt for row in islice(rows, PROMPTS)]
    except UserError:
        return []  # of another machine: the weights are what counts


def _evaluation(folder: Path | None) -> dict[str, Any]:
    """Each metric of the first and of the last evaluation, and the trained rewards at the first, the best and the last step."""
    records = [] if folder is None else records_of(folder)
    found: dict[str, Any] = {}
    if folder is not None:
        ends = compare(folder, records)
        found |= {name: [ends.before.get(name), ends.after[name]] for name in sorted(ends.after) if name.endswith("_mean")}
    means = [[r["step"], r["train/reward_mean"]] for r in records if r.get("train/reward_mean") is not None]
    if means:
        found["train/reward_mean"] = [means[0], max(means, key=lambda pair: pair[1]), means[-1]]
    return found
