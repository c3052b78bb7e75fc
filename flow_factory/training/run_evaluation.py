"""The evaluation of a run: every evaluated data set, with its metrics, images and scores of each row."""

import re
from typing import TYPE_CHECKING

from flow_factory.distributed import liveness
from flow_factory.reporting.paired_gains import FILE as EVAL_SCORES
from flow_factory.reporting.paired_gains import keep_scores
from flow_factory.utils.offload import empty_device_cache
from flow_factory.utils.terminal import print_line

if TYPE_CHECKING:
    from flow_factory.training.run import Run


def evaluate(run: "Run") -> None:
    """Evaluates on the test rows, and logs their images and the last training samples. Every process must call it."""
    config, epoch, trackers, meter = run.context.config, run.context.progress.epoch, run.trackers, run.context.meter
    liveness.set_activity("logging")
    if trackers is not None:
        trackers.log_samples("train", run.trainer.shown, epoch)
    if not run.evaluators or config.eval.eval_freq == 0:
        return
    device, at_end = run.context.accelerator.device, epoch == config.train.max_epochs
    empty_device_cache(device)
    with meter.phase("eval"):
        found = [e.run(full=at_end and e.context.config.eval.full_at_end) for e in run.evaluators]
    metrics = {name: value for its, _ in found for name, value in its.items()}
    samples = [sample for _, its in found for sample in its]
    empty_device_cache(device)
    liveness.set_activity("logging")
    shares = [sum(parts) for parts in zip(*(e.shares for e in run.evaluators), strict=True)]
    run.log(metrics | meter.cost("eval", shares) | run.interventions(metrics, "eval"))
    if trackers is not None:
        run.gallery.drawing(EVAL_SCORES, lambda: _keep_scores(run))
        print_line(f"evaluation after epoch {epoch}: {_in_short(metrics)}")
        if samples:
            trackers.log_samples("eval", samples, epoch)
            run.gallery.show(samples, epoch)


def _keep_scores(run: "Run") -> None:
    """Stores the scores of each row of the last evaluation."""
    for evaluator in run.evaluators:
        rows = evaluator.taken if evaluator.scores else evaluator.usual  # without rewards, those of the held-out loss
        keep_scores(run.folder, run.context.progress.epoch, rows, evaluator.scores, evaluator.name, evaluator.contents(rows))


def _in_short(metrics: dict[str, float]) -> str:
    """The means and losses of an evaluation, as the terminal shows them."""
    shown = {name.removeprefix("eval/"): value for name, value in metrics.items() if re.fullmatch(r"eval/(.*_mean|(.*/)?loss)", name)}
    return ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
