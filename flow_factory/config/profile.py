"""`profile:` which steps of a run are traced."""

from typing import Annotated, Literal

from pydantic import Field

from flow_factory.config.base import Section

Steps = Annotated[int, Field(ge=1, le=10_000)]


class ProfileConfig(Section):
    """What torch's profiler records of one epoch: one trace file per phase (rollout, reward, optimise). Without this section, nothing."""

    epoch: int = Field(2, ge=1, description="epoch to trace, counted from 1; the first epoch also compiles, tunes and fills caches")
    steps: Steps = Field(3, description="number of pipeline calls of the rollout, and of micro-batches of the training, to trace")
    memory: bool = Field(False, description="also record memory allocations")
    processes: Literal["main", "all"] = Field("main", description="which processes are traced, each into its own file")
