"""`ff-train CONFIG --test-run`: every phase of a run once, in a temporary folder, and the predicted cost of the run."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from accelerate.utils import gather_object
from torch import Tensor

from flow_factory.checkpoints.checkpoint import kind_of, newest
from flow_factory.config import RunConfig, plan_of
from flow_factory.config.datasets import datasets_of
from flow_factory.config.model import AUTO
from flow_factory.data.cache_folder import free_space
from flow_factory.data.encoding_windows import rows_evaluated
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.memory.checkpoint import model_of
from flow_factory.memory.machine import written
from flow_factory.memory.parts import peak
from flow_factory.runs.run_folder import TEST
from flow_factory.runs.training_state import load
from flow_factory.train import build
from flow_factory.training.forecast import Forecast, StepTimes, forecast, shrunk, times
from flow_factory.training.replay_error import measure
from flow_factory.training.run import Run
from flow_factory.training.slowest import precisely
from flow_factory.utils.counting import counted
from flow_factory.utils.errors import RunError
from flow_factory.utils.terminal import Epochs


def rehearse(config: RunConfig, check_signals: Callable[[], None]) -> tuple[str, bool]:
    """(the predicted cost of the run, whether the disk has room), on the main process.

    Args:
        check_signals: raises if a signal has arrived.

    Raises:
        see `run_to_end`.
    """
    few = hidden(shrunk(config))
    run = build(few)
    try:
        check_signals()
        return Rehearsal(config, few, run)()
    finally:
        if run.claim is not None:
            run.claim.release()  # it removes the folder, too


def hidden(config: RunConfig) -> RunConfig:
    """The config with a new folder on the disk of the runs, a fresh start or one from weights, and no external tracker."""
    path = config.model.resume_path
    state = path is not None and (path == AUTO or (config.model.resume_type or kind_of(newest(Path(path)))) == "state")
    log = {
        "save_dir": str(Path(config.log.save_dir, TEST)),
        "run_name": None,
        "logging_backend": (),
        "keep_best": None,
        "push_to_hub": None,
    }
    model = {"resume_path": None, "resume_type": None} if state else {}
    return config.model_copy(
        update={"profile": None, "monitor": (), "log": config.log.model_copy(update=log), "model": config.model.model_copy(update=model)}
    )


class Tested(NamedTuple):
    """The numbers of rows in the evaluation of a data set."""

    usual: int
    """Of the run."""
    taken: int
    """Of the test run."""
    full: int
    """Of the run's final evaluation, if that has all rows; else 0."""
    one: int
    """The relative cost of a row."""


