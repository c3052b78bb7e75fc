"""Estimates of a run's peak memory by part, on the device of one process and in main memory."""

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

from flow_factory.algorithms import ALGORITHMS
from flow_factory.config import RunConfig, plan_of
from flow_factory.config.engine import EngineSettings
from flow_factory.config.recompute import chosen_blocks, every_block
from flow_factory.data.encoding_windows import idle_of, in_windows
from flow_factory.distributed.engines.zero import BUCKET
from flow_factory.memory.parts import ACTIVATIONS, CONTEXT, Part
from flow_factory.memory.rollout import DRAWING, drawn, pictures, sloping
from flow_factory.memory.sizes import Files, Weights, weights_of, width_of
from flow_factory.models.base import ModelAdapter
from flow_factory.models.loading import DTYPES
from flow_factory.utils.tensor_file import NAMES

LIVE = 1_000_000_000
"""DeepSpeed's default of stage3_max_live_parameters, in elements."""


def estimate(
    config: RunConfig, family: type[ModelAdapter], parameters: dict[str, float], module: Any, files: Files = MappingProxyType({})
) -> list[Part]:
    """Peak memory of one process, by part.

    Args:
        parameters: the number of parameters of each part of the checkpoint.
        module: the (first) trained transformer, on the meta device.
        files: the stored dtypes of each part. A part that is missing here is assumed to be in the run's dtype.
    """
    engine = config.engine
    weights = weights_of(config, family, parameters, module)
    as_stored = not any({*files.get(part, ())} - {NAMES[DTYPES[config.mixed_precision]]} for part in family.encoders)
    parts = [*kept_weights(config, engine, weights, as_stored), *optimised(config, engine, weights), *gathered(config, engine, weights)]
    parts += [*passing(config, engine, family, module.config, weights), *conditions(config, family, module.config)]
    parts += [Part("CUDA context", CONTEXT)]
    parts += [*loading(config, family, parameters, weights, files), *pictures(config, family)]
    return [part for part in parts if part.gb > 0]


def loading(config: RunConfig, family: type[ModelAdapter], parameters: dict[str, float], weights: Weights, files: Files) -> Iterator[Part]:
    """The checkpoint's files, which all processes of a machine share, and the copies of a process until its weights are on the device.

    A transformer whose files have one dtype is cast on the device, tensor by tensor; see `Policy.materialize`.
    """
    model, precision = config.model, DTYPES[config.mixed_precision]
    half, others = precision.itemsize, {part for part in parameters if {*files.get(part, ())} - {NAMES[precision]}}
    sizes = {part: sum(files[part].values()) if part in files else half * n for part, n in parameters.items()}
    yield Part("files of the checkpoint, while they are loaded", sum(sizes.values()) * 1e-9, "encoding", host=True, shared=True)
    cast = others - {*family.components}
    yield Part("text encoders and VAE in mixed_precision", sum(half * parameters[part] for part in cast) * 1e-9, "encoding", host=True)
    experts = {part for part in family.components if part in parameters}
    if (model.quantization or "").startswith("bnb"):
        return
    fewer = weights.frozen + weights.experts if model.quantization or model.layerwise_casting else 0.0
    mixed = others & experts if fewer else {part for part in experts if len(files.get(part, ())) > 1}
    trained = {*model.target_components} if model.finetune_type == "full" else set()
    width = {part: DTYPES[model.master_weight_dtype].itemsize if part in trained else half for part in mixed}
    copied = sum(parameters[part] * width[part] for part in mixed)
    yield Part("transformers, until they are on the device", max(fewer, copied) * 1e-9, "encoding", host=True)


def kept_weights(config: RunConfig, engine: EngineSettings, weights: Weights, shared: bool = True) -> Iterator[Part]:
    """All weights, and the copies of the trained ones.

    Args:
        shared: see `later_encoders`.
    """
    model = config.model
    share = 1e-9 / (config.sharers if engine.shards_weights else 1)
    beside = weights.experts if engine.shards_weights else 0.0  # sharded as well
    yield Part("frozen weights", (weights.frozen + beside) * share, host=engine.offload)
    idle, aside = "VAE and other parts of a rollout", (weights.experts - beside + weights.rest) * 1e-9
    if model.offload_idle:
        yield Part(f"{idle}, while they wait", aside, host=True)
    yield Part(idle, aside, "rollout" if model.offload_idle else "always")
    loaded = weights.frozen + weights.experts if (model.quantization or "").startswith("bnb") else 0.0  # straight to the device
    yield Part("text encoders and VAE, until the rows are encoded", (weights.encoders + weights.rest + loaded) * 1e-9, "encoding")
    yield from later_encoders(config, weights.encoders * 1e-9, shared)
    master = DTYPES[model.master_weight_dtype].itemsize
    every = weights.trained * (1 + len(config.train.networks))
    yield Part(f"trained weights ({every / 1e6:.1f} M)", every * master * share, host=engine.offload)
    devices = copies_of(config)
    for host in (False, True):
        copies = sum((device == "cpu" or engine.offload) == host for device in devices)
        yield Part(f"copies of trained weights ({copies})", copies * weights.trained * 4 * share, host=host)
    if devices:
        yield Part("trained weights, while a copy is in their place", weights.trained * master * share, "rollout", engine.offload)


