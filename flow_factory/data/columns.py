"""Maps a data set's columns to a row: the prompt, the files, and the values that each may have."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, overload

from flow_factory.config.data import OURS, PAIR, TARGET
from flow_factory.config.media_arguments import columns_problem, file_kind, media_kind
from flow_factory.types import Row
from flow_factory.utils.errors import UserError
from flow_factory.utils.registry import nearest

EXAMPLE = 'lines such as {"prompt": "a red cube"}'


class DataError(UserError):
    """A data set cannot be read. The message names the file, the line and what would be right."""


class Deferred:
    """A column's value that is read, or written to files, on access.

    It is no ABC, since `isinstance` is called for every value of every row, and is slower for an ABC.
    """

    many = False
    """Whether the value is a list."""

    def __len__(self) -> int:
        """The number of files that the value stands for."""
        raise NotImplementedError

    def files(self, folder: Path) -> tuple[str, ...]:
        """The paths of files with the content; the value's own relative names start in `folder`."""
        raise NotImplementedError

    def value(self) -> Any:
        """The value that rewards get."""
        raise NotImplementedError


class Files(Sequence[str]):
    """Names of files that are written on access; their number is known before."""

    def __init__(self, cell: Deferred, folder: Path):
        self.cell, self.folder = cell, folder

    def __len__(self) -> int:
        return len(self.cell)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self.cell.files(self.folder)[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.cell.files(self.folder))

    def __repr__(self) -> str:
        return repr(tuple(self))


def names_of(files: Sequence[str]) -> list[str]:
    """The files' base names; for files inside a table, which may have none, their indices."""
    return [str(k) for k in range(len(files))] if isinstance(files, Files) else [Path(path).name for path in files]


