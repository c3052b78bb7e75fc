"""`ff-train --check`: checks the inputs, prints the plan of the run, and estimates its memory. It needs no network and no GPU."""

from collections import Counter
from pathlib import Path

from flow_factory.config import RunConfig, plan_of
from flow_factory.config.datasets import datasets_of, trained_on
from flow_factory.core.ema import reported_weights
from flow_factory.data.encoding_windows import rows_needed
from flow_factory.data.inputs import condition_files
from flow_factory.data.several import sizes_of
from flow_factory.memory.checkpoint import model_of
from flow_factory.memory.encoding_plan import encoding_lines, resolve_encoding, row_size
from flow_factory.memory.fit import memory_lines
from flow_factory.memory.machine import disk_lines
from flow_factory.models import MODELS
from flow_factory.policy.compilation import MOST, describe_blocks
from flow_factory.runs.evaluation_plan import evaluation_lines
from flow_factory.runs.notices import remarks
from flow_factory.runs.preflight import Preflight, ready
from flow_factory.runs.resume import start_lines
from flow_factory.runs.rows import drawn, groups_left_out, takes_files
from flow_factory.runs.run_folder import default_name
from flow_factory.utils.counting import counted
from flow_factory.utils.hub import cached

MANY = {"image": "images", "mask": "masks", "video": "videos", "audio": "sounds"}
"""Kinds of condition files, several of them."""


def check(config: RunConfig) -> str:
    """The report on a valid config; see `report`."""
    return report(config)[0]


def report(config: RunConfig, gpu: float | None = None) -> tuple[str, bool]:
    """The plan and the requirements of a run, and whether it fits its GPUs: of `gpu` GB each, or this machine's.

    Raises:
        UserError: a start would be refused.
    """
    found = ready(config, remote=False, here=gpu is None)
    model = model_of(found.config)
    sizes, tests = sizes_of(found.rows), {name: len(rows) for name, rows in found.tests.items()}
    config = resolve_encoding(found.config, sizes, model, gpu)
    memory, fits = memory_lines(config, gpu)
    encoded = encoding_lines(config, sizes, tests, row_size(config, model))
    parts = [("data", [*data_lines(found), *encoded]), ("rewards", reward_lines(found)), ("checkpoint", checkpoint_lines(config))]
    begins = [str(found.finished)] if found.finished else start_lines(config, found.start, found.changed)
    disk = disk_lines(config, model.weights(config)) if model is not None else []
    parts += [
        ("start", begins),
        ("plan", [*plan_lines(config), *evaluation_lines(config, tests), *disk, *compiled_lines(found)]),
        ("memory of one process", memory),
    ]
    return "\n".join(line for title, lines in parts for line in (f"{title}:", *(f"  {line}" for line in lines))), fits


def data_lines(found: Preflight) -> list[str]:
    sizes, lines = iter(sizes_of(found.rows)), []
    total = sum(dataset.weight for dataset in trained_on(found.config))
    for dataset in datasets_of(found.config):
        data, tested = dataset.config.data, found.tests.get(dataset.name)
        parts = [f"{next(sizes)} training rows"] if dataset.weight else []
        parts += [f"{len(tested)} test rows"] if tested else []
        share = f", {dataset.weight} of {total} groups" * bool(dataset.weight and dataset.name and not found.config.train.given)
        lines.append(f"{f'{dataset.name}: ' * bool(dataset.name)}{data.dataset_dir}: {', '.join(parts)}{share}")
    if not found.tests:
        lines.append("no test split: nothing will be evaluated")
    return lines + file_lines(found) if takes_files(found.config) else lines


