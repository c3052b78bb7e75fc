"""`profile:` which steps of a run are traced."""

from typing import Annotated, Literal

from pydantic import Field

from flow_factory.config.base import Section

Steps = Annotated[int, Field(ge=1, le=10_000)]


class ProfileConfig(Section):
    """What torch's profiler records of one epoch, a trace file for each of its phases: rollout, reward, optimise. Absent: nothing."""

    epoch: int = Field(2, ge=1, description="the epoch that is traced, from 1; the first one compiles, tunes and fills caches")
    steps: Steps = Field(
        3, description="of a rollout and of the training, calls of the pipeline and micro-batches that are traced: the first ones"
    )
    memory: bool = Field(False, description="record what is allocated and freed, too")
    processes: Literal["main", "all"] = Field("main", description="which of several processes are traced, each into a file of its own")
