"""The public Flow-Factory's JSONL of schema_version 2: demonstrations and preferences. File names are relative to the data set's folder."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from flow_factory.config.base import show
from flow_factory.config.data import OURS, PAIR, TARGET
from flow_factory.data.columns import EXAMPLE, DataError, kind_of, require_file_name
from flow_factory.utils.registry import nearest

SIDES = {"demonstration": TARGET, "preference": PAIR}
"""Supervision type of a line -> the columns that hold its media."""
MEDIA = {"image": ("type", "path", "slot"), "video": ("type", "path", "slot", "fps")}
"""Media types and their keys. `fps` is ignored: a video has its own frame rate."""


def columns_of(line: Mapping[str, Any], where: str, root: Path) -> tuple[str, dict[str, Any]]:
    """The supervision type of the line (a key of `SIDES`), and its columns in our own format.

    Args:
        root: the folder of relative paths.

    Raises:
        DataError: the line does not follow the schema.
    """
    if (version := line["schema_version"]) != 2 or isinstance(version, bool):
        raise DataError(f"{where}: schema_version {version!r}; only 2 can be read, or {EXAMPLE}")
    _require(line, ("schema_version", "input", "supervision"), ("metadata",), "", where)
    inputs = _object(line, "input", ("prompt",), ("media",), where)
    columns = {"prompt": inputs["prompt"]}
    media = _media(inputs.get("media", []), "input.media", where, root)
    _require_order(inputs.get("media", []), where)
    columns |= {f"{kind}s": [path for k, path in media if k == kind] for kind in dict.fromkeys(kind for kind, _ in media)}
    supervision = line["supervision"]
    supervision_type = supervision.get("type") if isinstance(supervision, Mapping) else None
    if supervision_type not in SIDES:
        raise DataError(f"{where}: supervision.type must be one of {', '.join(SIDES)}, not {kind_of(supervision_type)}")
    _require(supervision, ("type", *SIDES[supervision_type]), (), "supervision.", where)
    kinds = set[str]()
    for side in SIDES[supervision_type]:
        found = _media(_object(supervision, side, ("media",), (), where)["media"], side, where, root)
        if len(found) != 1:
            raise DataError(f"{where}: {side} has {len(found)} media; it must have one image or one video")
        kinds.add(found[0][0])
        columns[side] = found[0][1]
    if len(kinds) > 1:
        raise DataError(f"{where}: supervision mixes an image and a video; both sides must be of one kind")
    others = line.get("metadata", {})
    if not isinstance(others, Mapping) or (clash := next((name for name in others if name in OURS), None)):
        problem = f"{clash!r} is a reserved name" if isinstance(others, Mapping) else f"must be an object, not {kind_of(others)}"
        raise DataError(f"{where}: metadata: {problem}")
    return supervision_type, {**others, **columns}


def _media(media: Any, what: str, where: str, root: Path) -> list[tuple[str, str]]:
    """(kind, path) of each entry."""
    if not isinstance(media, list):
        raise DataError(f"{where}: {what} must be a list of objects with type and path, not {kind_of(media)}")
    found = []
    for one in media:
        kind = one.get("type") if isinstance(one, Mapping) else None
        if kind not in MEDIA:
            raise DataError(f"{where}: {what}: type must be one of {', '.join(MEDIA)}, not {kind_of(kind)}")
        _require(one, ("type", "path"), MEDIA[kind], f"{what}.", where)
        require_file_name(one["path"], f"{what}.path", kind, where)
        found.append((kind, str(root.absolute() / one["path"])))
    return found


def _require_order(media: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raises:
    DataError: slots tell media of a kind apart, which are told apart by their order here.
    """
    for kind in MEDIA:
        slots = list(dict.fromkeys(show(one.get("slot")) for one in media if one["type"] == kind))
        if len(slots) > 1:
            text = f"slots {', '.join(slots)} tell {kind}s apart; here their order does: write them in that of the pipeline's arguments"
            raise DataError(f"{where}: input.media: {text}, without slot")


def _object(parent: Mapping[str, Any], key: str, needed: Collection[str], allowed: Collection[str], where: str) -> Mapping[str, Any]:
    value = parent[key]
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: {key} must be an object, not {kind_of(value)}")
    _require(value, needed, allowed, f"{key}.", where)
    return value


def _require(found: Mapping[str, Any], needed: Collection[str], allowed: Collection[str], prefix: str, where: str) -> None:
    """Raises:
    DataError: a key is missing or unknown.
    """
    if missing := [key for key in needed if key not in found]:
        raise DataError(f"{where}: no {prefix}{missing[0]}; a line with a prompt alone is written {EXAMPLE.partition(' as ')[2]}")
    if unknown := [key for key in found if key not in (*needed, *allowed)]:
        raise DataError(f"{where}: {prefix}{unknown[0]}: unknown key of schema_version 2.{nearest(unknown[0], [*needed, *allowed])}")
