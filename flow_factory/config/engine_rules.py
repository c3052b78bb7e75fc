"""Rules about how processes share the work. Each yields what breaks it."""

from collections.abc import Iterator

from flow_factory.config.algorithm_rules import Rule, rounded
from flow_factory.config.base import ConfigError
from flow_factory.config.engine import EngineSettings
from flow_factory.config.nodes import Problem
from flow_factory.config.run import RunConfig


def engine_fits(config: RunConfig) -> Iterator[Problem]:
    try:
        engine = config.engine
    except ConfigError as error:
        yield Problem(("config_file",), str(error).removeprefix("config_file: "))
        return
    if engine.kind != "ddp" and config.mixed_precision == "fp16":
        yield Problem(("mixed_precision",), f"fp16 needs a loss scale, and {engine.name} has none for weights of another dtype; write bf16")
    if engine.shards_optimizer and (kind := config.train.optimizer) != "adamw":
        why = " (it steps whole matrices)" if kind == "muon" else ""
        text = f"{kind} cannot be sharded by {engine.name}{why}; write adamw, whose state is sharded"
        yield Problem(("train", "optimizer"), text)


def teams_fit(config: RunConfig) -> Iterator[Problem]:
    team, many, engine = config.model.context_parallel, config.num_processes, engine_of_file(config)
    if many % team:
        near = max(n for n in range(1, team) if many % n == 0)
        text = f"{team} must divide num_processes={many}; write {near}, or num_processes: {rounded(many, team)}"
        yield Problem(("model", "context_parallel"), text)
    elif team > 1 and engine is not None and engine.kind != "ddp":
        text = f"{team} does not work with {engine.name}: it was only tested with whole weights on every process"
        yield Problem(("model", "context_parallel"), f"{text}; write 1, or config_file: null")


def engine_of_file(config: RunConfig) -> EngineSettings | None:
    """The engine of `config_file`; None if `engine_fits` reports a problem of the file."""
    try:
        return config.engine
    except ConfigError:
        return None


ENGINE_RULES: tuple[Rule, ...] = (engine_fits, teams_fit)
