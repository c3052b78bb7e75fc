"""What a row says, as a short text: two rows with the same one are the same to a model and to rewards."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flow_factory.data.inputs import inputs_of
from flow_factory.types import Row


def content_of(row: Row, more: Any = None) -> str:
    """16 hexadecimal digits of its prompts, the names of its condition files and its other columns, not of its number or folder.

    Files that are stored inside the data set have the hash of their bytes for a name.

    Args:
        more: other things that the text is to depend on: mappings, lists, text and numbers.
    """
    inputs = [[name, *map(_name, files)] for name, _, files in inputs_of(row)]
    files = [list(map(_name, row.images)), list(map(_name, row.videos)), inputs]
    parts = [row.prompt, row.negative_prompt, files, _placeless(row.columns), more]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _placeless(value: Any) -> Any:
    """The value with the names of files in place of absolute paths: a data set or a cache that was moved has the same rows."""
    if isinstance(value, Mapping):
        return {str(key): _placeless(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_placeless(one) for one in value]
    return _name(value) if isinstance(value, str) and value.startswith("/") else value


def _name(file: str) -> str:
    return Path(file).name