def copies_of(config: RunConfig) -> list[str]:
    """The device, as written in the config, of each copy of trained weights that a run keeps."""
    train = config.train
    algorithm = ALGORITHMS[train.trainer_type](train, config.scheduler)
    devices = [average.device for average in algorithm.averages.values()]
    devices += [file.device for file in algorithm.files.values()]
    devices += [train.ema_device] * (train.ema_decay > 0)
    kept = "ref" in algorithm.weights and (config.model.finetune_type == "full" or train.reference == "start" or train.moves_reference)
    return devices + [train.ref_param_device] * kept


def later_encoders(config: RunConfig, gb: float, shared: bool) -> Iterator[Part]:
    """The text encoders of a run that encodes rows while it trains.

    Args:
        shared: whether the encoders are used in the dtype of their files.
    """
    idle = idle_of(config)
    if idle == "keep":
        yield Part("text encoders, which stay", gb)
    elif in_windows(config):
        yield Part("text encoders, while a window of rows is encoded", gb, "window")
        if idle == "offload":
            yield Part("text encoders between two windows, as in their files", gb, host=True, shared=shared)


def optimised(config: RunConfig, engine: EngineSettings, weights: Weights) -> Iterator[Part]:
    """Gradients and the optimiser's state."""
    zero = engine.kind == "zero"
    master = DTYPES[config.model.master_weight_dtype].itemsize
    host = engine.offload_optimizer or (engine.kind == "fsdp" and engine.offload)
    moment = 4 if zero else master  # DeepSpeed's optimiser works on its own float32 weights
    state = {"adamw8bit": 2, "muon": moment}.get(config.train.optimizer, 2 * moment)
    trained = weights.trained * (1 + len(config.train.networks))
    share = trained * 1e-9 / (config.sharers if engine.shards_optimizer else 1)
    yield Part("optimiser state", state * share, host=host)
    if zero and (engine.stage < 3 or master < 4 or host):
        yield Part("DeepSpeed's own float32 weights", 4 * share, host=host)
    whole = trained * master * 1e-9
    summed = engine.kind == "fsdp" and config.model.finetune_type == "lora"  # reduced once an optimiser step
    if summed or not engine.shards_gradients:
        yield Part("gradients", whole, "training")
    if engine.shards_gradients:
        yield Part("gradients, this process's", (4 if zero else master) * share, "training", host)
    if zero and engine.stage < 3:
        yield Part("gradients, flat and float32 for the step", 4 * share, "training", host)


def gathered(config: RunConfig, engine: EngineSettings, weights: Weights) -> Iterator[Part]:
    """The weights that sharding engines gather temporarily."""
    if engine.kind == "fsdp":
        few = min(weights.gathered, weights.root + 2 * weights.block) * 1e-9
        yield Part("gathered weights: a block and the next", few if engine.reshard else 0.0)
        yield Part("gathered weights", 0.0 if engine.reshard else weights.gathered * 1e-9)
        if engine.keep and engine.reshard:
            yield Part("gathered weights, kept through a rollout or evaluation", weights.gathered * 1e-9 - few, "rollout")
    if engine.kind == "zero":
        zero = engine.extra.get("zero_optimization") or {}
        master = DTYPES[config.model.master_weight_dtype].itemsize
        if engine.stage == 3:
            whole = weights.frozen + weights.trained * master
            live = _number(zero.get("stage3_max_live_parameters"), LIVE) * DTYPES[config.mixed_precision].itemsize
            yield Part("gathered weights", (min(live, whole) if every_block(config.train.enable_gradient_checkpointing) else whole) * 1e-9)
        buckets = 2 if engine.stage < 3 and zero.get("overlap_comm") is True else 1
        size = _number(zero.get("reduce_bucket_size"), min(BUCKET, weights.trained))
        yield Part("DeepSpeed's gradient bucket (reduce_bucket_size)", buckets * size * master * 1e-9, "training")


