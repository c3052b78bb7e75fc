"""Flow-Factory: reinforcement learning for flow-matching image and video generators."""

TYPE_CHECKING = False
if TYPE_CHECKING:  # nothing is imported here: the current folder may still be in front of Python's own modules
    from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> "Any":
    """`load_adapter` and `load_config`, imported at the moment of use: torch takes seconds."""
    if name == "load_adapter":
        from flow_factory.models.loading import load_adapter

        return load_adapter
    if name == "load_config":
        from flow_factory.config import load_config

        return load_config
    raise AttributeError(f"module 'flow_factory' has no attribute {name!r}")
