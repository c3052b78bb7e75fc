"""Which pipeline a checkpoint is for, and where diffusers keeps its source: nothing heavy is imported."""

import json
import re
from functools import cache
from pathlib import Path

from flow_factory.config.signature import SignatureError, spec_of


@cache
def pipeline_path(name: str) -> str:
    """`module:Class` of a pipeline of the installed diffusers.

    Raises:
        SignatureError: it has none of this name.
    """
    package = spec_of("diffusers.pipelines")
    places = map(Path, (package and package.submodule_search_locations) or ())
    files = sorted(file for place in places for file in place.glob("*/pipeline_*.py"))
    for file in files:
        if re.search(rf"^class {re.escape(name)}\(", file.read_text("utf-8"), re.MULTILINE):
            return f"diffusers.pipelines.{file.parent.name}.{file.stem}:{name}"
    raise SignatureError(f"the installed diffusers has no pipeline {name!r}")


def pipeline_name(checkpoint: str) -> str | None:
    """What model_index.json of a folder says; None where there is no such folder, or the file is damaged, which the start says."""
    index = Path(checkpoint).expanduser() / "model_index.json"
    try:
        return json.loads(index.read_text("utf-8")).get("_class_name") if index.is_file() else None
    except (ValueError, AttributeError, OSError):
        return None
