"""The conditions of a run's rows, encoded ahead, in windows or when drawn. The processes divide the rows and encode each once."""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from flow_factory.algorithms.base import Algorithm
from flow_factory.config import RunConfig, pipeline_kwargs
from flow_factory.config.datasets import datasets_of, trained_on
from flow_factory.data.cache import ConditionCache
from flow_factory.data.conditions import Conditions, encode_missing, look_up
from flow_factory.data.encoding_windows import (
    evaluated,
    idle_of,
    in_windows,
    rows_needed,
    rows_of_start,
    rows_of_window,
    rows_tested,
    window_of,
)
from flow_factory.data.packing import in_memory, pack
from flow_factory.data.several import joined, parts_of
from flow_factory.data.shards import DIGEST
from flow_factory.distributed.barriers import Work
from flow_factory.distributed.collectives import all_or_none
from flow_factory.models.base import ModelAdapter
from flow_factory.policy.compilation import Shapes
from flow_factory.training.encoding_fingerprint import about, fingerprint_of
from flow_factory.training.encoding_timer import EncodingTimer
from flow_factory.training.prompt_lengths import warn_overlong
from flow_factory.training.text_encoders import Encoders, Identity
from flow_factory.types import Cond, Row
from flow_factory.utils.errors import UserError
from flow_factory.utils.lazy import LazySequence
from flow_factory.utils.signals import ELSEWHERE, Interrupt, Interrupted
from flow_factory.utils.terminal import bar


class UncachedConditions(LazySequence[Cond]):
    """Conditions that are encoded at each access, with a small cache of the last ones."""

    def __init__(self, rows: Sequence[Row], encode: Any):
        self.rows, self.encode = rows, lru_cache(maxsize=2)(lambda k: as_kept(encode(rows[k])))

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> Cond:
        return self.encode(index)


def as_kept(cond: Cond) -> Cond:
    """The condition as the cache would return it."""
    return in_memory(pack(cond, bytes(DIGEST)))


