"""Hints about relative paths, which start in the current folder: whether a missing one exists elsewhere."""

from pathlib import Path

from flow_factory.config.base import ConfigError
from flow_factory.config.datasets import datasets_of
from flow_factory.config.run import RunConfig
from flow_factory.utils.errors import file_errors
from flow_factory.utils.files import absolute

ROOTS = (".git", "pyproject.toml")
"""Files that mark the root of a checkout."""


def elsewhere(path: str, file: Path, inside: str = "") -> str:
    """A hint if a relative path does not exist in the current folder, but in the YAML's folder or one above it in its checkout.

    Args:
        inside: a file that the folder must have.
    """
    if Path(path).is_absolute() or Path(path).exists():
        return ""
    for folder in absolute(file).parents:
        if (folder / path / inside).exists():
            return f"there is no {path} in {Path.cwd()}, and there is one in {folder}: start there, or write {folder / path}"
        if any((folder / name).exists() for name in ROOTS):
            break
    return ""


def require_places(config: RunConfig, file: Path) -> None:
    """Checks the relative paths before a run or a check.

    Raises:
        ConfigError: paths that lead nowhere from here and somewhere from the YAML's folder or its checkout, a line each.
    """
    model = config.model
    paths = [("model.model_name_or_path", model.model_name_or_path, "model_index.json")]
    paths += [(f"{dataset.key}.dataset_dir", dataset.config.data.dataset_dir, "") for dataset in datasets_of(config)]
    if model.resume_path is not None:
        paths.append(("model.resume_path", model.resume_path, ""))
    lines: list[str] = []
    for key, path, inside in paths:
        with file_errors(key, path, "the user that runs this must be able to read it", ConfigError):
            lines += [f"{key}: {message}"] if (message := elsewhere(path, file, inside)) else []
    if lines:
        raise ConfigError("\n".join(lines))