def passing(config: RunConfig, engine: EngineSettings, family: type[ModelAdapter], shape: Any, weights: Weights) -> Iterator[Part]:
    """The memory that depends on the size of the images: activations, stored states, decoding."""
    train, half = config.train, DTYPES[config.mixed_precision].itemsize
    algorithm, plan = ALGORITHMS[train.trainer_type](train, config.scheduler), plan_of(config)
    tokens, n = family.tokens_of(train.height, train.width, train.call), train.per_device_batch_size
    between = tokens * width_of(shape) * half * n
    kept = kept_activations(between, weights.layers, chosen_blocks(train.enable_gradient_checkpointing, weights.layers))
    if algorithm.guidance("policy") is None:  # otherwise training needs no negative prompt
        kept *= family.passes({"guidance_scale": train.guidance_scale, **train.call})
    if engine.in_step and config.num_processes > 1:  # processes whose noise levels are of different experts run all of them
        kept *= len(config.model.target_components)
    kept /= config.model.context_parallel
    yield Part("activations", kept * 1e-9, "training")
    if config.model.compile:
        yield Part("activations of a compiled forward, let go of after it", kept * plan.drawn_together * 1e-9, "rollout")
    yield Part("weights brought to mixed_precision or measured, some at a time", weights.brought * 1e-9, "training")
    yield Part(DRAWING, drawn(config, family, shape), "rollout")
    if algorithm.through_sampler:
        beside = weights.rest * 1e-9 if config.model.offload_idle else 0.0  # the VAE, which is brought back
        yield Part("VAE's forward and backward, for the gradient of the rewards", beside + sloping(config, family), "slope")
    states = 2 * DTYPES[train.latent_storage_dtype].itemsize * plan.trained_points if train.stochastic else half
    states += half * plan.trained_points if train.by_dynamics else 0  # the end of a step is the start of the next one
    networks = len(algorithm.weights) - max(0, len(algorithm.files) - 1)  # a row uses one teacher
    others = (half * networks + 4 * algorithm.with_mean) * plan.trained_points  # velocities of kept weights, means
    rolled, learnt = (k * n for k in (plan.micro_batches_per_rank, plan.trained_batches_per_rank))
    yield Part("kept latents", tokens * 64 * (states * rolled + others * learnt) * 1e-9, host=train.offload_samples_to_cpu)


def conditions(config: RunConfig, family: type[ModelAdapter], shape: Any) -> Iterator[Part]:
    """The encoded prompts of an epoch's rows: one for each row, whatever the number of its micro-batches."""
    train, plan, waits = config.train, plan_of(config), config.train.offload_samples_to_cpu
    rows = plan.rows_per_epoch // plan.rolled.teams if plan.rolled.whole else min(plan.rows_per_epoch, plan.micro_batches_per_rank)
    algorithm = ALGORITHMS[train.trainer_type](train, config.scheduler)
    scales = [train.guidance_scale, *(scale for name in algorithm.weights if (scale := algorithm.guidance(name)) is not None)]
    guided = max(family.passes({**train.call, "guidance_scale": scale}) for scale in scales) > 1
    size = row_bytes(config, family, shape) * (2 if guided else 1) * 1e-9
    yield Part(f"conditions of an epoch's rows ({rows})", rows * size, host=waits)
    yield Part("condition of the row at work", size if waits else 0.0)


def row_bytes(config: RunConfig, family: type[ModelAdapter], shape: Any) -> float:
    """The bytes of a prompt's embeddings, at most. Condition images are not counted.

    Args:
        shape: the config of the first transformer.
    """
    tokens = config.train.call.get("max_sequence_length", family.text_length)
    return family.embedded(shape, tokens) * DTYPES[config.mixed_precision].itemsize


def kept_activations(between: float, layers: int, recomputed: Sequence[int]) -> float:
    """The bytes of activations that the backward of a transformer needs.

    Args:
        between: the bytes of all tokens between two layers.
        recomputed: indices of the layers that store only their input. While one of them is recomputed, the activations of earlier layers
            are still stored, and those of later layers are freed.
    """
    kept = [k for k in range(layers) if k not in recomputed]
    at_once = max([len(kept), *(1 + sum(k < again for k in kept) for again in recomputed)])
    return (len(recomputed) + ACTIVATIONS / 2 * at_once) * between


def _number(value: Any, default: int) -> float:
    """A number of a DeepSpeed file, in which `auto` stands for the default."""
    return default if value in (None, "auto") else float(value)
