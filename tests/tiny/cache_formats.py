"""The files of the cache of encoded rows: how each is damaged, and what reads it."""

import json
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from PIL import Image

from flow_factory.data.cache import ConditionCache
from flow_factory.data.index import ROW
from flow_factory.data.packing import SMALL
from flow_factory.data.shards import ALIGNED, DIGEST, Blob, Shards, digest
from flow_factory.types import Row
from tests.tiny.damage import Format, byte_damage, to_json, tree_damage


def encoded(folder: Path) -> Format:
    """A row of the cache: what is damaged is encoded again, never used."""
    row, cond = Row(0, "a cat", None, {}, (), (), "train.jsonl:1"), _condition()
    shard, index = _shard(folder, row, cond)
    good = {path: path.read_bytes() for path in (shard, index)}

    def read(damage: tuple[Path, bytes]) -> None:
        for path, data in (*good.items(), damage):
            path.write_bytes(data)
        found = ConditionCache(folder, "model").get(row)
        assert found is None or shown(found) == shown(cond)

    return Format(st.one_of(*(st.tuples(st.just(path), byte_damage(data)) for path, data in (*good.items(), *good.items()))), read)


def structure(folder: Path) -> Format:
    """A row of a stranger's cache, whose hash is right: it is a condition, or none."""
    row = Row(0, "a cat", None, {}, (), (), "train.jsonl:1")
    _shard(folder, row, _condition())
    key = bytes.fromhex(ConditionCache(folder, "model").key(row))
    data, _ = _opened(folder).row(key) or (b"", None)
    length = int.from_bytes(data[:8], "little")
    text, tensors = data[8 : 8 + length], data[8 + length + -(DIGEST + 8 + length) % ALIGNED :]

    def read(damaged: bytes) -> None:
        head = len(damaged).to_bytes(8, "little") + damaged
        rest = head + bytes(-(DIGEST + len(head)) % ALIGNED) + tensors
        shards = _opened(folder)
        shards.append([Blob(key, ROW, (digest(key, rest), rest))])
        found = ConditionCache(folder, "model").get(row)
        assert found is None or isinstance(found, dict)
        assert shards.writer is not None
        shards.writer.shard.unlink()
        shards.writer.index.unlink()

    return Format(st.one_of(tree_damage(json.loads(text)).map(to_json), byte_damage(text)), read)


def _condition() -> dict[str, Any]:
    return {"prompt_embeds": torch.arange(SMALL / 2), "few": torch.ones(2), "image": Image.new("RGB", (4, 4)), "sizes": (4, [4, None])}


def _shard(folder: Path, row: Row, cond: dict[str, Any]) -> tuple[Path, Path]:
    ConditionCache(folder, "model").put(row, cond)
    (shard,) = folder.rglob("*.shard")
    return shard, shard.with_suffix(".index")


def _opened(folder: Path) -> Shards:
    shards = ConditionCache(folder, "model").shards
    shards.refresh()
    return shards


def shown(cond: dict[str, Any]) -> str:
    return str([cond["prompt_embeds"].numpy().tobytes(), cond["few"], cond["image"].tobytes(), cond["sizes"]])
