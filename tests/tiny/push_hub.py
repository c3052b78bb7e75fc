"""A hub on this machine that takes uploads as `huggingface_hub` makes them; `HF_ENDPOINT` leads there."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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


@contextmanager
def push_hub() -> Iterator[Taken]:
    taken = Taken()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.say(404, {"error": "none"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            taken.tokens.add(self.headers.get("Authorization"))
            if self.path == "/api/repos/create":
                taken.made.append(json.loads(body))
                self.say(200, {"url": f"{taken.address}/me/shapes", "name": "me/shapes", "id": "1"})
            elif self.path == "/api/validate-yaml":
                self.say(200, {"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                self.say(200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for n in names]})
            elif "/commit/" in self.path and taken.refuses:
                self.say(403, {"error": f"{self.headers.get('Authorization')} may not write"})
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        taken.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.say(200, {"commitUrl": f"{taken.address}/me/shapes/commit/1", "commitOid": "1", "success": True})
            else:
                self.say(404, {"error": self.path})

        def say(self, code: int, value: dict) -> None:
            text = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    taken.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield taken
    finally:
        server.shutdown()
        server.server_close()
