"""Builds a run from a config. This is the only file that imports every folder. `python -m flow_factory.train` is `ff-train`."""

if __name__ == "__main__":  # before anything heavy: a bad config is said in a second
    from flow_factory.command import run

    run()

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import FunctionType, ModuleType

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, patch_environment

from flow_factory import train
from flow_factory.algorithms import ALGORITHMS
from flow_factory.algorithms.base import Algorithm
from flow_factory.config import RunConfig, pipeline_kwargs, plan_of
from flow_factory.config.datasets import datasets_of, trained_on
from flow_factory.config.engine import EngineSettings, engine_of
from flow_factory.config.profile import ProfileConfig
from flow_factory.config.recompute import AUTO
from flow_factory.data.given import GivenMedia
from flow_factory.data.several import sizes_of
from flow_factory.distributed import liveness
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.distributed.engines import Engine, make_engine
from flow_factory.distributed.rendezvous import join_group, limit_groups
from flow_factory.memory.auto import decoding, recomputing, resharding, resolve_auto
from flow_factory.memory.checkpoint import model_of
from flow_factory.memory.encoding_plan import resolve_encoding, with_data
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.policy.attention import without_cudnn
from flow_factory.policy.gradient_checkpointing import RecomputeFallback
from flow_factory.policy.vae import able
from flow_factory.rewards.loading import arguments
from flow_factory.rewards.scoring import RewardSet, load_rewards
from flow_factory.runs.claim import begin, choose_for_all, claim_folder, missed, require_shared
from flow_factory.runs.identity import identity_of
from flow_factory.runs.notices import guided_rollouts
from flow_factory.runs.preflight import Preflight, ready
from flow_factory.runs.rows import groups_left_out, max_group
from flow_factory.runs.run_folder import RunFolder
from flow_factory.runs.save_formats import SaveFormats
from flow_factory.runs.training_state import Progress, load
from flow_factory.training.context import TrainingContext
from flow_factory.training.encoding import Encoding
from flow_factory.training.evaluation import Evaluator
from flow_factory.training.kept_weights import copies_base, keep_copies
from flow_factory.training.meter import Meter
from flow_factory.training.model_setup import open_adapter, prepare_policy, require_proofs
from flow_factory.training.run import Run
from flow_factory.training.saver import Saver
from flow_factory.training.schedule import make_schedule
from flow_factory.training.text_encoders import Encoders
from flow_factory.training.tracing import Tracer
from flow_factory.training.trainer import Trainer
from flow_factory.types import Cond, Row
from flow_factory.utils.errors import UserError
from flow_factory.utils.terminal import note


class _CallableModule(ModuleType):
    """Importing this module gives its name in the package to it, in the place of the function: so it is that function too."""

    __call__ = staticmethod(train)
    __signature__ = signature(train)  # which `inspect` would take for that of a method


if isinstance(train, FunctionType):  # not where the module is loaded anew
    sys.modules[__name__].__class__ = _CallableModule


def build(config: RunConfig) -> Run:
    """Everything of the run, cheapest checks first. Nothing is written into its folder before all that can be refused has been asked.

    Raises:
        UserError: what the config asks for and this machine, data set or checkpoint does not have; the message says which.
        Finished: the run that is to go on has nothing left to do.
    """
    without_cudnn()
    contradict(engine_of(config.config_file, config.model.offload_blocks))
    accelerator = make_accelerator(config)
    engine = make_engine(config.engine, accelerator, config.train.max_grad_norm)
    liveness.set_activity("examining the checkpoint and the run's folder")
    choice = choose_for_all(config, accelerator)
    found = ready(config, (accelerator.process_index, accelerator.num_processes), choice=choice)
    if found.finished is not None:
        raise found.finished
    claim, folder = claim_folder(config, found.start, accelerator)
    with claim or nullcontext():
        require_shared(folder, accelerator)
        if claim is not None:
            note(*found.changed, *guided_rollouts(found.config))
        return assemble(found, (claim, folder), accelerator, engine)


def assemble(found: Preflight, place: tuple[RunFolder | None, Path], accelerator: Accelerator, engine: Engine) -> Run:
    """Loads, encodes and wraps, and begins the run. The folder keeps the config as it was asked for."""
    requested, start, (claim, folder) = found.requested, found.start, place
    rewards, eval_rewards = open_rewards(found, accelerator)
    config = resolve_config(found.config, sizes_of(found.rows), accelerator)
    engine.settings = config.engine
    liveness.set_activity("loading the checkpoint")
    adapter = open_adapter(config)
    config = decoding(config, *able(getattr(adapter.pipe, "vae", None), config.model, requested.model))
    identity = found.identity
    if not Path(config.model.model_name_or_path).is_dir():  # it may have been downloaded since
        start.require_same(identity := identity_of(requested, found.fingerprints))
    algorithm = ALGORITHMS[config.train.trainer_type](config.train, config.scheduler, adapter.times_per_sample)
    encoders = Encoders(config, adapter, accelerator.device, accelerator.is_main_process)
    encoding = Encoding(config, encoders, algorithm, found.rows, found.tests, accelerator)
    encoding.begin(start.saved.epoch if start.saved is not None else 0)
    context = make_context(found, config, adapter, algorithm, engine, rewards, encoding.conds)
    liveness.set_activity("opening trackers")
    trackers = begin(requested, claim, start, context.progress) if claim is not None else None
    context.meter.observers += tracers(config.profile, folder, context.progress, accelerator)
    trainer = Trainer(context, encoding.reach, identity)
    evaluators = make_evaluators(context, eval_rewards, found.tests, encoding.eval_conds)
    wait_for_everyone("opening trackers")
    saver = Saver(accelerator, engine, context.store, type(adapter.pipe), config.log.keep_last_n, SaveFormats(requested, folder))
    auto = requested.train.enable_gradient_checkpointing == AUTO
    back = RecomputeFallback(list(context.policy.models.values()), config.train.enable_gradient_checkpointing) if auto else None
    unseen = claim is not None and start.resumes and missed(folder, context.progress.epoch)
    limit_groups(config.distributed_timeout)
    seen = start.saved is not None and not broadcast_object_list([unseen])[0]
    state = start.path if start.saved is not None else None
    return Run(folder, context, trainer, evaluators, trackers, saver, claim, back, start.saved is not None, seen, state)