class Encoding:
    """The conditions of a run's rows, and the times of their encoding.

    Training rows have a negative prompt if any of the algorithm's velocities is guided.

    Attributes:
        conds: the conditions of the training rows, under the call arguments of `train:`.
        eval_conds: the conditions of the test rows of each evaluated data set, under the call arguments of its `eval:`.
    """

    def __init__(
        self,
        config: RunConfig,
        encoders: Encoders,
        algorithm: Algorithm,
        rows: Sequence[Row],
        tests: Mapping[str, Sequence[Row]],
        accelerator: Accelerator,
    ):
        self.config, self.encoders, self.adapter, self.accelerator = config, encoders, encoders.adapter, accelerator
        self.shapes = Shapes(config) if config.model.compile else None
        self.call = call_of_training(config, self.adapter, algorithm)
        self.datasets = {dataset.name: dataset.config for dataset in datasets_of(config)}
        encoders.idle = idle_of(config)
        self.until: int | None = None
        """The first epoch of the next window; None if there is none."""
        identity = self.identity() if config.data.enable_preprocess else None
        trained = zip((dataset.config for dataset in trained_on(config)), parts_of(rows), strict=True)
        self.parts = [self._conditions(alone, its, self.call, identity) for alone, its in trained]
        """The conditions of each data set's training rows."""
        self.conds: Sequence[Cond] = joined(self.parts)
        self.eval_conds = {
            name: self._conditions(alone := self.datasets[name], its, pipeline_kwargs(alone.eval), identity) for name, its in tests.items()
        }

    def _conditions(
        self, alone: RunConfig, rows: Sequence[Row], call: dict[str, Any], identity: Identity | None
    ) -> Conditions | UncachedConditions:
        encode = partial(self.encoders.encode, call=call)
        if identity is None:
            return UncachedConditions(rows, encode)
        fingerprint = fingerprint_of(self.config, self.adapter, call, identity)
        return Conditions(ConditionCache(Path(self.config.data.cache_dir), fingerprint, about(alone)), rows, encode)

    def identity(self) -> Identity:
        """The fingerprints of the encoders. One process of each machine computes them if their files have changed."""
        work = self.work("fingerprints")
        known = self.encoders.known()
        if known is None and share_of(self.config, self.accelerator)[0] == 0:
            known = self.encoders.find_out()
        work.wait()
        return known or self.encoders.known() or self.encoders.find_out()

    def begin(self, epoch: int) -> None:
        """Encodes the rows that must be encoded before the run starts or continues with this epoch.

        Processes wait for each other as long as each makes progress.

        Raises:
            UserError: the pipeline cannot encode a row.
            RendezvousError: a process makes no progress, see `Work`.
        """
        if self.accelerator.is_main_process:
            self._warn()
        tested = {name: evaluated(self.datasets[name], len(conds)) for name, conds in self.eval_conds.items()}
        wanted, work = rows_of_start(self.config, self.sizes, epoch), self.work("encoding")
        with self.encoders.working():
            self._share_training(wanted, work)
            for name, rows in tested.items():
                self._share(self.eval_conds[name], rows, work)
        work.wait()
        self.encoders.running = True
        self.until = window_of(self.config, epoch).stop if in_windows(self.config) else None
        self._count(wanted, tested)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of training rows of each data set."""
        return tuple(map(len, self.parts))

    def _warn(self) -> None:
        """Warns about prompts that the encoder cuts."""
        for conds, wanted in self._by_part(rows_needed(self.config, self.sizes)):
            warn_overlong(self.adapter, conds.rows, wanted, self.call)
        for name, conds in self.eval_conds.items():
            alone = self.datasets[name]
            warn_overlong(self.adapter, conds.rows, rows_tested(alone, len(conds)), pipeline_kwargs(alone.eval))

    def _by_part(self, wanted: Sequence[int]) -> list[tuple[Conditions | UncachedConditions, Sequence[int]]]:
        """Indices of training rows -> for each data set its conditions and the indices in it."""
        if len(self.parts) == 1:
            return [(self.parts[0], wanted)]
        starts = [0, *accumulate(self.sizes)]
        return [(part, [k - start for k in wanted if 0 <= k - start < len(part)]) for part, start in zip(self.parts, starts, strict=False)]

    def reach(self, epoch: int, interrupt: Interrupt) -> None:
        """Encodes the rows of the window that begins with this epoch, if any. All processes call this together.

        Raises:
            Interrupted: any process got a signal. Rows that are encoded so far are kept.
            UserError: the pipeline cannot encode a row, here or elsewhere.
        """
        if self.until is None or epoch < self.until:
            return
        wanted, work = rows_of_window(self.config, self.sizes, epoch), self.work("encoding")

        def encode() -> None:
            try:
                with self.encoders.working():
                    self._share_training(wanted, work, interrupt)
            except (UserError, Interrupted):
                work.stop()
                raise
            finally:
                work.wait()
            self._count(wanted, {})

        all_or_none(self.accelerator, interrupt, encode, at_once=False)
        self.until = window_of(self.config, epoch).stop

    def _share_training(self, wanted: Sequence[int], work: Work, interrupt: Interrupt | None = None) -> None:
        needed = self._by_part(rows_needed(self.config, self.sizes) if in_windows(self.config) else wanted)
        for (conds, rows), (_, every) in zip(self._by_part(wanted), needed, strict=True):
            self._share(conds, rows, work, interrupt, later=len(every) - len(rows))

    def _share(
        self, conds: Conditions | UncachedConditions, wanted: Sequence[int], work: Work, interrupt: Interrupt | None = None, later: int = 0
    ) -> None:
        """Encodes the missing rows of this process's share.

        Args:
            later: the number of rows that the run draws in later windows.
        """
        if not isinstance(conds, Conditions) or not len(wanted):
            return
        share, main, cache = share_of(self.config, self.accelerator), self.accelerator.is_main_process, conds.cache
        keys, missing = look_up(conds.rows, cache, main, wanted, share)
        conds.keys.update(keys)
        pace = EncodingTimer(cache, len(missing), share[1], main, interrupt is None, later)

        def encode(row: Row) -> Cond:
            work.beat(f"encoding {row.source}")
            if interrupt is not None:
                interrupt.check()
                if work.stopped:
                    raise Interrupted(ELSEWHERE)
            pace.row()
            return conds.encode(row)

        there = len(wanted) - len(missing) * share[1]
        doing = f"encoding rows ({there} are cached)" if there > 0 else "encoding rows"
        encode_missing(bar(missing.items(), doing, "row", main, times=share[1]), conds.rows, encode, cache, strict=interrupt is None)

    def _count(self, wanted: Sequence[int], tested: Mapping[str, Sequence[int]]) -> None:
        """Announces the shapes of these rows to the compiler."""
        if self.shapes is not None:
            shaping = self.adapter.shaping
            evaluation = [shaping(self.eval_conds[name][k]) for name, rows in tested.items() for k in rows]
            self.shapes.allow([shaping(self.conds[k]) for k in wanted], evaluation)

    @staticmethod
    def work(name: str) -> Work:
        work = Work(name)
        work.beat("loading")
        return work


def call_of_training(config: RunConfig, adapter: ModelAdapter, algorithm: Algorithm) -> dict[str, Any]:
    """The call arguments of `train:`, guided if any of the algorithm's velocities is."""
    call = pipeline_kwargs(config.train)
    scales = [s for s in map(algorithm.guidance, algorithm.weights) if s is not None]
    return next((c for c in (call, *(adapter.with_guidance(call, s) for s in scales)) if adapter.guided(c)), call)


def share_of(config: RunConfig, accelerator: Accelerator) -> tuple[int, int]:
    """(k, n): this process encodes every n-th row, starting with the k-th; see `data.preprocess_parallelism`."""
    if config.data.preprocess_parallelism == "global":
        return accelerator.process_index, accelerator.num_processes
    if (here := os.environ.get("LOCAL_WORLD_SIZE")) is None:  # an unknown launcher: each process encodes all missing rows
        return 0, 1
    return accelerator.local_process_index, int(here)
