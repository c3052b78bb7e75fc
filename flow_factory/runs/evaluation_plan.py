"""The cost of evaluations relative to the epochs between them, in transformer forwards; printed before a run begins."""

from collections.abc import Mapping

from flow_factory.algorithms import ALGORITHMS
from flow_factory.algorithms.base import Turn
from flow_factory.config import RunConfig, plan_of
from flow_factory.config.datasets import datasets_of
from flow_factory.data.encoding_windows import rows_evaluated
from flow_factory.models import MODELS

MOST = 0.1
"""Of the epochs between two evaluations, what an evaluation may take without a remark."""
BACKWARD = 2
"""The approximate cost of a backward in forwards. Recomputation adds one."""


def evaluation_forwards(config: RunConfig, rows: int) -> int:
    """Forwards of one sample through the transformer that a process does in an evaluation of so many rows."""
    section, family = config.eval, MODELS[config.model.model_type]
    passes = family.passes({"guidance_scale": section.guidance_scale, **section.call})
    return -(-rows // config.teams) * section.group_size * section.num_inference_steps * passes


def epoch_forwards(config: RunConfig) -> int:
    """Those of an epoch, in which a backward counts as `BACKWARD` of them, or one more."""
    train, plan, family = config.train, plan_of(config), MODELS[config.model.model_type]
    rolled = family.passes({"guidance_scale": train.guidance_scale, **train.call})
    drawn = 0 if train.given else plan.micro_batches_per_rank * train.num_inference_steps * rolled
    points = plan.trained_batches_per_rank * plan.trained_points
    return round(plan.per_device_batch_size * (drawn + points * _point_forwards(config, rolled)))


def _point_forwards(config: RunConfig, rolled: int) -> float:
    """Those of a training point in an epoch, of every network in its turn.

    Args:
        rolled: forwards of a velocity with the rollout's guidance.
    """
    train, plan, family = config.train, plan_of(config), MODELS[config.model.model_type]
    algorithm = ALGORITHMS[train.trainer_type](train, config.scheduler)
    again, trained = plan.num_inner_epochs, 1 + BACKWARD + bool(train.enable_gradient_checkpointing)

    def passes(weights: str, guidance: float | None = None) -> int:
        scale = algorithm.guidance(weights) if guidance is None else guidance
        return rolled if scale is None else 2 if scale > 1 and family.cfg is not None else 1

    def cost(turn: Turn) -> float:
        others = sum(passes(*query) for query in turn.needs) * (1 if algorithm.precomputes_velocities else again)
        surveyed = turn.precompute is not None and algorithm.scope == "group" and train.group_size > plan.per_device_batch_size
        return (again * (trained + surveyed) * passes(turn.network) + others) / config.frequency_of(turn.network)

    return sum(map(cost, algorithm.turns(0)))


def evaluation_lines(config: RunConfig, tests: Mapping[str, int]) -> list[str]:
    """What an evaluation takes, and a remark where it is much.

    Args:
        tests: test rows that there are of each data set that is evaluated.
    """
    freq = config.eval.eval_freq
    if not tests or not freq:
        return ["evaluation: none"]
    alone = {dataset.name: dataset.config for dataset in datasets_of(config)}
    shares = {name: _share(alone[name], test) for name, test in tests.items()}
    lines = [f"{name}: {line}" if name else line for name, test in tests.items() for line in _lines(alone[name], test, shares[name])]
    if sum(shares.values()) > MOST:
        a_row = [share / -(-len(rows_evaluated(alone[name], tests[name])) // config.teams) for name, share in shares.items()]  # a process
        fit = int(MOST / sum(a_row))
        less = f"eval.max_rows: {max(1, fit) * config.teams} {'or' if fit else 'and'} a larger eval.eval_freq"
        lines.append(f"note: that is more than a tenth; it would be less with {less}")
    return lines


def _share(config: RunConfig, test: int) -> float:
    """Of the epochs between two evaluations of so many test rows, what one takes."""
    between, family = min(config.eval.eval_freq, config.train.max_epochs or config.eval.eval_freq), MODELS[config.model.model_type]
    sizes = [family.tokens_of(section.height, section.width, section.call) for section in (config.eval, config.train)]
    mine = evaluation_forwards(config, len(rows_evaluated(config, test)))
    return mine * sizes[0] / (between * epoch_forwards(config) * sizes[1])


def _lines(config: RunConfig, test: int, share: float) -> list[str]:
    freq, last = config.eval.eval_freq, config.train.max_epochs
    rows, between = len(rows_evaluated(config, test)), min(freq, last or freq)
    mine, epoch = evaluation_forwards(config, rows), epoch_forwards(config)
    family = MODELS[config.model.model_type]
    sizes = [family.tokens_of(section.height, section.width, section.call) for section in (config.eval, config.train)]
    some = f"{rows} of {test} test rows" if rows < test else f"all {test} test rows"
    many = "the epoch" if between == 1 else f"the {between} epochs"
    lines = [
        f"evaluation: {some}, {mine} forwards of {sizes[0]} tokens a process, beside {epoch} of {sizes[1]} tokens of an epoch (a backward "
        f"counted as {BACKWARD + bool(config.train.enable_gradient_checkpointing)}): {100 * share:.2g} % of {many} between two"
    ]
    if rows < test and config.eval.full_at_end and last is not None:
        lines.append(f"the evaluation at the end takes all {test} test rows: {evaluation_forwards(config, test)} forwards a process")
    return lines
