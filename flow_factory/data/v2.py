"""The public Flow-Factory's JSONL of schema_version 2: demonstrations and preferences, whose files start in the data set's own folder."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flow_factory.config.data import OURS, PAIR, TARGET
from flow_factory.data.columns import EXAMPLE, DataError, kind_of, require_file_name
from flow_factory.utils.registry import nearest

SIDES = {"demonstration": TARGET, "preference": PAIR}
"""What a line shows, and the columns that it becomes."""
MEDIA = {"image": ("type", "path", "slot"), "video": ("type", "path", "slot", "fps")}
"""Kinds of media, and what may be said of one: a video's own rate counts, and media are taken in their order."""


def columns_of(line: Mapping[str, Any], where: str, root: Path) -> tuple[str, dict[str, Any]]:
    """What the line shows (a key of `SIDES`), and its columns as a line of ours has them.

    Args:
        root: where its relative paths start.

    Raises:
        DataError: it is not of this form.
    """
    if (version := line["schema_version"]) != 2 or isinstance(version, bool):
        raise DataError(f"{where}: schema_version {version!r}; 2 is known, or {EXAMPLE}")
    _require(line, ("schema_version", "input", "supervision"), ("metadata",), "", where)
    given = _object(line, "input", ("prompt",), ("media",), where)
    columns = {"prompt": given["prompt"]}
    media = _media(given.get("media", []), "input.media", where, root)
    columns |= {f"{kind}s": [path for its, path in media if its == kind] for kind in dict.fromkeys(kind for kind, _ in media)}
    supervision = line["supervision"]
    shows = supervision.get("type") if isinstance(supervision, Mapping) else None
    if shows not in SIDES:
        raise DataError(f"{where}: supervision.type wants one of {', '.join(SIDES)}, not {kind_of(shows)}")
    _require(supervision, ("type", *SIDES[shows]), (), "supervision.", where)
    kinds = set[str]()
    for side in SIDES[shows]:
        one = _media(_object(supervision, side, ("media",), (), where)["media"], side, where, root)
        if len(one) != 1:
            raise DataError(f"{where}: {len(one)} media in {side}; one image or video can be learned from")
        kinds.add(one[0][0])
        columns[side] = one[0][1]
    if len(kinds) > 1:
        raise DataError(f"{where}: a picture beside a video in supervision; both sides must be of one kind")
    others = line.get("metadata", {})
    if not isinstance(others, Mapping) or (clash := next((name for name in others if name in OURS), None)):
        said = f"{clash!r} has a meaning of its own" if isinstance(others, Mapping) else f"wants an object, not {kind_of(others)}"
        raise DataError(f"{where}: metadata: {said}")
    return shows, {**others, **columns}


def _media(media: Any, what: str, where: str, root: Path) -> list[tuple[str, str]]:
    """(kind, path) of each."""
    if not isinstance(media, list):
        raise DataError(f"{where}: {what} wants a list of objects with type and path, not {kind_of(media)}")
    found = []
    for one in media:
        kind = one.get("type") if isinstance(one, Mapping) else None
        if kind not in MEDIA:
            raise DataError(f"{where}: {what}: type wants one of {', '.join(MEDIA)}, not {kind_of(kind)}")
        _require(one, ("type", "path"), MEDIA[kind], f"{what}.", where)
        require_file_name(one["path"], f"{what}.path", kind, where)
        found.append((kind, str(root.absolute() / one["path"])))
    return found


def _object(above: Mapping[str, Any], key: str, needed: Collection[str], allowed: Collection[str], where: str) -> Mapping[str, Any]:
    value = above[key]
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: {key} wants an object, not {kind_of(value)}")
    _require(value, needed, allowed, f"{key}.", where)
    return value


def _require(there: Mapping[str, Any], needed: Collection[str], allowed: Collection[str], above: str, where: str) -> None:
    """Raises:
    DataError: a key is missing, or is not known.
    """
    if missing := [key for key in needed if key not in there]:
        raise DataError(f"{where}: no {above}{missing[0]}; a line with a prompt alone is written {EXAMPLE.partition(' as ')[2]}")
    if strange := [key for key in there if key not in (*needed, *allowed)]:
        raise DataError(f"{where}: {above}{strange[0]}: unknown key of schema_version 2.{nearest(strange[0], [*needed, *allowed])}")
