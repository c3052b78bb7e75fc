"""The YAML of `ff-reward`: `rewards:` with an optional `server:`, or a run's YAML, of which only the rewards are used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from flow_factory.config.arguments import gather_rewards
from flow_factory.config.base import Device, Name, Section, Shown, listed
from flow_factory.config.explain import unknown_key
from flow_factory.config.loader import list_rewards, load_config, misfit
from flow_factory.config.nodes import Problem
from flow_factory.config.rewards import Rewards
from flow_factory.config.rules import names_differ
from flow_factory.config.source import Source, override, read

Devices = Annotated[tuple[Device, ...], BeforeValidator(listed), Shown("device or list of devices")]


class ServerConfig(Section):
    """`ff-reward serve`: where it listens, what computes, and how much it takes."""

    host: Name = Field("127.0.0.1", description="address to listen on; 0.0.0.0 = every network interface")
    port: int = Field(8100, ge=0, le=65535, description="TCP port; 0 = any free one, which is printed")
    token: Name | None = Field(None, description="token that clients must send as Authorization: Bearer; write ${NAME}; null = no token")
    workers: int = Field(1, ge=1, le=256, description="scoring processes per device")
    devices: Devices = Field(("auto",), description="devices that score, for example [cuda:0, cuda:1]; auto = the first GPU, else the CPU")
    max_queue: int = Field(64, ge=1, description="requests that may wait; further ones get 503 with Retry-After")
    max_queue_mb: int = Field(4096, ge=1, description="total size of the waiting requests, in MB")
    max_body_mb: int = Field(512, ge=1, description="size of one request in MB; a larger one gets 413")
    max_wait_ms: int = Field(10, ge=0, le=10_000, description="how long a batch waits for a request that is still being received, in ms")
    max_answers: int = Field(4096, ge=1, description="number of answers kept for repeated requests with the same id")
    grace: int = Field(30, ge=0, description="seconds to finish the current requests after SIGTERM or Ctrl-C")


class RewardsConfig(Section):
    """A file of rewards alone."""

    rewards: Rewards = Field(description="rewards to serve or examine")
    server: ServerConfig = Field(description="settings of ff-reward serve")


def load_rewards_config(path: str | Path, overrides: Sequence[str] = ()) -> RewardsConfig:
    """Reads and checks the YAML; nothing heavy is imported.

    Args:
        overrides: `server.port=9000`, `rewards.0.batch_size=8`, or a run's `section.key=value`.

    Raises:
        ConfigError: all that is wrong with it.
    """
    source = read(Path(path))
    if "model" not in source.tree:
        for text in overrides:
            override(source, text)
        list_rewards(source)
        gather_rewards(source)
        return _validated(source)
    of_server = [text for text in overrides if text.startswith("server.")]
    run = load_config(path, [text for text in overrides if text not in of_server])
    source.tree = {"rewards": run.rewards}
    for text in of_server:
        override(source, text)
    return _validated(source)


def _validated(source: Source) -> RewardsConfig:
    source.tree["server"] = source.tree.get("server") or {}
    try:
        config = RewardsConfig.model_validate(source.tree)
    except ValidationError as error:
        for one in error.errors():
            keys = one["loc"]
            own = (ServerConfig if keys[0] == "server" and len(keys) > 1 else RewardsConfig).own_keys()
            unknown = one["type"] == "extra_forbidden"
            source.problems.append(Problem(keys, unknown_key(str(keys[-1]), own, {})) if unknown else misfit(source, keys, one))
        source.fail()
        raise
    source.problems += names_differ("rewards", config.rewards)
    source.fail()
    return config
