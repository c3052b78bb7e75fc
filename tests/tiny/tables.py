"""Tiny data sets in the formats that people have."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""As `datasets` stores one."""


def picture(color: str = "red", size: tuple[int, int] = (32, 24), form: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).convert(mode).save(file, form, **options)
    return file.getvalue()


def parquet(path: Path, columns: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), path)
    return path


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def written(folder: Path, form: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The same rows, with `caption` and `n`, in a file of each format."""
    path = folder / f"prompts.{form}"
    table = pa.Table.from_pylist([dict(row) for row in rows])
    if form == "parquet":
        return parquet(path, {name: table.column(name) for name in table.column_names})
    if form == "arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    elif form in ("csv", "tsv"):
        pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(delimiter="," if form == "csv" else "\t"))
    elif form == "json":
        path.write_text(json.dumps(list(rows)))
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        raise ValueError(form)
    return path