class Columns(Mapping[str, Any]):
    """A row's other columns, some of which are read on access."""

    def __init__(self, values: Mapping[str, Any]):
        self.values_of = values

    def __len__(self) -> int:
        return len(self.values_of)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_of)

    def __getitem__(self, name: str) -> Any:
        value = self.values_of[name]
        return value.value() if isinstance(value, Deferred) else value

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(frozen=True)
class Naming:
    """Maps a data set's columns to rows.

    Args:
        folders: kind ("image", "video", "audio") -> the folder of relative file names.
        columns: our name, or an argument of the pipeline -> the data set's name, from `data.columns`; a dot selects a key of an object, as
            in `json.caption`.
        root: the data set's folder, for lines of schema_version 2.

    Raises:
        DataError: a name is neither ours nor one that an argument for pictures, masks, videos or sounds has.
    """

    folders: Mapping[str, Path]
    columns: Mapping[str, str] = field(default_factory=dict)
    root: Path = Path()
    arguments: tuple[str, ...] = field(init=False)
    """Those keys of `columns` that are no names of ours, sorted."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", tuple(sorted(name for name in self.columns if name not in OURS)))
        for name in self.arguments:
            if media_kind(name) is None:
                raise DataError(f"data.columns: {columns_problem(name, None, {})}")

    def row(self, row_id: int, columns: Mapping[str, Any], where: str) -> Row:
        """The row of these columns.

        Args:
            where: `file:line`, for messages.

        Raises:
            DataError: a column that `data.columns` names is missing, or the columns are not as `reader.read_rows` describes them.
        """
        named = self.renamed(columns, where) if self.columns else dict(columns)
        if "prompt" not in named:
            close = difflib.get_close_matches("prompt", [key.lower() for key in named], n=1)
            guess = next((f"; is it {key!r}?" for key in named if key.lower() in close), "")
            raise DataError(f"{where}: no 'prompt' among the columns {listed(named)}{guess or HINT}")
        prompt, negative = named.pop("prompt"), named.pop("negative_prompt", None)
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f"{where}: {self.called('prompt')} must be a non-empty text, not {kind_of(prompt)}")
        if negative is not None and not isinstance(negative, str):
            raise DataError(f"{where}: {self.called('negative_prompt')} must be a text or null, not {kind_of(negative)}")
        if "\0" in prompt + (negative or ""):
            raise DataError(f"{where}: the prompt has a NUL character (\\u0000); delete it")
        images, videos = self._files(named, "image", where), self._files(named, "video", where)
        inputs = self._inputs(named, where)
        deferred = [name for name, value in named.items() if isinstance(value, Deferred)]
        files = [images, videos, *(some for of_kind in inputs.values() for some in of_kind.values())]
        inside = any(type(some) is Files for some in files) or any(name in (*PAIR, *TARGET) for name in deferred)
        left, further = Columns(named) if deferred else named, (inputs["image"], inputs["video"], inputs["audio"])
        return Row(row_id, prompt, negative, left, images, videos, where, None, inside, "", *further)

    def renamed(self, columns: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The columns under our names. A column of the data set whose name `columns` gives to another one is left out."""
        renamed = {name: self._found(columns, name, source, where) for name, source in self.columns.items()}
        sources = set(self.columns.values())
        return {name: value for name, value in columns.items() if name not in sources and name not in renamed} | renamed

    def _found(self, columns: Mapping[str, Any], name: str, source: str, where: str) -> Any:
        if source in columns:
            return columns[source]
        value: Any = columns
        for part in source.split("."):
            if not isinstance(value, Mapping) or part not in value:
                near = nearest(source, list(columns))
                raise DataError(f"{where}: data.columns.{name}: no column {source!r}.{near} There are {listed(columns)}")
            value = value[part]
        return value

    def called(self, name: str) -> str:
        """The name that a column has in the user's data set, for messages."""
        source = self.columns.get(name, name)
        return f"{name!r}" if source == name else f"{source!r} (data.columns.{name})"

    def _files(self, columns: dict[str, Any], kind: str, where: str) -> Sequence[str]:
        """Removes `image` and `images` (or `video` and `videos`) from the columns and returns the files; null counts as missing."""
        one, several = columns.pop(kind, None), columns.pop(f"{kind}s", None)
        if one is None and several is None:
            return ()
        single, plural = self.called(kind), self.called(f"{kind}s")
        if one is not None and several is not None:
            raise DataError(f"{where}: both {single} and {plural}; keep {kind!r} for one file, '{kind}s' for a list of them")
        if isinstance(one, list) or (isinstance(one, Deferred) and one.many):
            raise DataError(f"{where}: {single} must be one file's name; a list of them is '{kind}s'")
        if several is not None and not isinstance(several, list) and not (isinstance(several, Deferred) and several.many):
            raise DataError(f"{where}: {plural} must be a list of file names, not {kind_of(several)}; one file's name is {kind!r}")
        return self._paths(one if several is None else several, kind, plural if one is None else single, where)

    def _paths(self, given: Any, kind: str, called: str, where: str) -> Sequence[str]:
        """The paths of one file name or a list of them."""
        if isinstance(given, Deferred):
            return Files(given, self.folders[kind])
        names: list[Any] = given if isinstance(given, list) else [] if given is None else [given]
        for name in names:
            require_file_name(name, called, kind, where)
        return tuple(str(self.folders[kind] / name) for name in names)

    def _inputs(self, columns: dict[str, Any], where: str) -> dict[str, dict[str, Sequence[str]]]:
        """Removes the columns of the pipeline's arguments; kind -> argument -> files. Null and [] count as missing."""
        found: dict[str, dict[str, Sequence[str]]] = {"image": {}, "video": {}, "audio": {}}
        for name in self.arguments:
            value = columns.pop(name)
            first = value[0] if isinstance(value, list) and value else value
            kind = file_kind(name, first if isinstance(first, str) else "")
            kind = "image" if kind == "mask" else kind
            if len(files := self._paths(value, kind, self.called(name), where)):
                found[kind][name] = files
        return found


HINT = '; say which one is, as in data.columns: {"prompt": "caption"}'


def require_file_name(name: Any, column: str, kind: str, where: str) -> None:
    """Raises:
    DataError: `name` is not the name of a file.
    """
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: {column} must name a file, not {kind_of(name)}")
    if "\0" in name:
        raise DataError(f"{where}: {column}: {json.dumps(name)} is not a file name: it has a NUL character")
    if "://" in name:
        raise DataError(f"{where}: {column}: {name} is a URL; {kind}s are read from disk, so download it and name the file")


def listed(names: Iterable[str], most: int = 12) -> str:
    """The first of some names, for messages: a data set may have thousands of columns."""
    every = list(names)
    shown = ", ".join(name if len(name) <= 60 else f"{name[:60]}..." for name in islice(every, most))
    return shown + (f", ... ({len(every)} in all)" if len(every) > most else "") or "(none)"


def kind_of(value: Any) -> str:
    """The kind of a JSON value in words, with a short example, for messages."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {dict: "an object", list: "a list", str: "an empty text" if value == "" else "a text", int: "a number", float: "a number"}
    if type(value) not in names:
        return "bytes" if isinstance(value, Deferred) else type(value).__name__
    return names[type(value)] + (
        "" if isinstance(value, dict | list) or value == "" else f" ({json.dumps(value, ensure_ascii=False)[:40]})"
    )