def open_rewards(found: Preflight, accelerator: Accelerator) -> tuple[RewardSet, RewardSet]:
    """Those of training and of evaluation."""
    config = found.config
    liveness.set_activity("loading rewards")
    loaded = load_rewards(arguments(config.rewards), arguments(config.evaluated_by), accelerator, max_group(config, found.tests))
    if accelerator.is_main_process:
        note(*groups_left_out(config, found.tests))
    return loaded


def make_evaluators(
    context: TrainingContext, rewards: RewardSet, tests: Mapping[str, Sequence[Row]], conds: Mapping[str, Sequence[Cond]]
) -> tuple[Evaluator, ...]:
    """One for each data set that is evaluated. The pictures that are shown are shared out among them."""
    datasets = {dataset.name: dataset.config for dataset in datasets_of(context.config)}
    found = []
    for name, rows in tests.items():
        alone, several = datasets[name], len(tests) > 1
        shown = alone.log.model_copy(update={"num_samples": -(-alone.log.num_samples // len(tests))})
        own = replace(context, config=alone.model_copy(update={"log": shown}))
        found.append(Evaluator(own, rewards.of(name, alone.eval.group_size), rows, conds[name], name if several else ""))
    return tuple(found)


def make_context(
    found: Preflight,
    config: RunConfig,
    adapter: ModelAdapter,
    algorithm: Algorithm,
    engine: Engine,
    rewards: RewardSet,
    conds: Sequence[Cond],
) -> TrainingContext:
    """The policy in place, with its copies, optimiser and schedule, as far as the run that it goes on with has come."""
    start, train, accelerator, plan = found.start, config.train, engine.accelerator, plan_of(config)
    base = prepare_policy(config, adapter, engine, start, copies_base(config, algorithm))
    require_proofs(config, adapter, engine, conds[0])
    store = keep_copies(config, engine, algorithm, base)
    schedule = make_schedule(train, engine.optimizer, plan.optimiser_steps_per_epoch)
    progress = load(start.path, store, engine, schedule) if start.path is not None and start.saved is not None else Progress()
    call, meter = pipeline_kwargs(train), Meter(accelerator, config.model.context_parallel)
    data = {dataset.name: dataset.config.data for dataset in trained_on(config)}
    given = GivenMedia(data, adapter, train.given, call) if train.given else None
    return TrainingContext(
        config, plan, call, accelerator, adapter, algorithm, engine, store, schedule, rewards, found.rows, conds, given, progress, meter
    )


def resolve_config(config: RunConfig, sizes: Sequence[int], accelerator: Accelerator) -> RunConfig:
    """With what `auto` leaves to an estimate decided, for all processes by the main one; it says what."""
    chosen = None
    if accelerator.is_main_process:
        known = model_of(config)
        found, lines = resolve_auto(resolve_encoding(config, sizes, known), known)
        model, data = found.model, found.data
        chosen = (
            found.train.enable_gradient_checkpointing, model.reshard_after_forward, (model.vae_slicing, model.vae_tiling),
            (data.encode, data.idle_encoders),
        )  # fmt: skip
        note(*lines)
    wait_for_everyone("estimating memory")
    level, reshards, decoded, encoded = broadcast_object_list([chosen])[0]
    return decoding(resharding(recomputing(with_data(config, *encoded), level), reshards), *decoded)


def tracers(profile: ProfileConfig | None, folder: Path, progress: Progress, accelerator: Accelerator) -> list[Tracer]:
    """This process's, if it has one."""
    if profile is None or not (accelerator.is_main_process or profile.processes == "all"):
        return []
    who = (accelerator.process_index, progress, accelerator.device.type == "cuda", accelerator.is_main_process)
    return [Tracer(profile, folder, *who)]


def contradict(settings: EngineSettings) -> None:
    """Raises:
    UserError: `accelerate launch` was told another engine than the run's own `config_file`.
    """
    for variable, kind in (("ACCELERATE_USE_FSDP", "fsdp"), ("ACCELERATE_USE_DEEPSPEED", "zero")):
        requested = os.environ.pop(variable, "false").lower() == "true"  # accelerate itself is to know of data parallel only
        if requested and settings.kind != kind:
            text = f"accelerate launch was told {variable.rpartition('_')[2]}, and the run's YAML says {settings.name}"
            raise UserError(f"{text}: name accelerate's file there too, as config_file")


def make_accelerator(config: RunConfig) -> Accelerator:
    """What is around the policy; its own forward says whether it is under autocast, not accelerate."""
    join_group(config.distributed_timeout)
    several = len(config.model.target_components) > 1 or config.train.networks  # a step may be of one expert, and is of one network
    unused = MODELS[config.model.model_type].find_unused or bool(several)
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=unused)
    if torch.cuda.is_available():
        return Accelerator(mixed_precision=config.mixed_precision, kwargs_handlers=[parallel])
    with patch_environment(accelerate_torch_device="cpu"):  # not cpu:0, to which torch would copy weights that are mapped from a file
        return Accelerator(mixed_precision=config.mixed_precision, cpu=True, kwargs_handlers=[parallel])
