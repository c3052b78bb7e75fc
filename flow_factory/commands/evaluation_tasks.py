"""The tasks of `ff-eval`: the rows of each data set, and the rewards that score them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flow_factory.config import RewardConfig, RunConfig
from flow_factory.config.datasets import Dataset, datasets_of, for_dataset
from flow_factory.data.encoding_windows import rows_evaluated
from flow_factory.data.reader import DataError, RowCheck
from flow_factory.data.sources import open_split
from flow_factory.models import MODELS
from flow_factory.rewards.loading import arguments, left_out, require_files, require_rewards
from flow_factory.runs.identity import DataFingerprint
from flow_factory.runs.rows import read_tests, row_checks
from flow_factory.types import Row
from flow_factory.utils.errors import UserError
from flow_factory.utils.terminal import note

OF_SPEED = ("batch_size", "device", "max_seconds", "async_reward", "num_workers")
"""Keys of a reward that do not change its scores."""


class Task(NamedTuple):
    """An evaluated data set."""

    name: str
    """The name of the data set; "" without one."""
    config: RunConfig
    """The config of the run, restricted to this data set."""
    rows: Sequence[Row]
    entries: Sequence[RewardConfig]
    """The rewards that score it."""


def tasks_of(config: RunConfig, rewards: Sequence[RewardConfig] | None, given: bool, noises: int) -> list[Task]:
    """The data sets with the rows of an evaluation (`eval.max_rows`), which are checked.

    Args:
        rewards: None for those of the run's evaluations.
        given: whether `data.dataset_dir` was given on the command line. Its test split must exist then.
        noises: the number of seeds. With one, groupwise rewards are left out.

    Raises:
        UserError: there are no test rows or no rewards; or a row, a file or a reward is wrong.
    """
    family, found = MODELS[config.model.model_type], []

    def entries(dataset: Dataset) -> Sequence[RewardConfig]:
        return dataset.config.evaluated_by if rewards is None else for_dataset(rewards, dataset.name)

    def checks_of(dataset: Dataset) -> list[RowCheck]:
        return row_checks(dataset.config, require_rewards(arguments(entries(dataset)), family.draws, family.sounds), trained=False)

    datasets = {dataset.name: dataset for dataset in datasets_of(config)}
    if given:
        try:
            tests: Mapping[str, Sequence[Row]] = {"": open_split(config.data, config.data.test_split, None, checks_of(datasets[""]))}
        except DataError as error:
            raise DataError(str(error).replace("data.dataset_dir", "--data")) from error  # what was written
    else:
        tests = read_tests(config, checks_of)
    if not tests:
        where = ", ".join(dataset.config.data.dataset_dir for dataset in datasets.values())
        raise UserError(f"{where}: no test rows, seen from {Path.cwd()}; start where the run started, or name some with --data")
    for name, rows in tests.items():
        alone, its = datasets[name].config, entries(datasets[name])
        note(*left_out(its) if noises == 1 else ())
        if not its:
            raise UserError(f"there is no reward{f' for {name}' if name else ''}; name a YAML of rewards with --config")
        require_files(arguments(its), now=True)
        found.append(Task(name, alone, [rows[k] for k in rows_evaluated(alone, len(rows))], its))
    return found


def described(task: Task) -> dict[str, Any]:
    """The part of the protocol that belongs to a data set."""
    section, prompts, columns = task.config.eval, DataFingerprint(), hashlib.sha256()
    for row in task.rows:
        prompts(row)
        columns.update(json.dumps([row.id, row.columns], sort_keys=True, default=str).encode())
    rewards = {}
    for entry in task.entries:
        rewards[entry.name] = {k: v for k, v in entry.model_dump(mode="json").items() if k not in ("name", *OF_SPEED)}
    sizes = {key: getattr(section, key) for key in ("guidance_scale", "height", "width", "call")}
    return {
        "dataset": task.config.data.dataset_dir, "rows": len(task.rows), "prompts": prompts.hexdigest(), "columns": columns.hexdigest(),
        "steps": section.num_inference_steps, **sizes, "rewards": rewards,
    }  # fmt: skip
