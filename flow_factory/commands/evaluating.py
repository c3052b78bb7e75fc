"""The work of `ff-eval`: drawing and scoring fixed pairs of prompt and noise, and resuming an interrupted evaluation."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from flow_factory import __version__
from flow_factory.commands.drawing import StockPipeline
from flow_factory.commands.evaluation_folder import EvaluationFolder, Known, takes
from flow_factory.commands.evaluation_tasks import Task, described
from flow_factory.commands.places import first_free
from flow_factory.config import RunConfig
from flow_factory.config.secrets import masked
from flow_factory.core.randomness import generator
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.reporting.judged import judged, write_results
from flow_factory.reporting.recipes import Recipe, comparison
from flow_factory.rewards.loading import arguments, load_each
from flow_factory.rewards.scoring import RewardSet
from flow_factory.runs.identity import base_fingerprint, checkpoint_fingerprint
from flow_factory.types import Cond
from flow_factory.utils.errors import RunError
from flow_factory.utils.terminal import bar, note

LIBRARIES = ("torch", "diffusers", "transformers")
Weights = Sequence[tuple[Path | None, str]]
"""(checkpoint, label); None is the base model, which comes first."""
Conds = Mapping[tuple[int, int], Cond]
"""(index of the task, index of the row in it) -> condition."""


class Chunk(NamedTuple):
    """Rows of a task that are drawn and scored together. The chunks do not depend on interruptions or the number of processes."""

    task: int
    rows: Sequence[int]
    """Their indices in the task."""

    @property
    def places(self) -> Iterator[tuple[int, int]]:
        return ((self.task, row) for row in self.rows)


class Evaluation:
    """The evaluation of several weights on several data sets.

    Args:
        seeds: the seeds of the noise of each row.
        batch: the number of samples in a call of the pipeline.
        numbers: whether a number is appended to the folder's name if another evaluation is there.

    Raises:
        UserError: see `EvaluationFolder`.
    """

    def __init__(
        self, config: RunConfig, weights: Weights, tasks: Sequence[Task], seeds: Sequence[int], out: Path, batch: int, numbers: bool = False
    ):
        self.config, self.weights, self.tasks, self.seeds, self.batch = config, weights, tasks, seeds, batch
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        digests = {label: path and checkpoint_fingerprint(path) for path, label in weights}
        self.origins = {label: {"checkpoint": path and str(path), "sha256": digests[label]} for path, label in weights}
        protocol = self.protocol()
        if numbers:
            usable = partial(takes, protocol=protocol, weights=self.origins)
            out = broadcast_object_list([first_free(out, usable) if self.main else out])[0]
        self.folder = EvaluationFolder(out, protocol, self.origins, self.accelerator.process_index)
        wait_for_everyone("reading the scores that are there")
        self.rewards: list[RewardSet] = []

    @property
    def main(self) -> bool:
        return self.accelerator.is_main_process

    def protocol(self) -> dict[str, Any]:
        """Everything that a score depends on, except the weights."""
        model = self.config.model
        device = torch.cuda.get_device_name() if self.accelerator.device.type == "cuda" else self.accelerator.device.type
        found = {
            "model": model.model_name_or_path, "model_type": model.model_type,
            "base": {part: base_fingerprint(model.model_name_or_path, part) for part in model.target_components},
            "mixed_precision": self.config.mixed_precision, "scheduler": self.config.scheduler.overrides, "seeds": list(self.seeds),
            "data": {task.name: described(task) for task in self.tasks}, "device": device,
            "versions": {"flow-factory": __version__, **{name: version(name) for name in LIBRARIES}},
        }  # fmt: skip
        return dict(json.loads(json.dumps(masked(found))))

    # -- the work -----------------------------------------------------------------------------------------------------------------------

    def run(self, device: str | None, offload: bool) -> None:
        """Draws and scores this process's share of the remaining chunks.

        Raises:
            UserError: the pipeline or a reward does not load, or cannot take a row; a checkpoint does not fit; too many scores are missing.
        """
        known = self.folder.scores()
        left = [self._left(label, known) for _, label in self.weights]
        if not any(left):
            return
        if known and self.main:
            note(f"{self.folder.path}: goes on; {sum(map(len, left))} of {len(left) * len(self._chunks())} parts are left")
        mine = [chunks[self.accelerator.process_index :: self.accelerator.num_processes] for chunks in left]
        pipeline = StockPipeline(self.config, device, offload)
        self.rewards = self._load_rewards()
        conds = self._encoded(pipeline, {place for chunks in mine for chunk in chunks for place in chunk.places})
        for (checkpoint, label), everyones, chunks in zip(self.weights, left, mine, strict=True):
            if everyones:
                pipeline.take(checkpoint)
                for chunk in bar(chunks, f"judging {label}", "part", self.main, times=self.accelerator.num_processes):
                    self._judge(pipeline, label, chunk, conds)
                for rewards in self.rewards:
                    rewards.finish_epoch()
        wait_for_everyone("judging")

    def _chunks(self) -> list[Chunk]:
        found = []
        for k, task in enumerate(self.tasks):
            size, places = -(-self.batch // len(self.seeds)), range(len(task.rows))
            found += [Chunk(k, places[n : n + size]) for n in range(0, len(places), size)]
        return found

    def _left(self, label: str, known: Known) -> list[Chunk]:
        def done(chunk: Chunk) -> bool:
            task = self.tasks[chunk.task]
            return all((label, task.name, task.rows[k].id) in known for k in chunk.rows)

        return [chunk for chunk in self._chunks() if not done(chunk)]

    def _load_rewards(self) -> list[RewardSet]:
        """The rewards of each task. A model that several name is loaded once."""
        entries = [entry for task in self.tasks for entry in arguments(task.entries)]
        loaded = iter(load_each(entries, (), self.accelerator)[0])
        sets = [RewardSet([next(loaded) for _ in task.entries], self.accelerator) for task in self.tasks]
        return [rewards.of(task.name, len(self.seeds)) for rewards, task in zip(sets, self.tasks, strict=True)]

    def _encoded(self, pipeline: StockPipeline, places: set[tuple[int, int]]) -> Conds:
        found = {}
        for k, task in enumerate(self.tasks):
            mine = sorted(row for number, row in places if number == k)
            conds = pipeline.encoded([task.rows[row] for row in mine], task.config.eval)
            found.update({(k, row): cond for row, cond in zip(mine, conds, strict=True)})
        return found

    def _judge(self, pipeline: StockPipeline, label: str, chunk: Chunk, conds: Conds) -> None:
        task, rewards, media = self.tasks[chunk.task], self.rewards[chunk.task], dict[tuple[int, int], Any]()
        work = [(row, seed) for row in chunk.rows for seed in self.seeds]
        for some in pipeline.batches(work, self.batch, lambda pair: conds[chunk.task, pair[0]]):
            rows = [task.rows[row] for row, _ in some]
            noise = [generator(seed, "eval", task.rows[row].id) for row, seed in some]
            drawn = pipeline.draw(rows, [conds[chunk.task, row] for row, _ in some], task.config.eval, noise)
            media.update(zip(some, drawn, strict=True))
        rows = [task.rows[row] for row in chunk.rows]
        scores = torch.stack(rewards.score(rows, [[media[row, seed] for seed in self.seeds] for row in chunk.rows]))
        self.folder.keep(label, task.name, rows, dict(zip(rewards.names, scores.permute(2, 0, 1).tolist(), strict=True)))

    # -- results ------------------------------------------------------------------------------------------------------------------------

    def results(self, recipe: Recipe | None = None) -> str:
        """Writes the tables, with the numbers of a recipe if given, and returns the Markdown.

        Raises:
            RunError: the scores of another process are missing.
        """
        known, tables, names = self.folder.scores(), dict[tuple[str, str], NDArray[np.float64]](), dict[str, list[str]]()
        for _, label in self.weights:
            if left := self._left(label, known):
                text = f"--out: {self.folder.path} lacks {len(left)} parts of {label}"
                raise RunError(f"{text}: all machines must write into the same folder")
            for task in self.tasks:
                scores = [known[label, task.name, row.id] for row in task.rows]
                names[task.name] = list(scores[0])
                tables[label, task.name] = np.stack([np.array([of[n] for of in scores], np.float64) for n in names[task.name]], -1)
        labels = [label for _, label in self.weights]
        found, protocol = judged(tables, names, labels), self.folder.protocol
        beside = "" if recipe is None else f"\n{comparison(recipe, found, protocol)}"
        return write_results(self.folder.path, found, protocol, self.origins, beside)
