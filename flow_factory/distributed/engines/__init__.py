"""Engines divide a run's work among its processes: plain data parallel, FSDP2, DeepSpeed. The rest of the program uses only `Engine`."""

from accelerate import Accelerator

from flow_factory.config.engine import EngineSettings
from flow_factory.distributed.engines.base import Engine

__all__ = ["Engine", "make_engine"]


def make_engine(settings: EngineSettings, accelerator: Accelerator, max_norm: float) -> Engine:
    """Raises:
    UserError: what the engine cannot do here, or a package that it needs.
    """
    if settings.kind == "fsdp":
        from flow_factory.distributed.engines.fsdp import FullyShard

        return FullyShard(settings, accelerator, max_norm)
    if settings.kind == "zero":
        from flow_factory.distributed.engines.zero import Zero

        return Zero(settings, accelerator, max_norm)
    return Engine(settings, accelerator, max_norm)
