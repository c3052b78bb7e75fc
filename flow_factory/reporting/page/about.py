"""The config and the environment on the page of a run."""

import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from flow_factory.config import RunConfig
from flow_factory.config.changed import settings
from flow_factory.reporting.page.store import About, KeptSetting

PACKAGES = ("flow-factory", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "pillow", "deepspeed",
            "bitsandbytes", "torchao")  # fmt: skip


def about(config: RunConfig, facts: Mapping[str, str]) -> About:
    """The facts that do not change in a run, without secrets.

    Args:
        facts: what the first lines of the run say.
    """
    found = [KeptSetting(**setting._asdict()) for setting in settings(config)]
    return About(epochs=config.train.max_epochs, facts=dict(facts), settings=found, environment=environment())


def environment() -> dict[str, str]:
    """The system, and the versions of the installed packages."""
    found = {"Python": sys.version.split()[0], "system": f"{platform.system()} {platform.release()}, {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
