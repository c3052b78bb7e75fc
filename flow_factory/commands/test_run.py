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
from flow_factory.memory.parts import peak
from flow_factory.runs.run_folder import TEST
from flow_factory.runs.training_state import load
from flow_factory.train import build
from flow_factory.training.forecast import Forecast, Paces, forecast, shrunk, times
from flow_factory.training.replay_error import measure
from flow_factory.training.run import Run
from flow_factory.training.slowest import precisely
from flow_factory.utils.errors import RunError
from flow_factory.utils.terminal import Epochs


def rehearse(config: RunConfig, heard: Callable[[], None]) -> tuple[str, bool]:
    """(what the run will take, whether the disk has room for it); on the main process.

    Args:
        heard: raises, if a signal has come.

    Raises:
        as a run.
    """
    few = hidden(shrunk(config))
    run = build(few)
    try:
        heard()
        return Rehearsal(config, few, run)()
    finally:
        if run.claim is not None:
            run.claim.release()  # with which its folder goes


def hidden(config: RunConfig) -> RunConfig:
    """In a new folder beside the runs', so on their disk; a fresh start, or from weights, with no tracker but the run's own files."""
    path = config.model.resume_path
    state = path is not None and (path == AUTO or (config.model.resume_type or kind_of(newest(Path(path)))) == "state")
    log = {"save_dir": str(Path(config.log.save_dir, TEST)), "run_name": None, "logging_backend": ()}
    model = {"resume_path": None, "resume_type": None} if state else {}
    return config.model_copy(
        update={"profile": None, "log": config.log.model_copy(update=log), "model": config.model.model_copy(update=model)}
    )


class Tested(NamedTuple):
    """The rows of a data set's evaluation."""

    usual: int
    """In the run."""
    taken: int
    """In this one."""
    full: int
    """In the run's evaluation at the end, where that takes all; else 0."""
    one: int
    """What a row costs, beside another data set's."""


@dataclass
class Rehearsal:
    """Of a run that is built."""

    config: RunConfig
    """The run's, not the short one's."""
    few: RunConfig
    run: Run
    paces: Paces = field(init=False)
    sizes: tuple[int, int] = field(init=False)
    """Bytes of a checkpoint: of its weights, of its training state."""
    saving: float = field(init=False)
    """Seconds that it held the run up."""

    def __post_init__(self) -> None:
        self.paces = Paces(self.run.context.meter)

    def __call__(self) -> tuple[str, bool]:
        """All phases, then what was found."""
        run, trainer = self.run, self.run.trainer
        measure(trainer)
        trainer.context.meter.observers.append(self.paces)
        with Epochs(1, 0, shown=False) as run.bar:
            run.evaluate()
            run.tell(trainer.epoch())
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
        """A checkpoint with its training state, to its end."""
        self.run.save(state=True)
        self.saving = self.run.saving["time/save_s"]
        self.run.saver.wait()
        wait_for_everyone("saving")
        state = size_of(self.run.checkpoint() / "state")
        self.sizes = size_of(self.run.checkpoint()) - state, state

    def load(self) -> None:
        """Raises:
        RunError: what comes back is not what was saved.
        """
        trainer = self.run.trainer
        before = sums(trainer.context.store.state_dict().values())
        progress = load(self.run.checkpoint(), trainer.context.store, trainer.context.engine, trainer.context.schedule)
        if progress != trainer.context.progress or sums(trainer.context.store.state_dict().values()) != before:
            raise RunError(f"{self.run.checkpoint()} was saved, and other weights came back from it: is the disk in order?")

    # -- what was found --------------------------------------------------------------------------------------------------------

    def rows(self) -> tuple[int, int]:
        """Test rows of an evaluation of the run, and of this one."""
        return sum(e.usual for e in self.tested()), sum(e.taken for e in self.tested())

    def tested(self) -> list[Tested]:
        """By data set."""
        alone = {dataset.name: dataset.config for dataset in datasets_of(self.config)}
        found = []
        for evaluator in self.run.evaluators:
            config, rows = alone[evaluator.rewards.dataset], len(evaluator.rows)
            section = config.eval
            one = section.group_size * section.num_inference_steps * section.height * section.width
            found.append(Tested(len(rows_evaluated(config, rows)), len(evaluator.taken), rows if section.full_at_end else 0, one))
        return found

    def work(self) -> tuple[int, int]:
        """What an evaluation of the run does, and this one did."""
        return sum(e.usual * e.one for e in self.tested()), sum(e.taken * e.one for e in self.tested())

    def more(self) -> float:
        """Evaluations that `eval.full_at_end` is worth."""
        usual = self.work()[0]
        return sum((e.full - e.usual) * e.one for e in self.tested() if e.full) / usual if usual else 0.0

    def title(self) -> str:
        plan, rows = plan_of(self.few), self.rows()
        much = f"{plan.groups} of {plan_of(self.config).groups} groups of {plan.group_size} samples"
        tested = f", {rows[1]} of {rows[0]} test rows" if rows[0] else ""
        return f"test run: an epoch of {much}{tested}, a checkpoint and its way back; nothing of it is kept but the encoded rows"

    def epochs(self, found: Forecast) -> Iterator[str]:
        """What takes how long; the slowest process's times."""
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
        """The peak, beside the estimate."""
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
        """What checkpoints take, and whether they have room."""
        log, (weights, state) = self.config.log, self.sizes
        each, many = weights + state * (not log.save_model_only), times(self.config)
        free = free_space(Path(log.save_dir)) + weights + state  # the one that goes
        said = f"a checkpoint: {amount(weights)} of weights, {amount(state)} of training state"
        said += "" if not log.save_model_only else " (of which one is written when the run is stopped)"
        if many is None and log.keep_last_n is None:
            return [f"{said}; all are kept: {amount(free)} are free in {log.save_dir}, for {free // max(1, each)} of them"], True
        kept = min(n for n in (many[1] if many else None, log.keep_last_n) if n is not None)
        beside = many is None or many[1] > kept  # the next is whole before the oldest goes
        needed = (kept + beside) * each + state * log.save_model_only
        fits = needed < free
        text = f"{amount(needed)} for {kept} of them{' and the next' if beside else ''}, and {amount(free)} are free in {log.save_dir}"
        return [said, f"disk: {text}{'' if fits else ': that does NOT fit; set log.keep_last_n, or a larger log.save_freq'}"], fits


def counted(many: int, what: str) -> str:
    return f"{many} {what}{'s' * (many != 1)}"


def slowest(everyone: list[Forecast]) -> Forecast:
    """Of each phase, the process that takes longest."""
    phases = {phase: max(one.phases[phase] for one in everyone) for phase in everyone[0].phases}
    return Forecast(phases, max(one.once for one in everyone), max(one.evaluation for one in everyone))


def sums(copies: Iterable[Mapping[str, Tensor]]) -> list[float]:
    """Of the values of each part of each copy: the same for the same bits."""
    return [float(part.detach().double().sum()) for parts in copies for part in parts.values()]


def size_of(folder: Path) -> int:
    """Bytes of the files in it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def amount(size: float) -> str:
    """`3.1 MB`, `48 GB`."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