@dataclass
class Rehearsal:
    """A test run of a run that is built."""

    config: RunConfig
    """The config of the full run."""
    few: RunConfig
    run: Run
    paces: StepTimes = field(init=False)
    sizes: tuple[int, int] = field(init=False)
    """(bytes of a checkpoint's weights, bytes of its training state)."""
    saving: float = field(init=False)
    """Seconds for which the checkpoint blocked the run."""

    def __post_init__(self) -> None:
        self.paces = StepTimes(self.run.context.meter)

    def __call__(self) -> tuple[str, bool]:
        """Runs all phases and returns the report."""
        run, trainer = self.run, self.run.trainer
        measure(trainer)
        trainer.context.meter.observers.append(self.paces)
        with Epochs(1, 0, shown=False) as run.bar:
            run.evaluate()
            run.report(trainer.epoch())
        self.save()
        self.load()
        run.gallery.wait()
        learner = trainer.learner
        live = [learner.is_policy(name) for name in trainer.context.algorithm.weights]
        mine = forecast(self.config, self.few, self.paces.seconds(), self.work(), live)
        everyone = slowest(gather_object([mine]))
        if not run.main:
            return "", True
        lines, fits = self.disk()
        return "\n".join([self.title(), *self.epochs(everyone), *self.memory(), *lines]), fits

    def save(self) -> None:
        """Writes a checkpoint with its training state, and waits for it."""
        self.run.save(state=True)
        self.saving = self.run.save_cost["time/save_s"]
        self.run.saver.wait()
        wait_for_everyone("saving")
        state = size_of(self.run.checkpoint() / "state")
        self.sizes = size_of(self.run.checkpoint()) - state, state

    def load(self) -> None:
        """Raises:
        RunError: the loaded weights differ from the saved ones.
        """
        trainer = self.run.trainer
        before = sums(trainer.context.store.state_dict().values())
        progress = load(self.run.checkpoint(), trainer.context.store, trainer.context.engine, trainer.context.schedule)
        if progress != trainer.context.progress or sums(trainer.context.store.state_dict().values()) != before:
            raise RunError(f"{self.run.checkpoint()} was saved, but the weights read back from it differ; check the disk")

    # -- results ---------------------------------------------------------------------------------------------------------------

    def rows(self) -> tuple[int, int]:
        """The numbers of test rows in an evaluation of the run, and of the test run."""
        return sum(e.usual for e in self.tested()), sum(e.taken for e in self.tested())

    def tested(self) -> list[Tested]:
        """The numbers of rows for each data set."""
        alone = {dataset.name: dataset.config for dataset in datasets_of(self.config)}
        found = []
        for evaluator in self.run.evaluators:
            config, rows = alone[evaluator.rewards.dataset], len(evaluator.rows)
            section = config.eval
            one = section.group_size * section.num_inference_steps * section.height * section.width
            found.append(Tested(len(rows_evaluated(config, rows)), len(evaluator.taken), rows if section.full_at_end else 0, one))
        return found

    def work(self) -> tuple[int, int]:
        """The work of an evaluation in the run, and in the test run."""
        return sum(e.usual * e.one for e in self.tested()), sum(e.taken * e.one for e in self.tested())

    def more(self) -> float:
        """The cost of `eval.full_at_end` in evaluations."""
        usual = self.work()[0]
        return sum((e.full - e.usual) * e.one for e in self.tested() if e.full) / usual if usual else 0.0

    def title(self) -> str:
        plan, rows = plan_of(self.few), self.rows()
        much = f"{plan.groups} of {plan_of(self.config).groups} groups of {plan.group_size} samples"
        tested = f", {rows[1]} of {rows[0]} test rows" if rows[0] else ""
        return f"test run: an epoch of {much}{tested}, a checkpoint and its way back; nothing of it is kept but the encoded rows"

    def epochs(self, found: Forecast) -> Iterator[str]:
        """Lines with the predicted times, of the slowest process."""
        epoch = sum(found.phases.values())
        parts = ", ".join(f"{phase} {precisely(seconds)}" for phase, seconds in found.phases.items() if seconds > 0.005 * epoch)
        yield f"an epoch: {precisely(epoch)} ({parts})"
        if found.once > 0.1 * epoch:
            yield f"the first one: {precisely(found.once)} more, for what is compiled, tuned or read once"
        rows = self.rows()[0]
        if evaluated := bool(rows and self.config.eval.eval_freq):
            yield f"an evaluation: {precisely(found.evaluation)} for {rows} rows"
        yield f"a checkpoint: holds the run up for {precisely(self.saving)}"
        if (many := times(self.config)) is None:
            yield "the run: until it is stopped"
            return
        last = self.config.train.max_epochs or 0
        evaluations, saves = many[0] * evaluated, many[1]
        whole = last * epoch + found.once + (evaluations + self.more()) * found.evaluation + saves * self.saving
        of = f"{counted(last, 'epoch')}, {counted(evaluations, 'evaluation')} and {counted(saves, 'checkpoint')}"
        minutes = ", nor checkpoints by log.save_minutes" * (self.config.log.save_minutes is not None)
        yield f"the run: {precisely(whole)} for {of}, its start not counted{minutes}"

    def memory(self) -> Iterator[str]:
        """Lines with the measured peak and the estimate."""
        meter, model = self.run.context.meter, model_of(self.few)
        if not meter.cuda:
            yield f"memory: {meter.memory.allocated_gb():.2f} GB of main memory for the first process, Python and its libraries included"
            return
        if model is None:
            yield f"memory: {meter.memory.allocated_gb():.2f} GB at the peak; the plan has no estimate"
            return
        settled = self.run.context.config
        full = settled.model_copy(update={"train": settled.train.model_copy(update={
            "unique_sample_num_per_epoch": self.config.train.unique_sample_num_per_epoch})})  # fmt: skip
        here, there = peak(model.parts(settled)), peak(model.parts(full))
        yield f"memory: {meter.memory.allocated_gb():.2f} GB at the peak, where the plan estimates {here:.2f}"
        yield f"memory of the run, with all its groups: {meter.memory.allocated_gb() + there - here:.2f} GB, estimated {there:.2f}"

    def disk(self) -> tuple[list[str], bool]:
        """Lines with the size of checkpoints, and whether the disk has room."""
        log, (weights, state) = self.config.log, self.sizes
        each, most = weights + state * (not log.save_model_only), written(self.config)
        free = free_space(Path(log.save_dir)) + weights + state  # the one that is removed
        sizes = f"a checkpoint: {amount(weights)} of weights, {amount(state)} of training state"
        sizes += "" if not log.save_model_only else " (of which one is written when the run is stopped)"
        if most is None:
            return [f"{sizes}; all are kept: {amount(free)} are free in {log.save_dir}, for {free // max(1, each)} of them"], True
        needed = most * each + state * log.save_model_only
        fits = needed < free
        text = f"{amount(needed)} for up to {most} of them at a time, and {amount(free)} are free in {log.save_dir}"
        return [sizes, f"disk: {text}{'' if fits else ': that does NOT fit; set log.keep_last_n, or a larger log.save_freq'}"], fits


def slowest(everyone: list[Forecast]) -> Forecast:
    """The largest time of each phase over the processes."""
    phases = {phase: max(one.phases[phase] for one in everyone) for phase in everyone[0].phases}
    return Forecast(phases, max(one.once for one in everyone), max(one.evaluation for one in everyone))


def sums(copies: Iterable[Mapping[str, Tensor]]) -> list[float]:
    """The sum of each part of each copy. Equal bits give equal sums."""
    return [float(part.detach().double().sum()) for parts in copies for part in parts.values()]


def size_of(folder: Path) -> int:
    """The bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def amount(size: float) -> str:
    """`3.1 MB`, `48 GB`."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
