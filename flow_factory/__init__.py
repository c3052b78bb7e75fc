"""Flow-Factory: reinforcement learning for flow-matching image and video generators."""

TYPE_CHECKING = False
if TYPE_CHECKING:  # nothing is imported here: the current folder may still be in front of Python's own modules
    import os
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from flow_factory.commands.training import TrainResult
    from flow_factory.config import RunConfig, load_config
    from flow_factory.models.loading import load_adapter
    from flow_factory.utils.errors import RunError, UserError

    Reward = str | Mapping[str, Any] | Callable[..., Any]

__version__ = "0.1.0"
__all__ = ["RunError", "UserError", "load_adapter", "load_config", "train"]


def train(
    config: "str | os.PathLike[str] | Mapping[str, Any] | RunConfig",
    overrides: "Mapping[str, Any] | Sequence[str] | None" = None,
    *,
    rewards: "Reward | Sequence[Reward] | Mapping[str, Reward] | None" = None,
    eval_rewards: "Reward | Sequence[Reward] | Mapping[str, Reward] | None" = None,
    **keys: "Any",
) -> "TrainResult":
    """Trains in this process, as `ff-train CONFIG` does, and returns its summary as data.

        def light(images, prompts, **columns):
            return [sum(image.convert("L").tobytes()) / (255 * image.width * image.height) for image in images]

        result = flow_factory.train("run.yaml", {"train.learning_rate": 1e-4}, rewards=[light, "PickScore"], run_name="light")
        result.before, result.after, result.checkpoint

    Args:
        config: a run's YAML file, its content as a dict, or what `load_config` returns.
        overrides: dotted key -> value, or `section.key=value` as on the command line.
        rewards: replaces the rewards of the config: names, entries, functions or classes; one, several, or a mapping by name. A later
            `ff-train` of the run's config.yaml can only find a function that a module has under its name.
        eval_rewards: the same for evaluations.
        keys: sections and keys of the top level: `train={"max_epochs": 20}, run_name="test"`.

    Raises:
        UserError: the config is wrong, or something that it names is missing. Nothing was trained.
        RunError: the run failed.
        KeyboardInterrupt: the run was stopped, and its state is saved.
    """
    from flow_factory.commands.training import train

    return train(config, overrides, rewards=rewards, eval_rewards=eval_rewards, **keys)


def __getattr__(name: str) -> "Any":
    """Imports the rest when it is used, because torch takes seconds."""
    if name == "load_adapter":
        from flow_factory.models.loading import load_adapter

        return load_adapter
    if name == "load_config":
        from flow_factory.config import load_config

        return load_config
    if name in ("RunError", "UserError"):
        from flow_factory.utils import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'flow_factory' has no attribute {name!r}")