def file_lines(found: Preflight) -> list[str]:
    """Lines about the files of rows, and how they were checked."""
    files, given, learnt = set[tuple[str, str]](), found.config.train.given, 0
    for _, row, trained in drawn(found.config, found.rows, found.tests):
        files.update(condition_files(row))
        learnt += trained and bool(given)
    counts = Counter(kind for _, kind in files)
    parts = [f"{counts[kind]} {many}" for kind, many in MANY.items() if counts[kind] or kind in ("image", "video")]
    lines = [f"condition files, all of each decoded: {', '.join(parts)}"] if files else []
    what = "pairs of chosen and rejected media" if len(given) > 1 else "targets"
    lines += [f"{what}, all of each decoded: {learnt}"] if learnt else []
    if lines and len(rows_needed(found.config, sizes_of(found.rows))) < len(found.rows):
        lines.append("files of rows that the run does not draw: they exist, and were not opened")
    return lines


def reward_lines(found: Preflight) -> list[str]:
    lines = []
    for dataset in datasets_of(found.config):
        alone, of = dataset.config, f" on {dataset.name}" * bool(dataset.name)
        used = [(f"training{of}", alone.rewards)] * bool(dataset.weight)
        used += [(f"evaluation{of}", alone.evaluated_by)] * (dataset.evaluated is not False)
        for purpose, entries in used:
            lines.append(f"{purpose}: {', '.join(f'{e.name} = {e.weight:g} x {e.reward_model}' for e in entries) or 'none'}")
    return lines + groups_left_out(found.config, found.tests)


def compiled_lines(found: Preflight) -> list[str]:
    """Lines about the number of shapes for `model.compile`."""
    config = found.config
    if not config.model.compile:
        return []
    what = f"compiled by {config.model.compile_backend}"
    if found.sketch is not None:
        what += f": {describe_blocks(found.sketch.field.bare.values())}"
    pads = MODELS[config.model.model_type].pads_prompts
    chosen = (found.rows[k] for k in rows_needed(config, sizes_of(found.rows)))
    rows = {(None if pads else row.prompt, *(found.sizes.get(file) for file, _ in condition_files(row))) for row in chosen}
    much = f"{len(rows)} shape{'s' * (len(rows) > 1)}" if pads else f"as many shapes as prompts have lengths, {len(rows)} at most"
    return [f"{what}; the training rows make {much}, each compiled separately; more than {MOST} are refused"]


def checkpoint_lines(config: RunConfig) -> list[str]:
    """A line about the place of the checkpoint."""
    name = config.model.model_name_or_path
    folder = Path(name)
    if folder.is_dir():
        return [f"{folder}: on disk, {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) / 1e9:.3g} GB"]
    if cached(name, "model_index.json") is not None:
        return [f"{name}: in the hub's cache"]
    size = sum(MODELS[config.model.model_type].published_as(name)[0].values()) * 2e-9
    much = f" (about {size:.0f} GB in 16 bits)" if size else ""
    return [f"{name}: not on this machine; from the hub it would be downloaded{much}"]


def plan_lines(config: RunConfig) -> list[str]:
    plan = plan_of(config)
    lines = [f"{what}: {much}" for what, much in plan.describe()]
    epochs = config.train.max_epochs
    if config.train.stochastic:
        steps = config.scheduler.stochastic_steps(config.train.num_inference_steps, config.train.first_step)
        lines.append(f"trained steps: {plan.trained_points} of {list(steps)}, step_selection: {config.scheduler.step_selection}")
    lines.append(
        "run: "
        + (
            "until it is stopped"
            if epochs is None
            else f"{counted(epochs, 'epoch')}, {counted(epochs * plan.optimiser_steps_per_epoch, 'optimiser step')}"
        )
    )
    lines.append(f"evaluated and saved: {reported_weights(config.train)}")
    lines += [f"note: {line}" for line in remarks(config)]
    keeps = "weights alone" if config.log.save_model_only else "weights and the whole training state"
    times = [f"every {config.log.save_freq} epochs"] if config.log.save_freq else []
    times += [f"after {config.log.save_minutes:g} minutes"] if config.log.save_minutes is not None else []
    every = " and ".join([", ".join(times), "at the end"] if times else ["at the end"])
    default = f"{default_name(config, '<time>')} (run_name gives it another name)" if config.model.resume_path is None else "<run name>"
    name = config.log.run_name or default
    lines.append(f"checkpoints: {keeps}, {every}, under {config.log.save_dir}/{name}")
    return lines
