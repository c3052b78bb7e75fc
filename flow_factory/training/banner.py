"""The first lines of a run: the model, the data, the plan, the saved weights, and where to look."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from flow_factory.core.ema import reported_weights
from flow_factory.data.encoding_windows import rows_tested
from flow_factory.policy.gradient_checkpointing import describe_blocks
from flow_factory.utils.counting import counted

if TYPE_CHECKING:
    from flow_factory.training.evaluation import Evaluator
    from flow_factory.training.run import Run


def banner(run: "Run") -> dict[str, str]:
    """What there is to say of a run that is ready to start, by title."""
    return {
        "run": f"{run.folder}{f', resumed after epoch {run.context.progress.epoch}' if run.resumes else ''}",
        "model": f"{run.context.config.model.model_name_or_path} ({run.context.config.model.model_type})",
        "trained": trained(run),
        "device": device(run),
        "plan": plan(run),
        **recomputed(run),
        "weights": f"evaluated and saved: {reported_weights(run.context.config.train)}",
        "watch": f"{run.folder / 'report.html'}, {run.folder / 'curves.png'} and, after every epoch, {run.folder / 'metrics.jsonl'}",
    }


def aligned(rows: Mapping[str, str]) -> str:
    """A line each."""
    return "\n".join(f"{title:<8} {text}" for title, text in rows.items())


def trained(run: "Run") -> str:
    """The kind of weights, their components, and the number of parameters."""
    model, policy, engine = run.context.config.model, run.context.policy, run.context.engine
    many = sum(engine.shape(p).numel() for p in policy.trained().values())
    what = f"a LoRA of rank {model.lora_rank} for" if model.finetune_type == "lora" else "weights of"
    return f"{what} {', '.join(policy.models)}: {many / 1e6:.3g} M parameters"


def device(run: "Run") -> str:
    """The device, and with several processes the engine."""
    accelerator = run.context.accelerator
    cuda = accelerator.device.type == "cuda"
    one = torch.cuda.get_device_name(accelerator.device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    many = f"; {run.context.engine.name}, {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    return one + many


def plan(run: "Run") -> str:
    """Epochs, samples, steps, evaluations."""
    config, plan = run.context.config, run.context.plan
    epochs = counted(config.train.max_epochs, "epoch") if config.train.max_epochs else "epochs until it is stopped"
    kind = "pairs" if len(config.train.given) > 1 else "targets"
    made = f"{kind} of the data set" if config.train.given else f"samples ({plan.groups} groups of {plan.group_size})"
    much = plan.rows_per_epoch if config.train.given else plan.samples_per_epoch
    steps = plan.optimiser_steps_per_epoch
    text = f"{config.train.trainer_type}, {epochs} of {much} {made} and {steps} optimiser step{'s' * (steps > 1)}"
    if not run.evaluators or config.eval.eval_freq == 0:
        return f"{text}; no evaluation"
    full = " (there all of them)" if any(len(rows_tested(e.context.config, len(e.rows))) > len(e.usual) for e in run.evaluators) else ""
    return f"{text}; {tested(run.evaluators)} are drawn at the start, every {counted(config.eval.eval_freq, 'epoch')} and at the end{full}"


def tested(evaluators: "Sequence[Evaluator]") -> str:
    """The rows of every evaluation."""
    each = [(e.name, len(e.usual), len(e.rows)) for e in evaluators]
    parts = [f"{f'{name}: ' * bool(name)}{some}{f' of {every}' * (some < every)}" for name, some, every in each]
    return f"{', '.join(parts)} test rows"


def recomputed(run: "Run") -> dict[str, str]:
    """The number of blocks that are recomputed in the backward pass, if any."""
    setting = run.context.config.train.enable_gradient_checkpointing
    why = " (auto)" * (run.recompute_fallback is not None)
    much = describe_blocks(setting, run.context.policy.models.values())
    return {"memory": f"{much} are recomputed in the backward pass{why}"} if setting or why else {}
