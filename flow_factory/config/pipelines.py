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
    places = [Path(place).parent for place in (package and package.submodule_search_locations) or ()]
    patterns = ("pipelines/*/pipeline_*.py", "modular_pipelines/*/modular_pipeline.py")
    files = [file for place in places for pattern in patterns for file in place.glob(pattern)]
    for file in sorted(files):
        if re.search(rf"^class {re.escape(name)}\(", file.read_text("utf-8"), re.MULTILINE):
            return f"diffusers.{file.parent.parent.name}.{file.parent.name}.{file.stem}:{name}"
    raise SignatureError(f"the installed diffusers has no pipeline {name!r}")


def pipeline_name(checkpoint: str) -> str | None:
    """What the index of a folder says; None where there is no such folder, or the file is damaged, which the start says."""
    folder = Path(checkpoint).expanduser()
    indices = [file for name in ("model_index.json", "modular_model_index.json") if (file := folder / name).is_file()]
    try:
        return json.loads(indices[0].read_text("utf-8")).get("_class_name") if indices else None
    except (ValueError, AttributeError, OSError):
        return None
