"""A hub on this machine that takes uploads as `huggingface_hub` makes them; `HF_ENDPOINT` leads there."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from tests.tiny.http_server import Handler, serving


@dataclass
class Taken:
    """What has come."""

    address: str = ""
    made: list[dict] = field(default_factory=list)
    """Repositories that were made."""
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)
    refuses: bool = False
    """Whether a commit is answered with 403."""


class PushHandler(Handler):
    """What `huggingface_hub` calls for an upload."""

    taken: ClassVar[Taken]

    def do_GET(self) -> None:
        self.json(404, {"error": "none"})

    def do_POST(self) -> None:
        body, taken = self.body(), self.taken
        taken.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            taken.made.append(json.loads(body))
            self.json(200, {"url": f"{taken.address}/me/shapes", "name": "me/shapes", "id": "1"})
        elif self.path == "/api/validate-yaml":
            self.json(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.json(200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for n in names]})
        elif "/commit/" in self.path and taken.refuses:
            self.json(403, {"error": f"{self.headers.get('Authorization')} may not write"})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    taken.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.json(200, {"commitUrl": f"{taken.address}/me/shapes/commit/1", "commitOid": "1", "success": True})
        else:
            self.json(404, {"error": self.path})

    def json(self, status: int, value: dict) -> None:
        self.reply(status, json.dumps(value).encode(), "application/json")


@contextmanager
def push_hub() -> Iterator[Taken]:
    taken = Taken()
    with serving(type("Serving", (PushHandler,), {"taken": taken})) as taken.address:
        yield taken
