"""What the page of a run says of its config and of where it ran."""

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
    """What does not change in a run, without secrets.

    Args:
        facts: what the first lines of the run say.
    """
    found = [KeptSetting(**setting._asdict()) for setting in settings(config)]
    return About(epochs=config.train.max_epochs, facts=dict(facts), settings=found, environment=environment())


def environment() -> dict[str, str]:
    """Versions and the system; of packages that are installed."""
    found = {"Python": sys.version.split()[0], "system": f"{platform.system()} {platform.release()}, {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
