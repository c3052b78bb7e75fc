"""A hub on this machine, with the answers that `huggingface_hub` and `datasets` ask for; `HF_ENDPOINT` leads there."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.tiny.http_server import Handler, serving

COMMIT = hashlib.sha1(b"first").hexdigest()
LATER = hashlib.sha1(b"later").hexdigest()
SEEN = "2026-01-01T00:00:00.000Z"


def cached(name: str, folder: Path, cache: Path) -> Path:
    """Puts a copy of a folder into the hub's cache under a hub name, as a download leaves it; returns the snapshot."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return shutil.copytree(folder, repository / "snapshots" / COMMIT)


@dataclass
class Repo:
    """A data set or a model by commit, and the names of commits."""

    files: Mapping[str, Mapping[str, bytes]]
    names: Mapping[str, str] = field(default_factory=lambda: {"main": COMMIT})
    gated: int | None = None
    """The code with which it is refused."""
    dies: bool = False
    """Whether the connection ends in the middle of each file."""

    asked: list[str] = field(default_factory=list)
    """Files that were fetched, one entry each time."""

    def commit(self, name: str) -> str | None:
        return self.names.get(name, name if name in self.files else None)


class HubHandler(Handler):
    repos: Mapping[str, Repo]

    def do_GET(self) -> None:
        self.answer(urlsplit(self.path).path)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.posted = self.body()
        self.answer(urlsplit(self.path).path)

    def answer(self, path: str) -> None:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        api = parts[0] == "api"
        if not api and parts[0] != "datasets":
            parts.insert(0, "models")
        if parts[api] not in ("datasets", "models") or len(parts) < 3 + api:
            return self.refuse(404, "EntryNotFound")
        repo = self.repos.get("/".join(parts[1 + api : 3 + api]))
        if repo is None:
            return self.refuse(404, "RepoNotFound")
        if repo.gated is not None:
            return self.refuse(repo.gated, "GatedRepo")
        kind, *rest = parts[3 + api :] or ["revision"]
        commit = repo.commit(rest[0] if rest else "main")
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        files = repo.files[commit]
        if api:
            return self.listed(kind, commit, files, rest)
        name = "/".join(rest[1:])
        if name in files and self.command == "GET":
            repo.asked.append(name)
        return self.file(repo, commit, files[name]) if name in files else self.refuse(404, "EntryNotFound", commit)

    def listed(self, kind: str, commit: str, files: Mapping[str, bytes], rest: list[str]) -> None:
        infos = [{"type": "file", "path": name, "size": len(content), "oid": tag(content)} for name, content in files.items()]
        folders = {name.rpartition("/")[0] for name in files} - {""}
        infos += [{"type": "directory", "path": name, "size": 0, "oid": tag(name.encode())} for name in folders]
        if kind == "tree":
            inside = "/".join(rest[1:])
            return self.json([info for info in infos if not inside or info["path"].startswith(f"{inside}/")])
        if kind == "paths-info":
            paths = json.loads(self.posted)["paths"] if self.posted[:1] == b"{" else []
            paths = paths or [unquote(p[6:].decode().replace("+", " ")) for p in self.posted.split(b"&") if p[:6] == b"paths="]
            return self.json([info for info in infos if info["path"] in paths])
        siblings = [{"rfilename": name} for name in files]
        return self.json(
            {"id": "x/y", "sha": commit, "lastModified": SEEN, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        )

    def file(self, repo: Repo, commit: str, content: bytes) -> None:
        self.send_response(200)
        head = {"ETag": f'"{tag(content)}"', "X-Repo-Commit": commit, "Content-Length": str(len(content)), "Accept-Ranges": "bytes"}
        for name, value in head.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if repo.dies and len(content) > 100 else content)
            self.close_connection = True

    def json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if self.command != "HEAD" else b"")

    def refuse(self, code: int, why: str, commit: str | None = None) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", why)
        self.send_header("X-Error-Message", why)
        self.send_header("Content-Length", "0")
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()


def tag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def hub(repos: Mapping[str, Repo]) -> Iterator[str]:
    """Its address."""
    with serving(type("Serving", (HubHandler,), {"repos": repos})) as address:
        yield address
