"""The summary of a run: what it gained, what it left, and what to do next."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from flow_factory.reporting.alarms import alarm_facts
from flow_factory.reporting.page.write import FILE as REPORT
from flow_factory.reporting.paired_gains import compare
from flow_factory.reporting.report import full_evaluation, nothing_learned, write_summary
from flow_factory.training.banner import tested
from flow_factory.training.next_steps import next_steps
from flow_factory.utils.counting import counted

if TYPE_CHECKING:
    from flow_factory.training.context import TrainingContext
    from flow_factory.training.run import Run


def summarise(run: Run) -> str:
    """Writes `summary.md` into the run's folder and returns its text."""
    context, folder = run.context, run.folder
    config, metrics, last_one = context.config, folder / "metrics.jsonl", run.checkpoint()
    best = run.interventions.best
    best = best if best is not None and best != last_one and best.is_dir() else None
    files = {
        "report": folder / REPORT,
        "pictures before and after": folder / "before_after.png", "videos before and after": folder / "videos",
        "curves": folder / "curves.png", "metrics": metrics, "alarms": folder / "monitor.jsonl",
        **({"best weights": best, "last weights": last_one} if best is not None else {"trained weights": last_one}),
        "config": folder / "config.yaml",
    }  # fmt: skip
    steps = next_steps(config, folder, last_one, best)
    title = f"{folder.name}: {counted(context.progress.epoch, 'epoch')} of {config.train.trainer_type}"
    found = compare(folder)
    first, last = ({k: v for k, v in m.items() if _shown(k, v)} for m in (found.before, found.after))
    facts = [f"{took(time.monotonic() - run.started, run.began if run.resumes else None)} on {_machines(context)}, evaluations included"]
    if last and run.evaluators:
        facts.append(f"evaluated on {tested(run.evaluators)}, each always from the same noise")
    facts += [found.note] if found.note else []
    facts += full_evaluation(metrics)
    facts += run.interventions.facts()
    facts += alarm_facts(folder, context.progress.epoch)
    facts += nothing_learned(metrics, context.rewards.names)
    return write_summary(folder / "summary.md", title, (first, last), files, steps, facts, found.intervals)


def took(seconds: float, resumed_after: int | None) -> str:
    """The time that this start of the run took; of a resumed run it says since which epoch."""
    since = "" if resumed_after is None else f" since the resume after epoch {resumed_after}"
    return f"{seconds / 60:.1f} minutes{since}"


def _machines(context: TrainingContext) -> str:
    """The device; with several processes also the engine and their number."""
    accelerator = context.accelerator
    many = f" ({context.engine.name}, {accelerator.num_processes} processes)" if accelerator.num_processes > 1 else ""
    return f"{accelerator.device}{many}"


def _shown(name: str, value: float) -> bool:
    """Whether the summary shows this metric of an evaluation: a reward's mean, the held-out loss, or missing scores."""
    bare = re.sub(r"^[^/]+/(?=reward_|missing/|loss$)", "", name)  # without the name of the data set
    reward = bare.startswith("reward_") and bare.endswith("_mean") and bare != "reward_mean"
    return reward or bare == "loss" or (bare.startswith("missing/") and value > 0)
